"""Result files: what `bench` wrote, and how runs of `distill` learnt."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
import pathlib
from typing import Any, NamedTuple

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.tools.bench import result as bench_result

_METRICS = 'metrics.jsonl'
# Of results that stand in one report: speeds of others do not compare.
_SAME = ('verifier', 'dtype', 'simulated_acceptance')


def _text(value: Any) -> bool:
  return isinstance(value, str)


def _count(value: Any) -> bool:
  return isinstance(value, int) and value >= 0


def _number(value: Any) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)


def _seconds(value: Any) -> bool:
  # None of a prompt that was decoded together with others.
  return value is None or _number(value) and value > 0


def _truth(value: Any) -> bool:
  return value is None or isinstance(value, bool)


def _list(value: Any) -> bool:
  return isinstance(value, list)


# What entries of a result's lists have to have.
_SYSTEM = {
  'system': _text,
  'tokens_per_s': _number,
  'speedup': _number,
  'tau': _number,
  'exact': _truth,
}
_GRADED = {'correct': _truth, 'seconds': _seconds}
_EXAMPLE = {'id': _text, 'system': _text, 'trace': _list}
_PIECE = {'text': _text, 'cycle': _count, 'depth': _count}


class Bench(NamedTuple):
  """A result of `bench`.

  Attributes:
    name: of its file, without the ending.
    told: the JSON object.
  """

  name: str
  told: Mapping[str, Any]

  @property
  def systems(self) -> Sequence[Mapping[str, Any]]:
    return self.told['systems']


class Run(NamedTuple):
  """How a drafter learnt: (step, held-out tau) in order."""

  name: str
  curve: Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Results:
  """What a report is made of, in the order in which it was given."""

  benches: Sequence[Bench]
  runs: Sequence[Run]


def read(paths: Sequence[str]) -> Results:
  """Reads result files, and workdirs of `distill`.

  Raises InputError where one is neither, is of another schema, or was measured
  with another verifier, in another dtype, or with another simulated acceptance
  than the first.
  """
  benches, runs = [], []
  for path, name in zip(paths, _names(paths), strict=True):
    if os.path.isdir(path):
      path = os.path.join(path, _METRICS)
    found = _read(path)
    if isinstance(found, list):
      runs.append(Run(name, found))
    else:
      benches.append((path, Bench(name, found)))
  for path, one in benches[1:]:
    first, told = benches[0]
    for key in _SAME:
      if one.told.get(key) != told.told.get(key):
        raise errors.InputError(
          f'{path}: {key} is {printing.short(one.told.get(key))}, but in '
          f'{first} it is {printing.short(told.told.get(key))}; give results '
          'of one verifier in one dtype, measured or simulated alike, and make '
          'a report for each.'
        )
  return Results([one for _, one in benches], runs)


def _names(paths: Sequence[str]) -> list[str]:
  """Returns names of the files; longer ones where these are not different."""
  parts = [pathlib.Path(path) for path in paths]
  names = [p.parent.name if p.name == _METRICS else p.stem for p in parts]
  return [
    name if names.count(name) == 1 else path
    for name, path in zip(names, paths, strict=True)
  ]


def _read(path: str) -> Any:
  """Returns the object of a bench, or the curve of a run."""
  try:
    with open(path, encoding='utf-8') as file:
      lines = [line for line in file if line.strip()]
  except (OSError, UnicodeDecodeError) as error:
    why = getattr(error, 'strerror', None) or error
    raise errors.InputError(
      f'{path}: cannot be read ({why}). Give a file that `specdiff '
      'bench --out` wrote, or the workdir of `specdiff distill`.'
    ) from error
  if path.endswith('.jsonl'):
    return _curve(path, lines)
  found = None
  # A file of `bench --out`, or what `bench` printed, whose last line it is.
  for text in (''.join(lines), ''.join(lines[-1:])):
    with contextlib.suppress(ValueError):
      found = found or files.parse_json(text)
  told = found.get('systems') if isinstance(found, dict) else None
  if not isinstance(found, dict) or not isinstance(told, list) or not told:
    raise errors.InputError(
      f'{path}: this is no result of `specdiff bench`; give a file that it wrote '
      '(bench --out=FILE).'
    )
  if found.get('schema') != bench_result.SCHEMA:
    raise errors.InputError(
      f'{path}: schema is {printing.short(found.get("schema"))}, but this '
      f'version reads {bench_result.SCHEMA}; run the bench again.'
    )
  _check(path, 'systems', told, _SYSTEM)
  for row in told:
    _check(path, 'graded', row.get('graded') or [], _GRADED)
  example = found.get('example') or []
  _check(path, 'example', example, _EXAMPLE)
  for one in example:
    _check(path, f'the trace of {one["system"]}', one['trace'], _PIECE, 1)
  return found


def _check(
  path: str,
  what: str,
  rows: Any,
  kinds: Mapping[str, Callable[[Any], bool]],
  least: int = 0,
) -> None:
  """Raises InputError unless `rows` are objects with such fields."""
  faults = [] if _list(rows) and len(rows) >= least else ['is no list of such']
  for row in [] if faults else rows:
    for key, good in kinds.items():
      if not isinstance(row, dict) or key not in row:
        faults.append(f'has an entry without {key!r}')
      elif not good(row[key]):
        faults.append(f'has an entry whose {key} is {printing.short(row[key])}')
  if faults:
    raise errors.InputError(
      f'{path}: {what} {faults[0]}; the file is damaged, or was written by hand. '
      'Run the bench again.'
    )


def _curve(path: str, lines: Sequence[str]) -> list[tuple[int, float]]:
  """Returns (step, held-out tau) of a run's metrics."""
  found = []
  for number, line in enumerate(lines, 1):
    try:
      told = files.parse_json(line)
      step, held_out = told['step'], told.get('eval')
      if held_out is not None:
        found.append((int(step), float(held_out['tau'])))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      if number == len(lines) and not line.endswith('\n'):
        break  # of a run that is writing it
      raise errors.InputError(
        f'{path}, line {number}: no metrics of `specdiff distill` '
        f'({type(error).__name__}). Give the workdir of a run.'
      ) from error
  return found
