"""From a drafter's token ids to the verifier's, where their tokenizers differ.

Only a drafter with a vocabulary of its own needs this: those that read the
verifier's embedding share its ids.
"""

from collections.abc import Mapping, Sequence
import os
import re

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_roles
from specdiff_jax.text import tokenizer_settings

MASKED = -1  # the verifier has no such token: never drafted, no part of q
_BYTE_NAME = re.compile('<0x([89A-F][0-9A-F])>')  # those that are not ASCII


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
    verifier: tokens of the verifier by id, likewise.
    allowed: fraction of disagreement up to which a drafter is taken.

  Returns:
    [Vd] int32 of the verifier's ids, MASKED where it lacks the token, and the
    fraction of the drafter's tokens that are masked.

  Raises InputError where that fraction is more than `allowed`: the drafts
  would still be safe, but tokens would be missing from most of them.
  """
  targets = _first(verifier)
  ids = np.full(len(drafter), MASKED, np.int32)
  for text, index in _first(drafter).items():
    ids[index] = targets.get(text, MASKED)
  lost = [
    index
    for index, text in enumerate(drafter)
    if text is not None and ids[index] == MASKED
  ]
  total = sum(text is not None for text in drafter)
  fraction = len(lost) / total if total else 1.0
  if not fraction <= allowed:
    shown = ', '.join(f'{drafter[index]!r} (id {index})' for index in lost[:5])
    raise errors.InputError(
      f"The drafter's tokenizer is not the verifier's: {len(lost)} of its "
      f'{total} tokens ({fraction:.1%}; {allowed:.1%} is allowed) have no '
      f'id of their own there, such as {shown or "(it has no tokens)"}. Use a '
      "drafter with the verifier's tokenizer, or allow that much."
    )
  return ids, fraction


def spelled(tokens: Mapping[str, int]) -> list[str | None]:
  """Returns a vocabulary's tokens by id, spelled alike in all vocabularies.

  A character stands for a byte. Byte-level vocabularies have letters for bytes
  ('Ġthe'), SentencePiece's a sign for the space and names for bytes ('▁the',
  '<0xE2>'); both become ' the'. Names of ASCII bytes stay as they are: the
  character has a token of its own.
  """
  letters = {x: i for i, x in enumerate(tokenizer_bpe.byte_letters())}
  by_letters = 'Ġ' in tokens

  def one(text):
    if by_letters and all(x in letters for x in text):
      return ''.join(chr(letters[x]) for x in text)
    name = _BYTE_NAME.fullmatch(text)
    if name and not by_letters:
      return chr(int(name[1], 16))
    text = text if by_letters else text.replace('▁', ' ')
    return text.encode('utf-8', 'surrogatepass').decode('latin-1')

  size = 1 + max(tokens.values(), default=-1)
  texts: list[str | None] = [None] * size
  for text, index in tokens.items():
    texts[index] = one(text)
  return texts


def tokens_in(folder: str) -> dict[str, int]:
  """Returns the vocabulary in a directory.

  Some drafters (Dream, DiffuCoder) come with vocab.json and code of their own
  instead of a tokenizer.json: that is enough to know their tokens.
  """
  vocab = os.path.join(folder, 'vocab.json')
  whole = os.path.join(folder, 'tokenizer.json')
  if os.path.exists(whole) or not os.path.exists(vocab):
    return tokenizer_lib.Tokenizer.from_directory(folder).tokens()
  tokens = files.read_json(vocab) | tokenizer_roles.added_tokens(folder)
  tokenizer_settings.check_ids(folder, tokens)
  return tokens


def mask_id(tokens: Mapping[str, int]) -> int | None:
  """Returns the id of the mask token of a vocabulary, if it has one."""
  found = [tokens[text] for text in tokenizer_lib.MASKS if text in tokens]
  return min(found, default=None)


def _first(texts: Sequence[str | None]) -> dict[str, int]:
  """Returns the lowest id of each string."""
  found = {}
  for index, text in enumerate(texts):
    if text is not None:
      found.setdefault(text, index)
  return found
