"""The host side of decoding: batches of prompts through an engine."""

from collections.abc import Callable, Sequence
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt; `number` keys its noise and is unique among the requests."""

  number: int
  prompt: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Sampling and limits, all dynamic: changing them never recompiles."""

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  max_new_tokens: int = 128
  end_ids: tuple[int, ...] = ()

  def __post_init__(self):
    checks = {
        'temperature': 0 <= self.temperature < float('inf'),
        'top_k': self.top_k >= 0,
        'top_p': 0 < self.top_p <= 1,
        'max_new_tokens': self.max_new_tokens >= 1,
    }
    wanted = {
        'temperature': '0 (greedy) or a positive number',
        'top_k': '0 (off) or a positive integer',
        'top_p': 'above 0 and at most 1 (off)',
        'max_new_tokens': 'at least 1',
    }
    for name, good in checks.items():
      if not good:
        raise errors.InputError(
            f'{name}={getattr(self, name)!r}, but it has to be {wanted[name]}.'
        )


@dataclasses.dataclass(frozen=True)
class Completion:
  """What came of one request."""

  number: int
  tokens: np.ndarray  # [C] int32, with the end token if it came
  cycles: int  # verifier calls in which the row was live, prefill excluded
  emitted: int  # tokens of those calls
  accepted: np.ndarray  # [D+1] histogram of accepted draft tokens

  @property
  def tau(self) -> float:
    """Tokens emitted per verifier call, the bonus token included."""
    return self.emitted / max(self.cycles, 1)


@dataclasses.dataclass
class Clock:
  """Seconds spent, summed over batches."""

  prefill: float = 0.0
  decode: float = 0.0


def bucket_for(length: int, buckets: Sequence[int]) -> int:
  """Returns the smallest bucket that holds a prompt of `length` tokens."""
  for bucket in sorted(buckets):
    if length <= bucket:
      return bucket
  raise errors.InputError(
      f'a prompt of {length} tokens is longer than the largest buffer, '
      f'{max(buckets)} tokens; raise prompt_buckets or shorten the prompt.'
  )


def start(
    engine: engine_lib.Engine,
    params: types.Params,
    drafter_params: types.Params,
    requests: Sequence[Request],
    settings: Settings,
    batch: int,
    buckets: Sequence[int],
) -> types.DecodeState:
  """Prefills up to `batch` requests of uneven length; spare rows are done."""
  longest = max(len(request.prompt) for request in requests)
  bucket = bucket_for(longest, buckets)
  engine.check_bucket(bucket)
  if settings.max_new_tokens > engine.max_new_tokens:
    raise errors.InputError(
        f'max_new_tokens={settings.max_new_tokens}, but the buffers have room '
        f'for {engine.max_new_tokens}; build the system with larger ones.'
    )
  tokens = np.zeros((batch, bucket), np.int32)
  length = np.zeros(batch, np.int32)
  numbers = np.zeros(batch, np.int32)
  for row, request in enumerate(requests):
    if not len(request.prompt):
      raise errors.InputError(f'request {request.number}: the prompt is empty.')
    tokens[row, : len(request.prompt)] = request.prompt
    length[row] = len(request.prompt)
    numbers[row] = request.number
  room = -(-max(len(settings.end_ids), 1) // 8) * 8  # few sizes, few programs
  end_ids = np.full(room, -1, np.int32)
  end_ids[: len(settings.end_ids)] = settings.end_ids

  def full(value, dtype):
    return jnp.full(batch, value, dtype)

  return engine.prefill(
      params,
      drafter_params,
      tokens,
      length,
      full(settings.max_new_tokens, jnp.int32),
      end_ids,
      types.Sampling(
          temperature=full(settings.temperature, jnp.float32),
          top_k=full(settings.top_k, jnp.int32),
          top_p=full(settings.top_p, jnp.float32),
      ),
      sampling_lib.request_noise(settings.seed, jnp.asarray(numbers)),
  )


def generate(
    engine: engine_lib.Engine,
    params: types.Params,
    drafter_params: types.Params,
    requests: Sequence[Request],
    settings: Settings,
    batch: int,
    buckets: Sequence[int],
    cycles_per_call: int = 1 << 30,
    on_tokens: Callable[[int, np.ndarray], bool] | None = None,
    clock: Clock | None = None,
) -> list[Completion]:
  """Decodes requests in batches; returns completions in their order.

  Args:
    engine: the system.
    params: the verifier's.
    drafter_params: the drafter's.
    requests: prompts of uneven lengths.
    settings: sampling and limits.
    batch: rows decoded together; the last batch is padded with done rows.
    buckets: sizes that prompts are padded to, each compiled once.
    cycles_per_call: how often the host looks: one fetch for each call.
    on_tokens: called after each call with a request's number and all its
      tokens so far, for rows that grew; returning True stops that row.
    clock: adds up the seconds of prefill and decoding.
  """
  clock = clock or Clock()
  done = []
  for first in range(0, len(requests), batch):
    group = requests[first : first + batch]
    begin = time.perf_counter()
    state = start(
        engine, params, drafter_params, group, settings, batch, buckets
    )
    jax.block_until_ready(state)
    clock.prefill += time.perf_counter() - begin
    begin = time.perf_counter()
    state = _run(
        engine, params, drafter_params, state, group, cycles_per_call, on_tokens
    )
    fetched = jax.device_get((state.tokens, state.length, state.stats))
    clock.decode += time.perf_counter() - begin
    done.extend(_completions(group, *fetched))
  return done


def _run(
    engine, params, drafter_params, state, group, cycles_per_call, on_tokens
):
  """Calls the jitted loop until every row is done."""
  cycles = jnp.int32(cycles_per_call)
  shown = [0] * len(group)
  while True:
    state = engine.decode(params, drafter_params, state, cycles)
    if on_tokens is None:
      if jax.device_get(state.done).all():
        return state
      continue
    tokens, length, done = jax.device_get(
        (state.tokens, state.length, state.done)
    )
    stopped = done.copy()
    for row, request in enumerate(group):
      if length[row] > shown[row]:
        shown[row] = length[row]
        completion = tokens[row, len(request.prompt) : length[row]]
        stopped[row] |= bool(on_tokens(request.number, completion))
    if stopped.all():
      return state
    if (stopped != done).any():
      state = state.replace(done=jnp.asarray(stopped))


def _completions(group, tokens, length, stats) -> list[Completion]:
  return [
      Completion(
          number=request.number,
          tokens=tokens[row, len(request.prompt) : length[row]],
          cycles=int(stats.cycles[row]),
          emitted=int(stats.emitted[row]),
          accepted=stats.accepted[row],
      )
      for row, request in enumerate(group)
  ]
