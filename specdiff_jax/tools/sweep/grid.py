"""The points of a grid: all combinations of values of some config fields."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import itertools
import re
from typing import Any

from specdiff_jax.core import errors

_LONGEST = 200  # bytes of a name; file systems take 255, suffixes included


@dataclasses.dataclass(frozen=True)
class Point:
  """One combination."""

  values: Mapping[str, str]  # by field, as they stand on the command line
  name: str  # of its directory
  config: Any


def points(
  parse: Callable[[Sequence[str]], Any], specs: Sequence[str]
) -> list[Point]:
  """Returns the points of `--grid` flags, the last one turning fastest.

  Args:
    parse: from flags, --config.FIELD=VALUE, to a config, so that values have
      the types of their fields.
    specs: 'FIELD=VALUE,VALUE', one a field.

  Raises:
    InputError: If a flag cannot be read, a field does not exist, comes twice
      or has the same value twice, or a value has the wrong type.

  Example: points(parse, ['loss=streak,ce'])
  """
  if not specs:
    raise errors.InputError(
      'There is no --grid FIELD=VALUE,VALUE, so there is nothing to sweep. '
      'Give at least one, such as --grid loss=streak,ce, or run `distill`.'
    )
  axes = {}
  for spec in specs:
    field, values = _axis(spec)
    if field in axes:
      raise errors.InputError(
        f'--grid was given the field {field!r} twice; give it once, with all '
        f'its values: --grid {field}={",".join((*axes[field], *values))}.'
      )
    axes[field] = values
  found = []
  for chosen in itertools.product(*axes.values()):
    values = dict(zip(axes, chosen))
    told = [f'--config.{field}={value}' for field, value in values.items()]
    found.append(Point(values, _name(values), parse(told)))
  _check_different(found)
  return found


def _axis(spec: str) -> tuple[str, list[str]]:
  """Returns the field and the values of `field=a,b`."""
  field, equals, text = spec.partition('=')
  field = field.strip().removeprefix('config.')
  values = _split(text)
  if not (field and equals) or '' in values:
    raise errors.InputError(
      f'--grid {spec!r} cannot be read. Write a field of the config and its '
      'values, FIELD=VALUE,VALUE: --grid gamma=8,16, or '
      '--grid "network.features=(9,18),(9,29)".'
    )
  return field, values


def _split(text: str) -> list[str]:
  """Splits at the commas that stand outside brackets."""
  parts, depth = [''], 0
  for char in text:
    depth += (char in '([') - (char in ')]')
    if char == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += char
  return [part.strip() for part in parts]


def _name(values: Mapping[str, str]) -> str:
  """Returns a directory's name, such as 'loss-ce_network.layers-2'."""
  odd = r'[^\w.+-]+'
  plain = {
    field: re.sub(odd, '-', re.sub(f'^{odd}|{odd}$', '', value))
    for field, value in values.items()
  }
  name = '_'.join(f'{field}-{value}' for field, value in plain.items())
  if len(name.encode()) <= _LONGEST:
    return name
  digest = hashlib.sha256(repr(values).encode()).hexdigest()[:12]
  begin = name.encode()[: _LONGEST - 13].decode(errors='ignore')
  return f'{begin}-{digest}'


def _check_different(found: Sequence[Point]) -> None:
  """Raises InputError where two points are the same, or would collide."""
  for number, point in enumerate(found):
    for other in found[:number]:
      if point.config == other.config or point.name == other.name:
        raise errors.InputError(
          f'--grid: {words(other.values)} and {words(point.values)} are the '
          f'same run, or would share the directory {point.name}; leave one out.'
        )


def words(values: Mapping[str, str]) -> str:
  """Returns the values of fields in words.

  >>> words({'gamma': '8', 'loss': 'ce'})
  'gamma=8 loss=ce'
  """
  return ' '.join(f'{field}={value}' for field, value in values.items())
