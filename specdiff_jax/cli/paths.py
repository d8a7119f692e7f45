"""Paths of command lines and recipes: which they are, and where they lie.

Relative paths of a command line are relative to the working directory; those of
a recipe are looked for in several places, see `in_recipe`. `recipes.fields`
expands what fields hold.
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any

from absl import flags

from specdiff_jax.core import paths as paths_lib
from specdiff_jax.recipes import recipe as recipe_lib

# Flags that are paths, or may be; of fields their `About` says so.
FLAGS = (
    'workdir', 'out', 'prompts', 'from', 'to', 'refresh', 'adapter', 'plot',
    'verifier', 'against', 'head', 'figures', 'path',
)  # fmt: skip
# The recipes that come with the package, a link to the repository's configs/.
CONFIGS = pathlib.Path(__file__).parent.parent.joinpath('configs').resolve()
_NAMES = ('quickstart', 'random')  # of models, before any file of that name


def in_flags(options: flags.FlagValues) -> None:
  """Expands the paths among a subcommand's own flags."""
  for name in FLAGS:
    if name in options and isinstance(value := options[name].value, str):
      options[name].value = paths_lib.expand(value, f'--{name}')


def in_recipe(values: dict[str, Any], folder: str) -> None:
  """Finds the relative paths among the values that a recipe in `folder` gives.

  One that is there beside the recipe is that, else the one in the working
  directory, else the one in the package's configs/. What is nowhere stays as it
  is: it may be a name (on the hub, in the zoo), or be written later.
  """
  for node, name in _fields(values):
    node[name] = paths_lib.each(node[name], lambda path: _found(path, folder))


def unfound(values: dict[str, Any], text: str) -> list[str]:
  """Returns the relative paths among values that are not there, of a text."""
  found: list[str] = []
  for node, name in _fields(values):
    paths_lib.each(node[name], lambda path: found.append(path) or path)
  return [
    path
    for path in found
    if not os.path.isabs(path) and not os.path.exists(path)
    if ('/' in path or '.' in path) and path in text
  ]


def _fields(values: dict[str, Any]) -> Iterator[tuple[Any, str]]:
  """Yields where each path is among values: its dict and its name there."""
  for field, _, about in recipe_lib.leaves(recipe_lib.GROUPS):
    *outer, last = field.split('.')
    node: Any = values
    for name in outer:
      node = node.get(name) if isinstance(node, Mapping) else None
    if about.path and isinstance(node, Mapping) and last in node:
      yield node, last


def _found(path: str, folder: str) -> str:
  if not path or path in _NAMES or os.path.isabs(os.path.expanduser(path)):
    return path
  for place in (folder, '', CONFIGS):
    there = os.path.normpath(os.path.join(place, path))
    if os.path.exists(there):
      same = os.path.abspath(there) == os.path.abspath(path)
      return path if same else there  # as written: it may decide a run
  return path
