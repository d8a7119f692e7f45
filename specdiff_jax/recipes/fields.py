"""The fields that a config may have, together, and how a config gets them all.

Each has its default and its meaning, which `--help` prints. A config that
leaves one out gets the default. A name that stands nowhere is a mistake, and is
reported as one.
"""

import difflib
import math
from typing import Any

import ml_collections

from specdiff_jax.core import errors
from specdiff_jax.recipes import fields_decoding
from specdiff_jax.recipes import fields_training

ALL = (
  fields_decoding.DECODING
  | fields_decoding.BENCH
  | fields_training.TRAINING
  | fields_training.COLLECTING
)

# What the elements of tuples are whose defaults are empty.
ELEMENTS = {
    'stop': str, 'budgets': int, 'eval_prompts': str, 'network.start': int,
    'network.features': int,
}  # fmt: skip
_KINDS = {
  bool: 'True or False',
  int: 'an integer',
  float: 'a number',
  str: 'a text',
}
_EXAMPLES = {int: '(2, 4)', float: '(0.5, 1.0)', str: "('a', 'b')"}


def complete(
  config: ml_collections.ConfigDict, where: str = 'the config'
) -> ml_collections.ConfigDict:
  """Returns the config with every field; raises InputError on unknown ones.

  Example: complete(quickstart.get_config())
  """
  for name in config:
    if name not in ALL:
      raise unknown(f'{where} has the field', name, ALL)
  full = ml_collections.ConfigDict(
    {name: default for name, (default, _) in ALL.items()}
  )
  full = full.copy_and_resolve_references()
  for name, value in config.items():
    _fill(full, name, value, where, name)
  return full


def _fill(
  node: ml_collections.ConfigDict, key: str, value: Any, where: str, name: str
) -> None:
  """Gives a field, or the fields that it has, their values."""
  if not isinstance(node[key], ml_collections.ConfigDict):
    _set(node, key, value, where, name)
    return
  if not isinstance(value, ml_collections.ConfigDict):
    raise errors.InputError(
      f'{where} sets {name!r} to {value!r}, but it has fields of its own: '
      f'{", ".join(node[key])}. Give a ConfigDict of them.'
    )
  for inner, one in value.items():
    if inner not in node[key]:
      raise unknown(f'{where} has the field', f'{name}.{inner}', node[key])
    _fill(node[key], inner, one, where, f'{name}.{inner}')


def _set(
  node: ml_collections.ConfigDict, key: str, value: Any, where: str, name: str
) -> None:
  """Gives a field its value; raises InputError where its kind is another.

  ConfigDict compares types, but not those of the elements of tuples; it takes
  True for 1, integers that no machine counts in, and NaN.
  """
  default = node[key]
  kind = type(default)
  if kind is tuple:
    kind = type(default[0]) if default else ELEMENTS[name]
    if not isinstance(value, (tuple, list)) or any(
      _fault(one, kind) for one in value
    ):
      raise errors.InputError(
        f'{where} sets {name!r} to {value!r}, but it has to be a tuple, each '
        f'element {_KINDS[kind]}, such as {_EXAMPLES[kind]}.'
      )
  elif fault := _fault(value, kind):
    raise errors.InputError(
      f'{where} sets {name!r} to {value!r}, but it has to be '
      f'{_KINDS[kind]}{fault}, like its default {default!r}.'
    )
  node[key] = value


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


def unknown(where: str, name: str, known) -> errors.InputError:
  """Returns the error for a name that is none of the `known` ones."""
  near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
  guess = (
    f'Did you mean {" or ".join(near)}?'
    if near
    else f'There are: {", ".join(sorted(known))}.'
  )
  return errors.InputError(f'{where} {name!r}, which does not exist. {guess}')
