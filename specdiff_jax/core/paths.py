"""Paths that people hand over: `~` is expanded, addresses are refused.

Programs and the library do so before anything else, so that whatever opens a
path later may take it as it is.
"""

from collections.abc import Callable, Mapping
import os
import re
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing

_ADDRESS = re.compile('[a-zA-Z][a-zA-Z0-9+.-]+:/')


def expand(path: str, where: str) -> str:
  """Returns a path with `~` or `~user` at its beginning expanded.

  Raises InputError for an address, such as gs://bucket, and for a path that no
  file can have.

  Example: expand('~/runs', '--workdir')
  """
  if _ADDRESS.match(path):
    raise errors.InputError(
      f'{where} is {path!r}, but files are read and written on disks that '
      'are mounted here, not at addresses: mount it (as with gcsfuse), or '
      'give a directory here and copy from or to it.'
    )
  if '\0' in path:
    raise errors.InputError(f'{where} is {path!r}, which holds a zero byte.')
  return os.path.expanduser(path)


def given(value: Any, name: str) -> str:
  """Returns the path that an argument is, expanded; InputError if it is none.

  Example: given(pathlib.Path('~/runs'), 'workdir')
  """
  path = os.fspath(value) if isinstance(value, os.PathLike) else value
  if not isinstance(path, str):
    raise errors.InputError(
      f'{name} is {printing.short(value)} of type {type(value).__name__}, but '
      'it has to be a path.'
    )
  return expand(path, name)


def each(value: Any, change: Callable[[str], str]) -> Any:
  """Returns a value with each path in it changed; what is none stays.

  >>> each({'a': 'x,y', 'b': ['z'], 'c': 3}, str.upper)
  {'a': 'X,Y', 'b': ('Z',), 'c': 3}
  """
  if isinstance(value, os.PathLike):
    value = os.fspath(value)
  if isinstance(value, str):  # config.data may be several, with commas between
    return ','.join(map(change, value.split(',')))
  if isinstance(value, Mapping):
    return {name: each(one, change) for name, one in value.items()}
  if isinstance(value, (tuple, list)):
    return tuple(each(one, change) for one in value)
  return value
