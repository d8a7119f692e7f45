"""Trouble with a disk, told apart from other errors and told in few words."""

from collections.abc import Callable
import re
from typing import Any

from specdiff_jax.core import errors

_LATE = 'DEADLINE_EXCEEDED'  # what jax says where a process does not come


def tell(action: Callable[[], Any]) -> None:
  """Calls it; trouble with the disk becomes an InputError."""
  try:
    action()
  except Exception as error:
    trouble, cause = None, error
    while cause:
      trouble = cause if _is_disk_trouble(cause) else trouble
      cause = cause.__cause__ or cause.__context__
    if trouble is None:
      raise
    said = brief(trouble)
    if _LATE in said:
      said = 'another process did not write its part'
    raise errors.InputError(said) from error


def _is_disk_trouble(error: BaseException) -> bool:
  """Whether it is the system's error; tensorstore wraps those as text.

  Or that of a process which waited in vain for another one's part.
  """
  return isinstance(error, OSError) or bool(
      re.search(rf'os_error_code|OS error|{_LATE}', str(error))
  )


def brief(error: BaseException) -> str:
  """Returns what it says in a line of at most 400 characters."""
  text = ' '.join(str(error).split())
  return text if len(text) <= 400 else f'{text[:200]} ... {text[-200:]}'
