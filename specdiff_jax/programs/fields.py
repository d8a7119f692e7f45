"""The fields that a config may have, together, and how a config gets them all.

Each has its default and its meaning, which `--help` prints. A config that
leaves one out gets the default. A name that stands nowhere is a mistake, and is
reported as one.
"""

import difflib

import ml_collections

from specdiff_jax.core import errors
from specdiff_jax.programs import fields_decoding
from specdiff_jax.programs import fields_training

ALL = (
    fields_decoding.DECODING
    | fields_decoding.BENCH
    | fields_training.TRAINING
    | fields_training.COLLECTING
)


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
    try:
      if isinstance(value, ml_collections.ConfigDict):
        _fill(full[name], value, f'{where} has the field', name)
      else:
        full[name] = value
    except TypeError:
      raise errors.InputError(
          f'{where} sets {name!r} to {value!r}, but it has to be of type '
          f'{type(full[name]).__name__}, like its default {full[name]!r}.'
      ) from None
  return full


def _fill(full, values, where: str, prefix: str) -> None:
  """Overwrites the fields of a nested config."""
  for name, value in values.items():
    if name not in full:
      raise unknown(where, f'{prefix}.{name}', full)
    full[name] = value


def unknown(where: str, name: str, known) -> errors.InputError:
  """Returns the error for a name that is none of the `known` ones."""
  near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
  guess = (
      f'Did you mean {" or ".join(near)}?'
      if near
      else f'There are: {", ".join(sorted(known))}.'
  )
  return errors.InputError(f'{where} {name!r}, which does not exist. {guess}')
