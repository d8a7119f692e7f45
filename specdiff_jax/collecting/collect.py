"""Collecting: the engine over prompts, into the journal of trajectories."""

from collections.abc import Callable, Collection, Iterable, Sequence
import contextlib
import dataclasses

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import interrupts
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import trajectories


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """What the verifier is to complete."""

  id: str
  prompt_hash: str  # of what was asked: `prompts.text_hash`
  prompt: Sequence[int]  # its tokens, and the given ones
  given: int = 0  # of these, the last ones that are the completion's first


OnDone = Callable[[str, np.ndarray], None]  # takes an id and its completion
Records = list[trajectories.Trajectory]


def requests_of(
  prompts: Sequence[prompts_lib.Prompt],
  encode: Callable[[prompts_lib.Prompt], list[int]],
  max_prompt: int,
) -> list[Request]:
  """Returns the requests that ask for whole completions of prompts.

  Raises InputError if a prompt has more than `max_prompt` tokens or none.
  """
  found = [
    Request(p.id, prompts_lib.text_hash(p.text), list(encode(p)))
    for p in prompts
  ]
  _check_lengths(found, max_prompt)
  return found


def done(
  requests: Sequence[Request],
  there: Iterable[trajectories.Trajectory],
  where: str,
) -> dict[str, int]:
  """Returns the ids of the trajectories, and the tokens of each completion.

  Raises InputError if one has the id of a request and answers another one:
  another text stood under this id, or other tokens under this text.
  """
  asked = {request.id: request for request in requests}
  found, other = {}, []
  for record in there:
    found[record.id] = len(record.completion)
    if record.id in asked and not _answers(record, asked[record.id]):
      other.append(record.id)
  if other:
    shown = ', '.join(map(repr, other[:5])) + (', ...' if other[5:] else '')
    raise errors.InputError(
      f'{where}: of the completions there, {len(other)} answer other prompts '
      f'than now stand under their ids (or these make other tokens now): '
      f'{shown}. Go on with the prompts of before, give the new ones ids of '
      'their own, or give a new work directory.'
    )
  return found


def _answers(record: trajectories.Trajectory, request: Request) -> bool:
  prompt, given = _parted(request)
  return (
    record.prompt_hash == request.prompt_hash
    and np.array_equal(record.prompt, prompt)
    and np.array_equal(record.completion[: len(given)], given)
  )


def collect(
  requests: Sequence[Request],
  generate: Callable[[list[Request], OnDone], None],
  journal: trajectories.Journal,
  progress: Callable[[int, int, int], None],
  *,
  elsewhere: Collection[str] = (),
  extend: Callable[[Records], Records] = lambda records: records,
  at_once: int = 1,
) -> None:
  """Completes every request that the journal does not hold yet.

  `generate` completes requests and calls its second argument with each one's
  id and completion ([C] int32, with the end token if it came) once it is done,
  in any order. A completion must depend on its request alone, not on its
  neighbours: a run that is stopped and resumed has others. The journal's
  header gives the sampling (temperature, top_k, top_p, seed) that each
  trajectory records. Every completion is on disk before `progress(done, total,
  new_tokens)` is called.

  Args:
    requests: requests with distinct ids.
    generate: function that completes requests, see above.
    journal: where completions go, and may be already.
    progress: function told of what is done, see above.
    elsewhere: ids of requests that other processes completed.
    extend: function that adds to trajectories, before they are written, what
      takes another pass of the verifier.
    at_once: trajectories that are extended and written together, and that a
      kill may lose; the last ones, or those before an error, may be fewer.

    collect(requests_of(prompts, encode, 256), generate, journal, progress)
  """
  done = journal.ids().union(elsewhere)
  left = {one.id: one for one in requests if one.id not in done}
  waiting: Records = []
  held = contextlib.ExitStack()  # while some wait
  tokens = 0

  def show():
    done = len(requests) - len(left) - len(waiting)
    progress(done, len(requests), tokens)

  def write():
    records = list(waiting)
    waiting.clear()  # first, so that a full disk is met once
    with held:
      journal.append(extend(records))
    show()

  def on_done(name: str, completion: np.ndarray) -> None:
    nonlocal tokens
    if not waiting:
      held.enter_context(interrupts.held(f'finishing {journal.path}'))
    request = left.pop(name)
    waiting.append(_trajectory(request, completion, journal.header))
    tokens += len(completion)
    if len(waiting) == at_once or not left or interrupts.came():
      write()

  show()
  if left:
    try:
      generate(list(left.values()), on_done)
    finally:
      if waiting:  # an error came; what is done is kept
        write()
  if left:
    raise ValueError(f'{len(left)} requests were not completed')


def _check_lengths(requests: Sequence[Request], limit: int) -> None:
  for request in requests:
    size = len(request.prompt)
    if not size:
      raise errors.InputError(
        f'The prompt {request.id!r} has no tokens. Remove it from the file.'
      )
    if size > limit:
      raise errors.InputError(
        f'The prompt {request.id!r} has {size} tokens, and the buffers '
        f'hold {limit}. Raise config.prompt_buckets, or remove it from the '
        'prompt file.'
      )


def _trajectory(
  request: Request, completion: np.ndarray, header: dict
) -> trajectories.Trajectory:
  prompt, given = _parted(request)
  return trajectories.Trajectory(
    id=request.id,
    prompt_hash=request.prompt_hash,
    prompt=prompt,
    completion=np.concatenate([given, completion]).astype(np.int32),
    temperature=float(header['temperature']),
    top_k=int(header['top_k']),
    top_p=float(header['top_p']),
    seed=int(header['seed']),
  )


def _parted(request: Request) -> tuple[np.ndarray, np.ndarray]:
  """Returns the prompt, and the completion's first tokens."""
  start = len(request.prompt) - request.given
  prompt, given = np.split(np.asarray(request.prompt, np.int32), [start])
  return prompt, given
