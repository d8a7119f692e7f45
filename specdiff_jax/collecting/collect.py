"""Collecting: the engine over prompts, into the journal of trajectories."""

from collections.abc import Callable, Iterator, Sequence

from specdiff_jax.core import errors
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import trajectories
import numpy as np

Request = tuple[prompts_lib.Prompt, list[int]]  # a prompt and its token ids


def collect(
    prompts: Sequence[prompts_lib.Prompt],
    encode: Callable[[str], list[int]],
    generate: Callable[[list[Request]], Sequence[np.ndarray]],
    journal: trajectories.Journal,
    progress: Callable[[int, int, int], None] = lambda *_: None,
    *,
    batch: int = 8,
    chunk: int = 16,
    max_prompt: int | None = None,
) -> int:
  """Completes every prompt that the journal does not hold yet.

  `encode` makes a prompt's token ids. `generate` returns the completions
  ([C] int32, with the end token if it came) of at most `batch` requests, and
  what it returns must depend on each request alone, not on its neighbours: a
  run that is stopped and resumed groups them anew. The journal's header gives
  the law (temperature, top_k, top_p, seed) that each trajectory records.
  Every batch is on disk before `progress(done, total, new_tokens)` is called.

  Within `chunk` batches, prompts go by length, so that a batch pads little.
  Returns the number of new completion tokens. Raises InputError if a prompt
  has more than `max_prompt` tokens or none, before anything is generated.

    collect(prompts, tokenizer.encode, generate, journal, batch=8)
  """
  known = journal.ids()
  todo = [prompt for prompt in prompts if prompt.id not in known]
  requests = [(prompt, list(encode(prompt.text))) for prompt in todo]
  _check_lengths(requests, max_prompt)
  done, tokens = len(prompts) - len(todo), 0
  progress(done, len(prompts), tokens)
  for group in batches(requests, batch, chunk):
    completions = generate(group)
    if len(completions) != len(group):
      raise ValueError(f'{len(completions)} completions of {len(group)}')
    records = [
        _trajectory(request, completion, journal.header)
        for request, completion in zip(group, completions)
    ]
    journal.append(records)
    done += len(records)
    tokens += sum(len(record.completion) for record in records)
    progress(done, len(prompts), tokens)
  return tokens


def batches(
    requests: Sequence[Request], batch: int, chunk: int
) -> Iterator[list[Request]]:
  """Yields batches of like lengths: sorted within `chunk` batches."""
  for start in range(0, len(requests), batch * chunk):
    part = sorted(
        requests[start : start + batch * chunk], key=lambda pair: len(pair[1])
    )
    for first in range(0, len(part), batch):
      yield part[first : first + batch]


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
