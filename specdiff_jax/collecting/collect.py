"""Collecting: the engine over prompts, into the journal of trajectories."""

from collections.abc import Callable, Sequence

from specdiff_jax.core import errors
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import trajectories
import numpy as np

Request = tuple[prompts_lib.Prompt, list[int]]  # a prompt and its token ids
OnDone = Callable[[str, np.ndarray], None]  # takes an id and its completion


def collect(
    prompts: Sequence[prompts_lib.Prompt],
    encode: Callable[[str], list[int]],
    generate: Callable[[list[Request], OnDone], None],
    journal: trajectories.Journal,
    progress: Callable[[int, int, int], None] = lambda *_: None,
    *,
    max_prompt: int | None = None,
) -> int:
  """Completes every prompt that the journal does not hold yet.

  `encode` makes a prompt's token ids. `generate` completes requests and calls
  its second argument with each prompt's id and completion ([C] int32, with the
  end token if it came) once it is done, in any order. A completion must depend
  on its request alone, not on its neighbours: a run that is stopped and resumed
  has others. The journal's header gives the law (temperature, top_k, top_p,
  seed) that each trajectory records. Every completion is on disk before
  `progress(done, total, new_tokens)` is called.

  Returns the number of new completion tokens. Raises InputError if a prompt
  has more than `max_prompt` tokens or none, before anything is generated.

    collect(prompts, tokenizer.encode, generate, journal)
  """
  known = journal.ids()
  todo = [prompt for prompt in prompts if prompt.id not in known]
  requests = [(prompt, list(encode(prompt.text))) for prompt in todo]
  _check_lengths(requests, max_prompt)
  left = {request[0].id: request for request in requests}
  tokens = 0

  def show():
    progress(len(prompts) - len(left), len(prompts), tokens)

  def on_done(name: str, completion: np.ndarray) -> None:
    nonlocal tokens
    journal.append([_trajectory(left.pop(name), completion, journal.header)])
    tokens += len(completion)
    show()

  show()
  if requests:
    generate(requests, on_done)
  if left:
    raise ValueError(f'{len(left)} of {len(requests)} were not completed')
  return tokens


def _check_lengths(requests: Sequence[Request], limit: int | None) -> None:
  for prompt, ids in requests:
    if not ids:
      raise errors.InputError(
          f'The prompt {prompt.id!r} has no tokens. Remove it from the file.'
      )
    if limit is not None and len(ids) > limit:
      raise errors.InputError(
          f'The prompt {prompt.id!r} has {len(ids)} tokens, and the buffers '
          f'hold {limit}. Raise config.prompt_buckets, or remove it from the '
          'prompt file.'
      )


def _trajectory(
    request: Request, completion: np.ndarray, header: dict
) -> trajectories.Trajectory:
  prompt, ids = request
  return trajectories.Trajectory(
      id=prompt.id,
      prompt_hash=prompts_lib.text_hash(prompt.text),
      prompt=np.asarray(ids, np.int32),
      completion=np.asarray(completion, np.int32),
      temperature=float(header['temperature']),
      top_k=int(header['top_k']),
      top_p=float(header['top_p']),
      seed=int(header['seed']),
  )
