"""Prompts that two files share, whole or in ten words that follow each other.

Also by the hashes of their texts, which stay with what was trained on them.
"""

import base64
from collections.abc import Iterable, Iterator
import re

from specdiff_jax.core import errors
from specdiff_jax.data import prompts as prompts_lib

WORDS = 10
_WORD = re.compile(r'\w+')


class Seen:
  """Prompts that others must not repeat.

  Two overlap if their texts are the same but for whitespace, or share `WORDS`
  words that follow each other, whatever their case and punctuation; shorter
  ones, if all their words are the same.

  >>> seen = Seen([prompts_lib.Prompt('a', 'What is 12 times 7?')])
  >>> seen.like(prompts_lib.Prompt('b', 'what is  12 times 7'))
  'a'
  >>> seen.like(prompts_lib.Prompt('c', 'What is 12 times 8?'))
  """

  def __init__(self, prompts: Iterable[prompts_lib.Prompt]):
    self._by_words: dict[int, str] = {}
    for one in prompts:
      for key in _keys(one):
        self._by_words.setdefault(key, one.id)

  def like(self, prompt: prompts_lib.Prompt) -> str | None:
    """Returns the id of a prompt that this one overlaps, None if none."""
    for key in _keys(prompt):
      if key in self._by_words:
        return self._by_words[key]
    return None


def _keys(prompt: prompts_lib.Prompt) -> Iterator[int]:
  turns = prompt.about.get('turns') or [prompts_lib.said(prompt.text)]
  for text in turns:
    words = _WORD.findall(text.lower())
    for start in range(max(1, len(words) - WORDS + 1)):
      yield hash(tuple(words[start : start + WORDS]))


def packed(hashes: Iterable[str]) -> str:
  """Returns text hashes as one text, for the metadata of a file.

  >>> unpacked(packed({'00ff00ff00ff00ff'}))
  frozenset({'00ff00ff00ff00ff'})
  """
  return base64.b64encode(bytes.fromhex(''.join(sorted(hashes)))).decode()


def unpacked(text: str) -> frozenset[str]:
  """Returns the hashes that `packed` wrote; none if it is something else."""
  try:
    digits = base64.b64decode(text, validate=True).hex()
  except ValueError:
    return frozenset()
  return frozenset(digits[i : i + 16] for i in range(0, len(digits), 16))


def check_disjoint(
  train_hashes: Iterable[str], eval_hashes: Iterable[str]
) -> None:
  """Raises InputError where a prompt is both trained on and evaluated on."""
  shared = sorted(set(train_hashes) & set(eval_hashes))
  if shared:
    shown = ', '.join(shared[:5]) + (', ...' if len(shared) > 5 else '')
    raise errors.InputError(
      f'{len(shared)} evaluation prompts are also training prompts (text '
      f'hashes {shown}). Results on them would not be held out: remove them '
      'from one of the two files, and if they were collected, collect again '
      'in a new work directory.'
    )
