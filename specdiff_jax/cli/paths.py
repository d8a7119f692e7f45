"""Paths of command lines and recipes: `~` is expanded, addresses are refused.

The one place that does, for every program: whatever opens a path later may take
it as it is. Relative paths of a command line are relative to the working
directory; those of a recipe are looked for in several places, see `in_recipe`.
"""

from collections.abc import Callable, Iterator, Mapping
import os
import pathlib
import re
from typing import Any

from absl import flags

from specdiff_jax.core import errors
from specdiff_jax.recipes import recipe as recipe_lib

# Flags that are paths, or may be; of fields their `About` says so.
FLAGS = (
    'workdir', 'out', 'prompts', 'from', 'to', 'refresh', 'adapter', 'plot',
    'verifier', 'against', 'head', 'figures', 'path',
)  # fmt: skip
# The recipes that come with the package, a link to the repository's configs/.
CONFIGS = pathlib.Path(__file__).parent.parent.joinpath('configs').resolve()
_NAMES = ('quickstart', 'random')  # of models, before any file of that name
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
  for node, name, field in _fields(values):
    node[name] = _changed(node[name], expand, f'config.{field}')


def in_recipe(values: dict[str, Any], folder: str) -> None:
  """Finds the relative paths among the values that a recipe in `folder` gives.

  One that is there beside the recipe is that, else the one in the working
  directory, else the one in the package's configs/. What is nowhere stays as it
  is: it may be a name (on the hub, in the zoo), or be written later.
  """
  for node, name, _ in _fields(values):
    node[name] = _changed(node[name], _found, folder)


def unfound(values: dict[str, Any], text: str) -> list[str]:
  """Returns the relative paths among values that are not there, of a text."""
  found: list[str] = []
  for node, name, _ in _fields(values):
    _changed(node[name], lambda path, _: found.append(path) or path, '')
  return [
    path
    for path in found
    if not os.path.isabs(path) and not os.path.exists(path)
    if ('/' in path or '.' in path) and path in text
  ]


def _fields(values: dict[str, Any]) -> Iterator[tuple[Any, str, str]]:
  """Yields where each path is among values: its dict, its name, the field."""
  for field, _, about in recipe_lib.leaves(recipe_lib.GROUPS):
    *outer, last = field.split('.')
    node: Any = values
    for name in outer:
      node = node.get(name) if isinstance(node, Mapping) else None
    if about.path and isinstance(node, Mapping) and last in node:
      yield node, last, field


def _changed(value: Any, change: Callable[[str, str], str], more: str) -> Any:
  """Returns a field's value with each of its paths changed."""
  if isinstance(value, str):  # config.data may be several, with commas between
    return ','.join(change(path, more) for path in value.split(','))
  if isinstance(value, (tuple, list)):
    return tuple(_changed(part, change, more) for part in value)
  return value  # of another kind, which is refused later


def _found(path: str, folder: str) -> str:
  if not path or path in _NAMES or os.path.isabs(os.path.expanduser(path)):
    return path
  for place in (folder, '', CONFIGS):
    there = os.path.normpath(os.path.join(place, path))
    if os.path.exists(there):
      same = os.path.abspath(there) == os.path.abspath(path)
      return path if same else there  # as written: it may decide a run
  return path
