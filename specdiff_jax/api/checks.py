"""Kinds of arguments that are no fields of a recipe, which checks its own."""

from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing


def wrong(name: str, value: Any, wanted: str) -> errors.InputError:
  """Returns the error for an argument that is not what is wanted."""
  return errors.InputError(
    f'{name} is {printing.short(value)} of type {type(value).__name__}, but it '
    f'has to be {wanted}.'
  )


def flags(**values: Any) -> None:
  """Raises InputError, which names the argument, where one is no bool."""
  for name, value in values.items():
    if not isinstance(value, bool):
      raise wrong(name, value, 'True or False')
