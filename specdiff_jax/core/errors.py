"""The one exception that a user is meant to read."""

from collections.abc import Iterator
import contextlib


class InputError(ValueError):
  """Bad input: what was wrong, where (file, key, shape), and what to do.

  `__main__` prints the message without a traceback and exits with code 2;
  anything else that escapes is a bug of ours and keeps its traceback.

  Example:
    >>> import specdiff_jax as sd
    >>> issubclass(sd.InputError, ValueError)
    True
  """


@contextlib.contextmanager
def naming(file: str) -> Iterator[None]:
  """Puts a file before the text of an InputError that does not name it."""
  try:
    yield
  except InputError as e:
    if str(e).startswith(file):
      raise
    raise InputError(f'{file}: {e}') from e
