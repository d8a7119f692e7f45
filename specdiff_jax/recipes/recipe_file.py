"""Recipes on disk: found by name or path, run, and their own paths found.

The relative paths of a recipe are looked for in several places, see `_placed`.
`fields` expands what fields hold.
"""

from collections.abc import Iterator, Mapping, Sequence
import difflib
import importlib.util
import inspect
import os
import pathlib
from typing import Any

import ml_collections

from specdiff_jax.core import errors
from specdiff_jax.core import paths as paths_lib
from specdiff_jax.core import printing
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib

# The recipes that come with the package, a link to the repository's configs/.
CONFIGS = pathlib.Path(__file__).parent.parent.joinpath('configs').resolve()
_NAMES = ('quickstart', 'random')  # of models, before any file of that name


def load_config(spec: str | os.PathLike[str]) -> ml_collections.ConfigDict:
  """Returns the fields that `FILE[:VARIANT]` or `NAME[:VARIANT]` sets.

  For recipes that change another one. NAME is one that comes with the package.
  Raises InputError where there is no such recipe, or it does not run.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.load_config('ablations/losses_smollm2:gpu').network.layers
    4
  """
  return ml_collections.ConfigDict(_values(paths_lib.given(spec, 'spec')))


def load_recipe(
  spec: str | os.PathLike[str], **values: Any
) -> recipe_lib.Recipe:
  """Returns the recipe of `FILE[:VARIANT]` or a name, with other `values`.

  Raises InputError where there is no such file, it does not run, or it or
  `values` have a field that does not exist, or a value of another kind.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.load_recipe('configs/tiny.py', gamma=2).training.gamma
    2
  """
  found = complete(paths_lib.given(spec, 'spec'))
  with fields.arguments():
    return fields.typed(fields.merged(found, values), 'load_recipe')


def complete(spec: str) -> dict[str, Any]:
  """Returns the values that a recipe gives, and the defaults of the others."""
  return fields.complete(_values(spec), _find(spec)[0])


def explained(
  error: errors.InputError,
  spec: str,
  values: dict[str, Any],
  argv: Sequence[str],
) -> errors.InputError:
  """Returns an error that says where a missing path of the recipe was sought.

  `values` are of the recipe with the command line `argv`, whose own paths are
  relative to the working directory.
  """
  for path in _unfound(values, str(error)):
    if not any(path in arg for arg in argv):
      file = os.path.abspath(_find(spec)[0])
      return errors.InputError(
        f'{error} The recipe {file} gives {path!r}, which is neither in its '
        f'folder, nor in the working directory ({os.getcwd()}), nor in '
        f'{CONFIGS}.'
      )
  return error


def _values(spec: str) -> dict[str, Any]:
  """Returns the values that a recipe gives, with its paths found."""
  path, variant = _find(spec)
  function = getattr(_module(path), 'get_config', None)
  if not callable(function):
    raise errors.InputError(
      f'{path} has no function get_config() that returns a ConfigDict; add '
      'one, or give another file by --config.'
    )
  if variant is not None and not inspect.signature(function).parameters:
    raise errors.InputError(
      f'{path} knows no variants, but was given {variant!r}: leave '
      f'":{variant}" out.'
    )
  try:
    config = function() if variant is None else function(variant)
  except errors.InputError:
    raise
  except Exception as error:
    raise errors.InputError(
      f'get_config() of {path} fails: {_short(error)}.'
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.InputError(
      f'get_config() of {path} returns a {type(config).__name__}; it must '
      'return an ml_collections.ConfigDict.'
    )
  values = config.to_dict()
  _placed(values, os.path.dirname(path))
  return values


def _find(spec: str) -> tuple[str, str | None]:
  """Returns the file of a recipe, and the variant if one is given."""
  name, colon, variant = spec.partition(':')
  path = paths_lib.expand(name, '--config')
  shipped = _shipped()
  if not os.path.isfile(path):  # False, too, where it cannot be looked at
    if name not in shipped:
      raise _missing(path, shipped)
    path = str(CONFIGS / f'{name}.py')
  return path, variant if colon else None


def _shipped() -> list[str]:
  """Returns the names of the recipes that come with the package."""
  return sorted(
    file.relative_to(CONFIGS).with_suffix('').as_posix()
    for file in CONFIGS.rglob('*.py')
  )


def _missing(path: str, shipped: list[str]) -> errors.InputError:
  """Returns the error for a recipe that is not there, with near ones."""
  try:
    beside = sorted(map(str, pathlib.Path(path).parent.glob('*.py')))
  except OSError:
    beside = []
  there = {name: pathlib.PurePath(name).stem for name in (*shipped, *beside)}
  stem = pathlib.PurePath(path).stem
  near = difflib.get_close_matches(stem, there.values(), n=3)
  guess = ' or '.join(name for name in there if there[name] in near)
  return errors.InputError(
    f'The config file {path!r} does not exist. '
    + (f'Did you mean {guess}?' if guess else f'There are: {", ".join(there)}.')
  )


def _module(path: str):
  """Runs a recipe's file."""
  source = importlib.util.spec_from_file_location('specdiff_config', path)
  if source is None or source.loader is None:
    raise errors.InputError(
      f'The config file {path!r} is not a Python file (*.py).'
    )
  module = importlib.util.module_from_spec(source)
  try:
    source.loader.exec_module(module)
  except errors.InputError:
    raise
  except Exception as error:
    raise errors.InputError(
      f'The config file {path} cannot be run: {_short(error)}.'
    ) from error
  return module


def _placed(values: dict[str, Any], folder: str) -> None:
  """Finds the relative paths among the values that a recipe in `folder` gives.

  One that is there beside the recipe is that, else the one in the working
  directory, else the one in the package's configs/. What is nowhere stays as it
  is: it may be a name (on the hub, in the zoo), or be written later.
  """
  for node, name in _fields(values):
    node[name] = paths_lib.each(node[name], lambda path: _found(path, folder))


def _unfound(values: dict[str, Any], text: str) -> list[str]:
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


def _short(error: Exception) -> str:
  return f'{type(error).__name__}: {printing.error(error)}'
