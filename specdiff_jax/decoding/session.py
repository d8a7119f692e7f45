"""The host side of decoding: prompts through the rows of a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import calibration
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import rows as rows_lib
from specdiff_jax.text import stop_strings

_BROKEN = (
  "the verifier's logits hold a NaN or an infinity: prompt {} (0 is "
  'prefill). Its weights are broken, or overflow in this dtype: check the '
  'file, or try config.dtype=float32. The prompts that were done before were '
  'handed over.'
)
_NO_LIMIT = 1 << 30  # cycles of a call


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
  """An engine with its weights and settings: requests in, completions out.

  Requests of one prompt bucket share the rows of a batch: rows that are done
  are refilled while the others go on. All prefills have one shape, so a
  request's output depends neither on its row nor on its neighbours.

  Attributes:
    engine: verifier, drafter and rule.
    params: params of the verifier.
    drafter_params: params of the drafter.
    settings: sampling and limits.
    batch: rows decoded together; rows without a request are done.
    buckets: sizes that prompts are padded to, each compiled once.
    cycles_per_call: cycles after which the host looks, where somebody reads
      along.
    name: the system's name, as users give it.
    stop: strings that end a text.
    decode_text: function from tokens to text.
    settled_text: function from tokens to the part of their text that no later
      token changes.
    size: gamma, drafts and verify_tokens, for reports.
  """

  engine: engine_lib.Engine
  params: types.Params
  drafter_params: types.Params
  settings: request_lib.Settings
  batch: int
  buckets: tuple[int, ...]
  cycles_per_call: int = 16
  name: str = ''
  stop: tuple[str, ...] = ()
  decode_text: Callable[[Sequence[int]], str] = str
  settled_text: Callable[[Sequence[int]], str] = str
  size: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def decode(
    self,
    requests: Sequence[request_lib.Request],
    *,
    on_tokens: Callable[[int, np.ndarray], bool] | None = None,
    on_done: Callable[[Any, request_lib.Completion], None] | None = None,
    clock: request_lib.Clock | None = None,
  ) -> list[request_lib.Completion]:
    """Decodes requests; returns completions in their order.

    The host looks whenever a row is done (in large batches `rows.group_of` of
    them), one fetch for each call of the loop.

    Args:
      requests: prompts of uneven lengths; further completions of a prompt need
        ids of their own, since their noise would be the same.
      on_tokens: called after each call with a request's number and all its
        tokens so far, for rows that grew; returning True stops that row.
      on_done: called with each request and its completion once the host sees
        it: bucket by bucket, in no order that could be relied on.
      clock: adds up the seconds of prefill, refills included, and of decoding.

    Raises InputError where two requests have one id or number, and where the
    verifier's logits are not numbers, after handing over what is done.
    """
    request_lib.check_distinct(requests)
    clock = clock or request_lib.Clock()
    cycles = self.cycles_per_call if on_tokens else _NO_LIMIT
    completions: list[Any] = [None] * len(requests)

    def end(index, completion):
      completions[index] = completion
      if on_done is not None:
        on_done(requests[index], completion)

    for work, look, done in self._looks(requests, cycles, clock):
      for row, item in work.items():
        done[row] |= item.grew(row, look, on_tokens)
      ended = {row: item for row, item in work.items() if done[row]}
      _hand_over(ended, look, end)
    return completions

  def stream(self, request: request_lib.Request) -> Iterator[str]:
    """Yields the text of one request in pieces, as it is made.

    A piece is given once it can no longer change; joined they are the text
    before the first stop string.
    """
    text = stop_strings.Stream(self.decode_text, self.stop, self.settled_text)
    looks = self._looks([request], self.cycles_per_call, request_lib.Clock())
    for work, look, done in looks:
      for row, item in work.items():
        piece = text.show(item.tokens(row, look))
        done[row] |= text.stopped
        if piece:
          yield piece
      ended = {row: item for row, item in work.items() if done[row]}
      _hand_over(ended, look, lambda index, completion: None)
    if piece := text.finish():
      yield piece

  def keeping(
    self, *, logprobs: bool = False, trace: bool = False
  ) -> 'Session':
    """Returns the session that keeps these of each token, see `Engine`."""
    engine = dataclasses.replace(self.engine, logprobs=logprobs, trace=trace)
    return dataclasses.replace(self, engine=engine)

  def cut(self, completion: request_lib.Completion) -> tuple[str, list[int]]:
    """Returns text and tokens of a completion, cut at the first stop string."""
    return stop_strings.cut(
      self.decode_text, completion.tokens, self.stop, self.settled_text
    )

  def watch(self) -> Callable[[int, np.ndarray], bool] | None:
    """Returns an `on_tokens` that ends requests at stop strings; None without."""
    return stop_strings.watch(self.stop, self.settled_text)

  def _looks(
    self,
    requests: Sequence[request_lib.Request],
    cycles: int,
    clock: request_lib.Clock,
  ) -> Iterator[tuple[dict[int, '_Work'], rows_lib.Look, np.ndarray]]:
    """Yields after each call of the loop: requests by row, look, `done` [B].

    Rows that the caller marks in `done` are stopped, and given others.
    """
    for queue in request_lib.by_bucket(requests, self.buckets):
      rows = self.rows()
      work = {}  # the request in each row that has one
      while queue or work:
        with clock.adding('prefill'):
          free = [row for row in range(self.batch) if row not in work]
          # A prefill of fewer costs as much, so only the last one may be short.
          while queue and len(free) >= min(rows.group, len(queue)):
            taken = [queue.popleft() for _ in free[: rows.group] if queue]
            asked = [requests[index] for index in taken]
            places, free = free[: len(taken)], free[len(taken) :]
            rows.fill(places, self.start(asked, rows.group))
            work |= zip(places, map(_Work, taken, asked))
          rows.wait()
        with clock.adding('decode'):
          look = rows.run(cycles, len(work))
        clock.looks += 1
        done = look.done.copy()
        yield work, look, done
        if (done != look.done).any():
          rows.stop(done)
        work = {row: item for row, item in work.items() if not done[row]}

  def rows(self) -> rows_lib.Rows:
    """Returns a batch on the device whose rows are empty."""
    return rows_lib.Rows(
      self.engine, self.params, self.drafter_params, self.batch
    )

  def start(
    self, requests: Sequence[request_lib.Request], rows: int = 0
  ) -> types.DecodeState:
    """Returns the prefilled state of up to `rows` requests (0: the batch).

    Spare rows are done.
    """
    jax_settings.check()
    return self.engine.prefill(
      self.params, self.drafter_params, *self.inputs(requests, rows)
    )

  def inputs(
    self, requests: Sequence[request_lib.Request], rows: int = 0
  ) -> tuple[Any, ...]:
    """Returns what `Engine.prefill` reads of up to `rows` requests."""
    rows = rows or self.batch
    requests = requests[:rows]
    longest = max(len(request.prompt) for request in requests)
    bucket = request_lib.bucket_for(longest, self.buckets)
    self.engine.check_length(longest)
    s = self.settings
    if s.max_new_tokens > self.engine.max_new_tokens:
      raise errors.InputError(
        f'max_new_tokens={s.max_new_tokens}, but the buffers have room '
        f'for {self.engine.max_new_tokens}; build the system with larger ones.'
      )
    tokens: Any = np.zeros((rows, bucket), np.int32)
    length: Any = np.zeros(rows, np.int32)
    numbers = [0] * rows
    for row, request in enumerate(requests):
      if not len(request.prompt):
        raise errors.InputError(
          f'request {request.number}: the prompt is empty.'
        )
      tokens[row, : len(request.prompt)] = request.prompt
      length[row] = len(request.prompt)
      numbers[row] = request.number
    room = -(-max(len(s.end_ids), 1) // 8) * 8  # few sizes, few programs
    end_ids = np.full(room, -1, np.int32)
    end_ids[: len(s.end_ids)] = s.end_ids

    def full(value, dtype) -> Any:
      return np.full(rows, value, dtype)

    return (
      types.Prompt(tokens, length),
      full(s.max_new_tokens, np.int32),
      end_ids,
      types.Sampling(
        temperature=full(s.temperature, np.float32),
        top_k=full(s.top_k, np.int32),
        top_p=full(s.top_p, np.float32),
      ),
      sampling_lib.request_noise(s.seed, *sampling_lib.halves(numbers)),
    )

  def warm_up(self, requests: Sequence[request_lib.Request]) -> None:
    """Compiles all that decoding requests of such lengths needs."""
    short = min(4, self.settings.max_new_tokens)
    settings = dataclasses.replace(self.settings, max_new_tokens=short)
    one = dataclasses.replace(self, settings=settings)
    for queue in request_lib.by_bucket(requests, self.buckets):
      few = [requests[index] for index in queue][: self.batch + 1]
      one.decode(few)
      rows = one.rows()
      rows.warm_up(one.start(few[:1], rows.group))

  def calibrated(
    self,
    requests: Sequence[request_lib.Request],
    cycles: int = 4,
    rounds: int = 16,
  ) -> 'Session':
    """Returns the session with its costs measured, if its drafter chooses.

    `cycles` of each of the drafter's buckets are timed, `rounds` times.
    """
    drafter = self.engine.adaptive
    if drafter is None or not drafter.calibrates:
      return self
    every_row = jnp.int32(self.batch)  # `rows.run` gives it too: one program

    def decode(drafter_params, state, cycles):
      return self.engine.decode(
        self.params, drafter_params, state, jnp.int32(cycles), every_row
      )

    params = calibration.measured(
      drafter,
      self.drafter_params,
      lambda: self.start(requests),
      decode,
      cycles,
      rounds,
    )
    return dataclasses.replace(self, drafter_params=params)


def _hand_over(done: dict[int, '_Work'], look: rows_lib.Look, end) -> None:
  """Calls end(index, completion) for rows that are done and sound."""
  broken = []
  for row, item in done.items():
    cycle = look.stats.bad[row]
    if cycle < 0:
      end(item.index, item.completion(row, look))
    else:
      broken.append(f'{item.request.name!r} in cycle {cycle}')
  if broken:  # after what is done was handed over
    raise errors.InputError(_BROKEN.format(', '.join(broken)))


@dataclasses.dataclass
class _Work:
  """A request in a row."""

  index: int  # among the requests
  request: request_lib.Request
  shown: int = 0  # its length when it was shown last

  def grew(self, row: int, look: rows_lib.Look, on_tokens) -> bool:
    """Shows new tokens; returns whether the caller wants the row to stop."""
    if on_tokens is None or look.length[row] == self.shown:
      return False
    self.shown = look.length[row]
    return bool(on_tokens(self.request.number, self.tokens(row, look)))

  def completion(self, row: int, look: rows_lib.Look) -> request_lib.Completion:
    return request_lib.Completion(
      number=self.request.number,
      tokens=self.tokens(row, look),
      cycles=int(look.stats.cycles[row]),
      emitted=int(look.stats.emitted[row]),
      accepted=np.array(look.stats.accepted[row]),
      logprobs=self._new(look.logprobs, row, look),
      ends=np.array(look.stats.ends[row]),
      trace=self._new(look.trace, row, look),
    )

  def tokens(self, row: int, look: rows_lib.Look) -> np.ndarray:
    return self._new(look.tokens, row, look)

  def _new(self, values: Any, row: int, look: rows_lib.Look) -> Any:
    """Returns values [B, T, ..] of the completion's tokens; None of None."""
    if values is None:
      return None
    return values[row, len(self.request.prompt) : look.length[row]].copy()
