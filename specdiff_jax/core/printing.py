"""Foreign text made fit for a terminal."""

from collections.abc import Iterable
import itertools
import re
import reprlib

# C0 and C1 controls, line and paragraph separators, and what turns the
# direction of text: with these a name could forge a line of ours.
_UNSAFE = re.compile(
  '[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12
_KEPT = '\n\t'  # of running text


def one_line(text: object) -> str:
  r"""Returns text in which nothing moves the cursor, as backslash escapes.

  >>> one_line('a\x1b[2Jb\nc')
  'a\\x1b[2Jb\\nc'
  """
  return _UNSAFE.sub(_escape, str(text))


def short(value: object) -> str:
  """Returns the repr of a value, cut: a file may hold megabytes of one."""
  return _SHORT.repr(value)


def error(one: BaseException, most: int = 300) -> str:
  """Returns an error's message on one line, cut; its type's name if none.

  >>> error(ValueError('no\\n  such file.')), error(KeyError())
  ('no such file', 'KeyError')
  """
  text = ' '.join(str(one).split()).rstrip('.')
  return (text or type(one).__name__)[:most]


def names(values: Iterable[object]) -> str:
  """Returns foreign names in a row, each and all of them cut."""
  shown = [str(value)[:80] for value in itertools.islice(values, 9)]
  return ', '.join(shown[:8]) + (', ...' if len(shown) > 8 else '')


def lines(text: str) -> str:
  """Returns running text made safe like `one_line`; newlines and tabs stay."""
  return _UNSAFE.sub(
    lambda match: match[0] if match[0] in _KEPT else _escape(match), text
  )


def size(count: float) -> str:
  """Returns bytes as they are read: '18.2 GiB'."""
  for unit in ('bytes', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.4g} {unit}'
    count /= 1024
  return f'{count:.4g} GiB'


def _escape(match: re.Match[str]) -> str:
  return match[0].encode('unicode_escape').decode()
