"""From a drafter's token ids to the verifier's, where their tokenizers differ.

Only a drafter with a vocabulary of its own needs this: those that read the
verifier's embedding share its ids.
"""

from collections.abc import Sequence

import numpy as np

from specdiff_jax.core import errors

MASKED = -1  # the verifier has no such token: never drafted, no part of q


def match(
    drafter: Sequence[str | None],
    verifier: Sequence[str | None],
    allowed: float = 0.01,
) -> tuple[np.ndarray, float]:
  """Maps each of the drafter's ids to the verifier's id of the same string.

  Masked ids have to leave q before it is normalised. Of equal strings the
  lowest id stands for all, on both sides.

    match(['a', 'b', 'x'], ['b', 'a'], allowed=0.5)  # [1, 0, -1], 1 / 3

  Args:
    drafter: tokens by id, as the tokenizer spells them; None for no token.
    verifier: the same of the verifier.
    allowed: the fraction of disagreement up to which a drafter is taken.

  Returns:
    [Vd] int32 of the verifier's ids, MASKED where it lacks the token, and the
    fraction of the drafter's tokens that are masked.

  Raises InputError where that fraction is more than `allowed`: the drafts
  would still be safe, but tokens would be missing from most of them.
  """
  known = _first(verifier)
  own = _first(drafter)
  ids = np.full(len(drafter), MASKED, np.int32)
  for text, index in own.items():
    ids[index] = known.get(text, MASKED)
  lost = [
      index
      for index, text in enumerate(drafter)
      if text is not None and ids[index] == MASKED
  ]
  total = sum(text is not None for text in drafter)
  fraction = len(lost) / total if total else 1.0
  if not fraction <= allowed:
    some = ', '.join(f'{drafter[index]!r} (id {index})' for index in lost[:5])
    raise errors.InputError(
        f"The drafter's tokenizer is not the verifier's: {len(lost)} of its "
        f'{total} tokens ({fraction:.1%}; {allowed:.1%} is allowed) have no '
        f'id of their own there, such as {some or "(it has no tokens)"}. Use a '
        "drafter with the verifier's tokenizer, or allow that much."
    )
  return ids, fraction


def _first(texts: Sequence[str | None]) -> dict[str, int]:
  """Returns the lowest id of each string."""
  found = {}
  for index, text in enumerate(texts):
    if text is not None:
      found.setdefault(text, index)
  return found
