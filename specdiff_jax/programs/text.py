"""From tokens to text: stop strings, and text that grows while it is made."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


def cut(
    decode: Decode, tokens: Sequence[int], stop: Sequence[str]
) -> tuple[str, list[int]]:
  """Returns the text before the first stop string, and the tokens so far.

  The tokens run up to and with the one that completes the stop string; all of
  them if there is none.

    cut(tokenizer.decode, tokens, ['\\n\\n'])
  """
  tokens = [int(token) for token in tokens]
  text = decode(tokens)
  end = find(text, stop)
  if end < 0:
    return text, tokens
  low, high = 1, len(tokens)  # the shortest prefix that has a stop string
  while low < high:
    middle = (low + high) // 2
    if find(decode(tokens[:middle]), stop) >= 0:
      high = middle
    else:
      low = middle + 1
  return text[:end], tokens[:low]


def find(text: str, stop: Sequence[str]) -> int:
  """Returns where the first stop string begins, or -1."""
  places = [text.find(s) for s in stop if s]
  return min((place for place in places if place >= 0), default=-1)


def watch(
    decode: Decode, stop: Sequence[str]
) -> Callable[[int, Sequence[int]], bool] | None:
  """Returns an `on_tokens` that ends a row at a stop string; None without."""
  if not any(stop):
    return None
  return lambda number, tokens: find(decode(tokens), stop) >= 0


class Stream:
  """Text that grows: gives out each piece once it can no longer change.

  A piece is held back while it ends inside a character or may be the
  beginning of a stop string.
  """

  def __init__(self, decode: Decode, stop: Sequence[str] = ()):
    self._decode = decode
    self._stop = [s for s in stop if s]
    self._text = ''
    self._given = 0
    self.stopped = False  # a stop string came

  def show(self, tokens: Sequence[int]) -> str:
    """Takes all tokens so far; returns the next piece of settled text."""
    self._text = self._decode(tokens)
    text = self._text.rstrip('\ufffd')
    return self._give(text, self._held(text))

  def finish(self) -> str:
    """Returns what was held back; call it when no more tokens come."""
    return self._give(self._text, 0)

  def _give(self, text: str, held: int) -> str:
    if self.stopped:
      return ''
    end = find(text, self._stop)
    self.stopped = end >= 0
    end = end if self.stopped else len(text) - held
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
