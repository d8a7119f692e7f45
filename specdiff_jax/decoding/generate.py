"""The host side of decoding: prompts through the rows of a batch."""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import numbers
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.core import limits
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import rows as rows_lib

_BROKEN = (
  "the verifier's logits hold a NaN or an infinity: prompt {} (0 is "
  'prefill). Its weights are broken, or overflow in this dtype: check the '
  'file, or try config.dtype=float32. The prompts that were done before were '
  'handed over.'
)


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt; `number` keys its noise and is unique among the requests."""

  number: int
  prompt: Sequence[int]

  def __post_init__(self):
    if not 0 <= self.number < 2**64:
      raise errors.InputError(
        f'The number of a request is {self.number}, but it has to be at least '
        '0 and below 2**64.'
      )


# What becomes no other value on the device: float32 there, int32, and seeds of
# 32 bits.
_LEAST_TOP_P = float(np.finfo(np.float32).tiny)  # less counts as 0
_LIMITS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
  'temperature': (
    numbers.Real,
    lambda x: (
      x == 0 or limits.LEAST_TEMPERATURE <= x <= limits.MOST_TEMPERATURE
    ),
    f'0 (greedy) or {limits.LEAST_TEMPERATURE:g} to {limits.MOST_TEMPERATURE:g}',
  ),
  'top_k': (
    numbers.Integral,
    lambda x: 0 <= x < 2**31,
    f'an integer: 0 (off), or 1 to {2**31 - 1}',
  ),
  'top_p': (
    numbers.Real,
    lambda x: x == 1 or _LEAST_TOP_P <= x and np.float32(x) < 1,
    f'1 (off), or {_LEAST_TOP_P:.3g} to 0.9999999: others are 0 or 1 in '
    'float32',
  ),
  'seed': (
    numbers.Integral,
    lambda x: 0 <= x < 2**32,
    f'an integer of 32 bits, 0 to {2**32 - 1}',
  ),
  'max_new_tokens': (
    numbers.Integral,
    lambda x: 1 <= x <= limits.MOST_TOKENS,
    f'an integer, 1 to {limits.MOST_TOKENS}',
  ),
}


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
    for name, (kind, good, wanted) in _LIMITS.items():
      value = getattr(self, name)
      # A truth value is a number to Python.
      if (
        isinstance(value, bool)
        or not isinstance(value, kind)
        or (not good(value))
      ):
        raise errors.InputError(f'{name}={value!r}, but it has to be {wanted}.')


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
  """Seconds spent, summed over requests; the caller's own are in neither."""

  prefill: float = 0.0
  decode: float = 0.0

  @contextlib.contextmanager
  def adding(self, name: str) -> Iterator[None]:
    """Adds what the block takes."""
    begin = time.perf_counter()
    yield
    setattr(self, name, getattr(self, name) + time.perf_counter() - begin)


def bucket_for(length: int, buckets: Sequence[int]) -> int:
  """Returns the smallest bucket that holds a prompt of `length` tokens."""
  for bucket in sorted(buckets):
    if length <= bucket:
      return bucket
  raise errors.InputError(
    f'a prompt of {length} tokens is longer than the largest buffer, '
    f'{max(buckets)} tokens; raise prompt_buckets or shorten the prompt.'
  )


def by_bucket(
  requests: Sequence[Request], buckets: Sequence[int]
) -> list[collections.deque[int]]:
  """Returns the indices of the requests of each bucket that occurs."""
  queues = {}
  for index, request in enumerate(requests):
    bucket = bucket_for(len(request.prompt), buckets)
    queues.setdefault(bucket, collections.deque()).append(index)
  return list(queues.values())


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
  jax_settings.check()
  longest = max(len(request.prompt) for request in requests)
  bucket = bucket_for(longest, buckets)
  engine.check_length(longest)
  if settings.max_new_tokens > engine.max_new_tokens:
    raise errors.InputError(
      f'max_new_tokens={settings.max_new_tokens}, but the buffers have room '
      f'for {engine.max_new_tokens}; build the system with larger ones.'
    )
  tokens = np.zeros((batch, bucket), np.int32)
  length = np.zeros(batch, np.int32)
  keys = np.zeros(batch, np.uint64)
  for row, request in enumerate(requests):
    if not len(request.prompt):
      raise errors.InputError(f'request {request.number}: the prompt is empty.')
    tokens[row, : len(request.prompt)] = request.prompt
    length[row] = len(request.prompt)
    keys[row] = request.number
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
    sampling_lib.request_noise(settings.seed, *sampling_lib.halves(keys)),
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
  on_done: Callable[[Request, Completion], None] | None = None,
  clock: Clock | None = None,
) -> list[Completion]:
  """Decodes requests; returns completions in their order.

  Requests of one prompt bucket share the rows of a batch: rows that are done
  are refilled while the others go on, `rows.group` at a time. All prefills have
  one shape, so a request's output depends neither on its row nor on its
  neighbours.

  Args:
    engine: the system.
    params: the verifier's.
    drafter_params: the drafter's.
    requests: prompts of uneven lengths.
    settings: sampling and limits.
    batch: rows decoded together; rows without a request are done.
    buckets: sizes that prompts are padded to, each compiled once.
    cycles_per_call: after so many cycles the host looks, and whenever a row is
      done (in large batches `rows.group` of them): one fetch for each call.
    on_tokens: called after each call with a request's number and all its
      tokens so far, for rows that grew; returning True stops that row.
    on_done: called with each request and its completion once the host sees it:
      bucket by bucket, in no order that could be relied on.
    clock: adds up the seconds of prefill, refills included, and of decoding.

  Raises InputError where the verifier's logits are not numbers, after handing
  over what is done.
  """
  clock = clock or Clock()
  parts = (engine, params, drafter_params)
  completions: list[Any] = [None] * len(requests)

  def end(index, completion):
    completions[index] = completion
    if on_done is not None:
      on_done(requests[index], completion)

  for queue in by_bucket(requests, buckets):
    rows = rows_lib.Rows(*parts, batch)
    work = {}  # the request in each row that has one
    while queue or work:
      with clock.adding('prefill'):
        free = [row for row in range(batch) if row not in work]
        # A prefill of fewer costs as much, so only the last one may be short.
        while queue and len(free) >= min(rows.group, len(queue)):
          taken = [queue.popleft() for _ in free[: rows.group] if queue]
          asked = [requests[index] for index in taken]
          places, free = free[: len(taken)], free[len(taken) :]
          state = start(*parts, asked, settings, rows.group, buckets)
          rows.fill(places, state)
          work |= zip(places, map(_Work, taken, asked))
        rows.wait()
      with clock.adding('decode'):
        look = rows.run(cycles_per_call, len(work))
      done = look.done.copy()
      for row, item in work.items():
        done[row] |= item.grew(row, look, on_tokens)
      if (done != look.done).any():
        rows.stop(done)
      _hand_over({r: work.pop(r) for r in list(work) if done[r]}, look, end)
  return completions


def _hand_over(done: dict[int, '_Work'], look: rows_lib.Look, end) -> None:
  """Calls end(index, completion) for rows that are done and sound."""
  broken = []
  for row, item in done.items():
    cycle = look.stats.bad[row]
    if cycle < 0:
      end(item.index, item.completion(row, look))
    else:
      broken.append(f'{item.name!r} in cycle {cycle}')
  if broken:  # after what is done was handed over
    raise errors.InputError(_BROKEN.format(', '.join(broken)))


@dataclasses.dataclass
class _Work:
  """A request in a row."""

  index: int  # among the requests
  request: Request
  shown: int = 0  # its length when it was shown last

  def grew(self, row: int, look: rows_lib.Look, on_tokens) -> bool:
    """Shows new tokens; returns whether the caller wants the row to stop."""
    if on_tokens is None or look.length[row] == self.shown:
      return False
    self.shown = look.length[row]
    return bool(on_tokens(self.request.number, self._tokens(row, look)))

  @property
  def name(self) -> str | int:
    """What a user knows the request by."""
    return getattr(self.request, 'id', '') or self.request.number

  def completion(self, row: int, look: rows_lib.Look) -> Completion:
    return Completion(
      number=self.request.number,
      tokens=self._tokens(row, look),
      cycles=int(look.stats.cycles[row]),
      emitted=int(look.stats.emitted[row]),
      accepted=look.stats.accepted[row].copy(),
    )

  def _tokens(self, row: int, look: rows_lib.Look) -> np.ndarray:
    first = len(self.request.prompt)
    return look.tokens[row, first : look.length[row]].copy()


def warm_up(
  engine: engine_lib.Engine,
  params: types.Params,
  drafter_params: types.Params,
  requests: Sequence[Request],
  settings: Settings,
  batch: int,
  buckets: Sequence[int],
) -> None:
  """Compiles all that decoding such requests needs, and runs it a little."""
  short = min(4, settings.max_new_tokens)
  settings = dataclasses.replace(settings, max_new_tokens=short)
  for queue in by_bucket(requests, buckets):
    some = [requests[index] for index in queue][: batch + 1]
    parts = (engine, params, drafter_params)
    generate(*parts, some, settings, batch, buckets)
    rows = rows_lib.Rows(*parts, batch)
    first = start(*parts, some[:1], settings, rows.group, buckets)
    rows.warm_up(first)
