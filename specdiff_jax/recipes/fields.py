"""From the values of a config to a recipe, and from its errors to a config's.

A config that leaves a field out gets its default. A name that stands nowhere is
a mistake, and so is a value of another kind; both are reported.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import dataclasses
import difflib
import json
import math
import re
from typing import Any

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import paths
from specdiff_jax.core import printing
from specdiff_jax.recipes import recipe as recipe_lib

ALL = recipe_lib.FIELDS
_LEAVES = {name for name, *_ in recipe_lib.leaves(recipe_lib.GROUPS)}
_KINDS = {
  bool: 'True or False',
  int: 'an integer',
  float: 'a number',
  str: 'a text',
}
_VERBS = ('is ', 'has ', 'asks ')  # what errors say of an argument
# A field as errors speak of it, not a file: `config.json`, `a/config.data`.
_FIELD = re.compile(
  r"""(?<![\w./'"-])(?:--)?config\.(\w+(?:\.\w+)*)(?![\w/:-]|\.\w)"""
)
_EXAMPLES = {int: '(2, 4)', float: '(0.5, 1.0)', str: "('a', 'b')"}


def typed(
  values: Mapping[str, Any], where: str = 'the config'
) -> recipe_lib.Recipe:
  """Returns the recipe of a config's values; raises InputError, see `complete`.

  Example: typed(quickstart.get_config().to_dict())
  """
  return recipe_lib.of(complete(values, where))


def complete(
  values: Mapping[str, Any], where: str = 'the config'
) -> dict[str, Any]:
  """Returns the value of every field, or its default.

  In paths `~` is expanded.

  Raises:
    InputError: a name stands nowhere, a value is of another kind, or a path is
      an address.
  """
  return _complete(values, ALL, where, '')


def merged(
  values: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns values with others in their place, also within nested fields.

  >>> merged({'a': 1, 'b': {'c': 2, 'd': 3}}, {'b': {'c': 4}})
  {'a': 1, 'b': {'c': 4, 'd': 3}}
  """
  found = {**values, **changes}
  for name, value in changes.items():
    node = values.get(name)
    if isinstance(node, Mapping) and isinstance(value, Mapping):
      found[name] = merged(node, value)
  return found


def _complete(values, fields, where: str, outer: str) -> dict[str, Any]:
  for name in values:
    if name not in fields:
      raise unknown(f'{where} has the field', f'{outer}{name}', fields)
  full = {}
  for name, one in fields.items():
    if dataclasses.is_dataclass(one.default):
      inner = {x.name: x for x in dataclasses.fields(one.default)}
      value = values.get(name, {})
      if not isinstance(value, Mapping):
        raise errors.InputError(
          f'{where} sets {name!r} to {value!r}, but it has fields of its own: '
          f'{", ".join(inner)}. Give a ConfigDict of them.'
        )
      full[name] = _complete(value, inner, where, f'{outer}{name}.')
    elif name in values:
      full[name] = _kind(one, values[name], where, f'{outer}{name}')
    else:
      full[name] = one.default
  return full


def _kind(
  one: dataclasses.Field[Any], value: Any, where: str, name: str
) -> Any:
  """Returns a value of the field's kind; raises InputError on another one.

  Python would take True for 1, integers that no machine counts in, and NaN.
  """
  default: Any = one.default
  kind: Any = type(default)
  if isinstance(value, np.generic):
    value = value.item()
  if one.metadata['about'].path:
    value = paths.each(value, lambda x: paths.expand(x, f'config.{name}'))
  if kind is tuple:
    kind = one.metadata['about'].element or type(default[0])
    if not isinstance(value, (tuple, list)) or any(
      _fault(x, kind) for x in value
    ):
      raise errors.InputError(
        f'{where} sets {name!r} to {value!r}, but it has to be a tuple, each '
        f'element {_KINDS[kind]}, such as {_EXAMPLES[kind]}.'
      )
    return tuple(value)
  if one.metadata['about'].json:
    return _json(value, where, name)
  if fault := _fault(value, kind):
    raise errors.InputError(
      f'{where} sets {name!r} to {value!r}, but it has to be '
      f'{_KINDS[kind]}{fault}, like its default {default!r}.'
    )
  return kind(value)


def _json(value: Any, where: str, name: str) -> str:
  """Returns a JSON object, given as one or as a text, as a text."""
  try:
    found = files.parse_json(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
      raise ValueError(f'not of type {type(found).__name__}')
    return json.dumps(found)
  except (TypeError, ValueError) as error:
    raise errors.InputError(
      f'{where} sets {name!r} to {printing.short(value)}, but it has to be a '
      f'JSON object, such as {{"enable_thinking": false}} ({error}).'
    ) from error


def _fault(value: Any, kind: type) -> str | None:
  """Returns what else a value had to be; None if it is of the kind."""
  if kind is float and type(value) is int:
    kind = int
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    return f', not of type {type(value).__name__}'
  if kind is int and not -(2**31) <= value < 2**32:
    return ' of 32 bits'
  if kind is float and not math.isfinite(value):
    return ' that is finite'
  return None


def unknown(where: str, name: str, names: Collection[str]) -> errors.InputError:
  """Returns the error for a name that is none of `names`."""
  near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
  guess = (
    f'Did you mean {" or ".join(near)}?'
    if near
    else f'There are: {", ".join(sorted(names))}.'
  )
  return errors.InputError(f'{where} {name!r}, which does not exist. {guess}')


@contextlib.contextmanager
def rim(names: Collection[str] = tuple(ALL), node: str = '') -> Iterator[None]:
  """Makes arguments that errors begin with fields: gamma is config.gamma.

  Args:
    names: arguments that are fields.
    node: the node of a config that they are in, such as 'network.'.
  """
  try:
    yield
  except errors.InputError as error:
    name, _, rest = str(error).partition(' ')
    if name.partition('.')[0] not in names or not rest.startswith(_VERBS):
      raise
    raise errors.InputError(f'config.{node}{error}') from error


@contextlib.contextmanager
def arguments() -> Iterator[None]:
  """Makes fields that errors speak of arguments: config.gamma is gamma."""
  try:
    yield
  except errors.InputError as error:
    raise errors.InputError(_FIELD.sub(_argument, str(error))) from error


def _argument(match: re.Match[str]) -> str:
  return match[1] if match[1] in _LEAVES or match[1] in ALL else match[0]
