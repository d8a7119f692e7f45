"""From tokens to text: stop strings, and text that grows while it is made.

A text ends at the stop string that is completed first, and of several that are
completed by one character at the one that begins first. Completed means: in
text that no later token changes (`Tokenizer.settled`); and in all of it once
no token follows. So a completion is a function of its tokens alone, whenever
the host looks at them and whatever drafted them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Ids = Sequence[int] | np.ndarray
Decode = Callable[[Any], str]  # of Ids


def cut(
  decode: Decode, tokens: Ids, stop: Sequence[str], settled: Decode
) -> tuple[str, list[int]]:
  """Returns the text before the first stop string, and the tokens so far.

  The tokens run up to and with the one that completes the stop string; all of
  them if there is none.

  Args:
    decode: function from all tokens of a completion to its text.
    tokens: tokens of a completion that is over, or was watched (`watch`).
    stop: stop strings.
    settled: function from tokens to the beginning of their text that no later
      token changes.

    cut(tokenizer.decode, tokens, ['\\n\\n'], tokenizer.settled)
  """
  tokens = [int(token) for token in tokens]
  text = decode(tokens)
  found = find(text, stop)
  if found is None:
    return text, tokens
  begin, end = found
  low, high = 1, len(tokens)  # the fewest whose settled text has the stop
  while low < high:
    middle = (low + high) // 2
    if len(settled(tokens[:middle])) >= end:
      high = middle
    else:
      low = middle + 1
  return text[:begin], tokens[:low]


def find(text: str, stop: Sequence[str]) -> tuple[int, int] | None:
  """Returns (begin, end) of the stop string that ends first, or None.

  Of several that end there it is the one that begins first.
  """
  places = [(text.find(s), len(s)) for s in stop if s]
  found = [(begin + size, begin) for begin, size in places if begin >= 0]
  end, begin = min(found, default=(0, 0))
  return (begin, end) if found else None


def watch(
  stop: Sequence[str], settled: Decode
) -> Callable[[int, np.ndarray], bool] | None:
  """Returns an `on_tokens` that ends a request at a stop string, if any."""
  if not any(stop):
    return None
  return lambda number, tokens: find(settled(tokens), stop) is not None


class Stream:
  """Text that grows: gives out each piece once it can no longer change.

  A piece is held back while a later token may change it, or while it may be
  the beginning of a stop string. All pieces together are the text of `cut`.
  """

  def __init__(self, decode: Decode, stop: Sequence[str], settled: Decode):
    self._decode = decode
    self._settled = settled
    self._stop = [s for s in stop if s]
    self._tokens: Ids = ()
    self._given = 0
    self.stopped = False  # a stop string came

  def show(self, tokens: Ids) -> str:
    """Takes all tokens so far; returns the next piece of settled text."""
    self._tokens = tokens
    text = self._settled(tokens)
    return self._give(text, self._held(text))

  def finish(self) -> str:
    """Returns what was held back; call it when no more tokens come."""
    return self._give(self._decode(self._tokens), 0)

  def _give(self, text: str, held: int) -> str:
    if self.stopped:
      return ''
    found = find(text, self._stop)
    self.stopped = found is not None
    end = found[0] if found else len(text) - held
    piece = text[self._given : end]
    self._given = max(self._given, end)
    return piece

  def _held(self, text: str) -> int:
    """Returns the length of the longest end of `text` that begins a stop."""
    sizes = (
      size
      for s in self._stop
      for size in range(min(len(s) - 1, len(text)), 0, -1)
      if text.endswith(s[:size])
    )
    return max(sizes, default=0)
