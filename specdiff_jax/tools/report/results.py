"""Result files: what `bench` wrote, and how runs of `distill` learnt."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import io
import os
import pathlib
from typing import Any, NamedTuple

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.tools.bench import result as bench_result

_METRICS = 'metrics.jsonl'
# No measured number is larger, and sums of such can be drawn.
_MOST = 2**53
_MOST_BYTES = 2**28  # of a file: a metrics.jsonl of a million lines

_Kinds = Mapping[str, Callable[[Any], bool]]


def _text(value: Any) -> bool:
  return isinstance(value, str)


def _count(value: Any) -> bool:
  return type(value) is int and 0 <= value <= _MOST


def _number(value: Any) -> bool:
  return type(value) in (int, float) and abs(value) <= _MOST


def _seconds(value: Any) -> bool:
  # None of a prompt that was decoded together with others.
  return value is None or _number(value) and value > 0


def _number_or_null(value: Any) -> bool:
  return value is None or _number(value)


def _truth(value: Any) -> bool:
  return value is None or isinstance(value, bool)


def _list(value: Any) -> bool:
  return isinstance(value, list)


def _object(value: Any) -> bool:
  return isinstance(value, dict)


def _curve(value: Any) -> bool:
  return _list(value) and all(map(_number_or_null, value))


def _histograms(value: Any) -> bool:
  return _object(value) and all(
    _list(one) and all(map(_count, one)) for one in value.values()
  )


def _interval(value: Any) -> bool:
  return value is None or (
    _list(value) and len(value) == 2 and all(map(_number, value))
  )


def _held_out(value: Any) -> bool:
  return value is None or not _fault(value, {'tau': _number_or_null})


# What a result may have, and of what kind it is then.
_RESULT = {
  'verifier': _text,
  'fingerprint': _text,
  'dtype': _text,
  'device': _text,
  'rounds': _count,
  'temperature': _number,
  'simulated_acceptance': _number,
  'settings': _object,
}
# What entries of a result's lists have to have.
_SYSTEM = {
  'system': _text,
  'tokens_per_s': _number,
  'speedup': _number,
  'tau': _number,
  'exact': _truth,
}
# What those of systems may have.
_MORE = {
  'prompts': _count,
  'cycles': _count,
  'drafts': _count,
  'mismatched_rows': _count,
  'excused_rows': _count,
  'correct': _number,
  'interval': _interval,
  'speedup_over_fastest_ar': _number_or_null,
  'break_even_tau': _number_or_null,
  'predicted_speedup': _number_or_null,
  'r': _number_or_null,
  'c_draft': _number_or_null,
  'cycle_overhead': _number_or_null,
  'cond': _curve,
  'ends': _histograms,
}
# What those with the first have to have too.
_WITH = {
  'r': {'c_draft': _number, 'cycle_overhead': _number},
  'ends': {'cycles': _count},
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

  @property
  def int8(self) -> bool:
    """Whether the verifier's weights were rounded to int8."""
    return self.told.get('settings', {}).get('int8') in ('verifier', 'both')

  def shared(self) -> dict[str, Any]:
    """Returns what is alike in one report: speeds of others do not compare."""
    names = 'verifier', 'dtype', 'simulated_acceptance'
    told = {name: self.told.get(name) for name in names}
    told['int8 verifier'] = self.int8
    if 'fingerprint' in self.told:  # older results have none
      told['fingerprint'] = self.told['fingerprint']
    return told


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
  """Reads result files, folders of such, and workdirs of `distill`.

  Raises InputError where one is none of these, is of another schema, or was
  measured with another verifier, in another dtype, or with another simulated
  acceptance than one before it.
  """
  benches, runs = [], []
  paths = [one for path in paths for one in _files(path)]
  paths = list({os.path.realpath(path): path for path in paths}.values())
  for path, name in zip(paths, _names(paths), strict=True):
    found = _read(path)
    if isinstance(found, list):
      runs.append(Run(name, found))
    else:
      benches.append((path, Bench(name, found)))
  shared: dict[str, tuple[Any, str]] = {}
  for path, one in benches:
    for key, value in one.shared().items():
      wanted, first = shared.setdefault(key, (value, path))
      if value != wanted:
        raise errors.InputError(
          f'{path}: {key} is {printing.short(value)}, but in {first} it is '
          f'{printing.short(wanted)}; give results of one verifier in one '
          'dtype, rounded to int8 or not, measured or simulated alike, and '
          'make a report for each.'
        )
  return Results([one for _, one in benches], runs)


def _files(path: str) -> list[str]:
  """Returns the metrics of a workdir, the results in a folder, or the file."""
  metrics = os.path.join(path, _METRICS)
  if not os.path.isdir(path):
    return [path]
  if os.path.exists(metrics):
    return [metrics]
  found = sorted(map(str, pathlib.Path(path).glob('*.json')))
  if not found:
    raise errors.InputError(
      f'{path}: this folder holds neither {_METRICS} nor results (*.json). '
      'Give the workdir of `specdiff distill`, or the folder --out of '
      '`specdiff bench --grid`.'
    )
  return found


def _names(paths: Sequence[str]) -> list[str]:
  """Returns names of the files; longer ones where these are not different."""
  parts = [pathlib.Path(os.path.abspath(path)) for path in paths]
  names = [p.parent.name if p.name == _METRICS else p.stem for p in parts]
  return [
    printing.one_line(name if names.count(name) == 1 else path)
    for name, path in zip(names, paths, strict=True)
  ]


def _read(path: str) -> Any:
  """Returns the object of a bench, or the curve of a run."""
  try:
    text = files.read(path, _MOST_BYTES).decode()
  except UnicodeDecodeError as error:
    raise errors.InputError(
      f'{path}: cannot be read ({error}). Give a file that `specdiff '
      'bench --out` wrote, or the workdir of `specdiff distill`.'
    ) from error
  lines = [line for line in io.StringIO(text) if line.strip()]
  if path.endswith('.jsonl'):
    return _learnt(path, lines)
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
  if fault := _fault(found, {}, _RESULT):
    raise _damaged(path, f'this is a result {fault}')
  _check(path, 'systems', told, _SYSTEM, _MORE)
  for key, kinds in _WITH.items():
    _check(path, 'systems', [row for row in told if row.get(key)], kinds)
  for row in told:
    _check(path, 'graded', row.get('graded') or [], _GRADED)
  example = found.get('example') or []
  _check(path, 'example', example, _EXAMPLE)
  for one in example:
    _check(path, f'the trace of {one["system"]}', one['trace'], _PIECE, least=1)
  return found


def _check(
  path: str,
  what: str,
  rows: Any,
  needed: _Kinds,
  may: _Kinds | None = None,
  least: int = 0,
) -> None:
  """Raises InputError unless `rows` are objects with such fields."""
  if not _list(rows) or len(rows) < least:
    raise _damaged(path, f'{what} is no list of such')
  for row in rows:
    if fault := _fault(row, needed, may):
      raise _damaged(path, f'{what} has an entry {fault}')


def _fault(value: Any, needed: _Kinds, may: _Kinds | None = None) -> str:
  """Returns what is wrong with the fields of an object; '' where nothing is."""
  there = value if isinstance(value, dict) else {}
  for key, good in {**needed, **(may or {})}.items():
    if key in there and not good(there[key]):
      return f'whose {key} is {printing.short(there[key])}'
    if key in needed and key not in there:
      return f'without {key!r}'
  return ''


def _damaged(path: str, fault: str) -> errors.InputError:
  return errors.InputError(
    f'{path}: {fault}; the file is damaged, or was written by hand. Run the '
    'bench again.'
  )


def _learnt(path: str, lines: Sequence[str]) -> list[tuple[int, float]]:
  """Returns (step, held-out tau) of a run's metrics."""
  found = []
  for number, line in enumerate(lines, 1):
    told: Any = None
    with contextlib.suppress(ValueError):
      told = files.parse_json(line)
    fault = _fault(told, {'step': _count}, {'eval': _held_out})
    if fault and number == len(lines) and not line.endswith('\n'):
      break  # of a run that is writing it
    if fault:
      raise errors.InputError(
        f'{path}, line {number}: no metrics of `specdiff distill`, but an '
        f'entry {fault}. Give the workdir of a run.'
      )
    tau = (told.get('eval') or {}).get('tau')
    if tau is not None:  # null is what was no number
      found.append((told['step'], float(tau)))
  return found
