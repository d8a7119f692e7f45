"""Where a drafter fails on trajectories, and what to collect from there.

Serving visits few prefixes of a text: those behind accepted drafts. Where the
current drafter is accepted for a short time there, other continuations of the
very prefix teach it most.

  trajectory   p p p a b c d e f g <end>      p: prompt
  accepted           2 . . 0 2 . . .          at the anchors that are visited
  request      p p p a b c d                  d is given, what follows is new
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from specdiff_jax.collecting import collect
from specdiff_jax.core import training_types
from specdiff_jax.data import trajectories
from specdiff_jax.training import evaluate
from specdiff_jax.training import every_anchor


def accepted_counts(
  matches: Callable[[Any], tuple[jax.Array, jax.Array]],
  batches: Iterable[training_types.TrainBatch],
  records: int,
) -> list[np.ndarray]:
  """Returns for each record the accepted draft tokens at all its anchors.

  Args:
    matches: batch -> (match, valid), each [B, W, G].
    batches: with every anchor of every record once, such as those of
      `every_anchor.batches`.
    records: how many there are.
  """
  none = np.zeros(0, np.int32)
  return [
    np.concatenate([none, *(evaluate.accepted_counts(*pair) for pair in pairs)])
    for pairs in every_anchor.by_record(matches, batches, records)
  ]


def failing(
  accepted: Sequence[int] | np.ndarray, most: int, limit: int
) -> list[int]:
  """Returns the anchors where serving accepts at most `most` draft tokens.

  Serving visits anchor 0, and after anchor i the anchor i + accepted[i] + 1.
  If there are more than `limit`, those stay that accept least, spread evenly
  over the text among equals.

  >>> failing([2, 9, 9, 0, 1, 9, 0], most=1, limit=9)
  [3, 4, 6]
  """
  visited = evaluate.visited(accepted)
  chosen: list[int] = []
  for count in range(most + 1):
    equals = [place for place in visited if accepted[place] == count]
    room = min(limit - len(chosen), len(equals))
    chosen += [equals[i * len(equals) // room] for i in range(room)]
  return sorted(chosen)


def requests(
  record: trajectories.Trajectory,
  anchors: Sequence[int],
  completions: int,
  max_prompt: int,
) -> list[collect.Request]:
  """Returns what asks for other continuations of a record's prefixes.

  The token at the anchor is given and stands first in the new completion, so
  that a window begins at it. Its id is that of the record, the anchor and, if
  it is not the first, its number: gsm8k-7@12, gsm8k-7@12#2. Prefixes of more
  than `max_prompt` tokens are left out.
  """
  found = []
  for anchor in anchors:
    prefix = np.concatenate([record.prompt, record.completion[: anchor + 1]])
    for number in range(1, completions + 1):
      name = f'{record.id}@{anchor}' + (f'#{number}' if number > 1 else '')
      if len(prefix) <= max_prompt:
        found.append(
          collect.Request(name, record.prompt_hash, prefix.tolist(), 1)
        )
  return found
