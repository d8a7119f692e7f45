"""Paths of command lines and recipes: `~` is expanded, addresses are refused.

The one place that does, for every program: whatever opens a path later may take
it as it is.
"""

import os
import re
from typing import Any

from absl import flags

from specdiff_jax.core import errors
from specdiff_jax.recipes import recipe as recipe_lib

# Flags that are paths, or may be; of fields their `About` says so.
FLAGS = (
    'workdir', 'out', 'prompts', 'from', 'to', 'refresh', 'adapter', 'plot',
)  # fmt: skip
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


def in_flags(options: flags.FlagValues) -> None:
  """Expands the paths among a subcommand's own flags."""
  for name in FLAGS:
    if name in options and isinstance(value := options[name].value, str):
      options[name].value = expand(value, f'--{name}')


def in_config(values: dict[str, Any]) -> None:
  """Expands the paths among the complete values of a config."""
  for field, _, about in recipe_lib.leaves(recipe_lib.GROUPS):
    *outer, last = field.split('.')
    node = values
    for name in outer:
      node = node[name]
    if about.path:
      node[last] = _expanded(node[last], f'config.{field}')


def _expanded(value: Any, where: str) -> Any:
  """Returns a field's value with its paths expanded."""
  if isinstance(value, str):  # config.data may be several, with commas between
    return ','.join(expand(part, where) for part in value.split(','))
  return tuple(_expanded(part, where) for part in value)
