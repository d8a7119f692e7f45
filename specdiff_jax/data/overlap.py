"""Prompts that two files share, whole or in ten words that follow each other."""

from collections.abc import Iterable, Iterator
import re

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
