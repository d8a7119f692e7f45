"""Whether a work directory belongs to a run: what must not change in it."""

from collections.abc import Mapping
import os
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.data import journal

# Facts that the first versions did not write: there they are not compared.
_LATER = ('data', 'held_out', 'start', 'dtype', 'mask_id')


def check_same_run(path: str, facts: Mapping[str, Any]) -> None:
  """Writes what decides a run; raises InputError if it was another run's."""
  if not os.path.lexists(path):
    files.write_json(path, journal.with_sum(facts))
    return
  try:
    before = journal.without_sum(files.read_json(path))
  except ValueError as error:
    raise errors.InputError(
      f'{path}, which tells what decides this run, cannot be used ({error}). '
      'If this run was begun with these very settings, delete that file and '
      'start the same command again; else give another --workdir.'
    ) from error
  facts = {n: v for n, v in facts.items() if n in before or n not in _LATER}
  other = journal.differences(_flat(before), _flat(facts))
  if other:
    raise errors.InputError(
      f'{path}: this work directory belongs to another run: {other}. Go on '
      'with the same settings, or give another --workdir.'
    )


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {'a.b': 1} of {'a': {'b': 1}}."""
  flat = {}
  for name, value in facts.items():
    if isinstance(value, Mapping):
      inner = _flat(value)
      flat |= {f'{name}.{part}': inner[part] for part in inner}
    else:
      flat[name] = value
  return flat
