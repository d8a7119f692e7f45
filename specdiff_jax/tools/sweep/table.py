"""The runs of a sweep, side by side."""

from collections.abc import Mapping, Sequence
import dataclasses
import statistics
from typing import Any

from specdiff_jax.tools import tables
from specdiff_jax.tools.sweep import grid
from specdiff_jax.training import loop

SCHEMA = 1
LEGEND = (
  'tau: tokens per call of the verifier on the held-out trajectories, the '
  'bonus token included. agree 1, agree late: how often the first slot, or '
  "the last quarter of the slots, has the verifier's token; surv late: and "
  'all slots before it too. Losses of different kinds have different units.'
)
SEEDS = ' The last lines are means over seeds, ± one standard deviation.'
_SEED = 'seed'  # the field
_FIGURES = ('loss', 'tau_eval', 'agree_1', 'agree_late', 'surv_late')


@dataclasses.dataclass(frozen=True)
class Row:
  """What one run yielded."""

  values: Mapping[str, str]  # of the swept fields
  workdir: str
  failure: str  # why it is not done; '' where it is
  result: Mapping[str, Any]  # as distill's JSON line; {} where it failed
  lines: Sequence[Mapping[str, Any]]  # of its metrics.jsonl

  @property
  def name(self) -> str:
    """The values in words."""
    return grid.words(self.values)

  @property
  def figures(self) -> tuple[float | None, ...]:
    """Loss, tau, agree 1, agree late, surv late; None where there is none."""
    agree = self.curve('agree')
    return (
      self.result.get('loss'),
      self.result.get('tau_eval'),
      agree[0] if agree else None,
      self.late('agree'),
      self.late('surv'),
    )

  def curve(self, figure: str) -> list[float | None]:
    """Returns a curve by slot of the last evaluation, [] if there is none."""
    return self.result.get('evaluation', {}).get(figure, [])

  def late(self, figure: str) -> float | None:
    """Returns the mean of the last quarter of a curve, its gaps left out.

    Of 16 slots these are 13 to 16, where SpecDiff-2 compares its losses.
    """
    values = self.curve(figure)
    values = values[len(values) - max(1, len(values) // 4) :]
    return mean([value for value in values if value is not None])

  def over_steps(self, name: str) -> tuple[list[int], list[float]]:
    """Returns steps and values of a metric, of 'tau' those of evaluations."""
    steps, values = [], []
    for line in self.lines:
      value = line.get('eval', line).get(name)
      if isinstance(value, (int, float)):
        steps.append(line['step'])
        values.append(value)
    return steps, values


def mean(values: Sequence[float]) -> float | None:
  """Returns the mean, None of nothing."""
  return sum(values) / len(values) if values else None


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in their seed alone, or one run."""

  values: Mapping[str, str]  # of the other swept fields
  rows: Sequence[Row]

  @property
  def name(self) -> str:
    """The values in words."""
    return grid.words(self.values) or f'{len(self.rows)} seeds'

  def over_steps(self, name: str) -> tuple[list[int], list[float], list[float]]:
    """Returns steps, and mean and spread of what all runs have there."""
    runs = [dict(zip(*row.over_steps(name))) for row in self.rows]
    steps = sorted(set(runs[0]).intersection(*runs))
    found = [_mean_spread([run[step] for run in runs]) for step in steps]
    return steps, [mean for mean, _ in found], [spread for _, spread in found]

  def curve(self, figure: str) -> list[tuple[float, float] | None]:
    """Returns (mean, spread) by slot, None where no run has a value."""
    slots = zip(*(row.curve(figure) for row in self.rows))
    return [_over_runs(values) for values in slots]

  @property
  def figures(self) -> list[tuple[float, float] | None]:
    """(mean, spread) of each of `Row.figures`; None where no run has one."""
    return [
      _over_runs(values) for values in zip(*(r.figures for r in self.rows))
    ]


def groups(rows: Sequence[Row]) -> list[Group]:
  """Returns runs by what they have in common besides their seed, in order."""
  found: dict[str, tuple[Mapping[str, str], list[Row]]] = {}
  for row in rows:
    values = {f: value for f, value in row.values.items() if f != _SEED}
    found.setdefault(grid.words(values), (values, []))[1].append(row)
  return [Group(*group) for group in found.values()]


def _mean_spread(values: Sequence[float]) -> tuple[float, float]:
  """Returns the mean and the standard deviation (n - 1; of one value 0)."""
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  return statistics.fmean(values), spread


def _over_runs(values: Sequence[float | None]) -> tuple[float, float] | None:
  """Returns mean and spread of what is there, None of nothing."""
  there = [value for value in values if value is not None]
  return _mean_spread(there) if there else None


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs of all points, or of those before the one that was stopped."""

  rows: Sequence[Row]
  stopped: loop.Result | None = None

  @property
  def failed(self) -> Sequence[Row]:
    """Runs that are not done."""
    return [row for row in self.rows if row.failure]

  @property
  def seeds(self) -> Sequence[Group]:
    """What was run with several seeds, of which at least two are done."""
    done = groups([row for row in self.rows if not row.failure])
    return [group for group in done if len(group.rows) > 1]

  @property
  def legend(self) -> str:
    """What the table's columns mean."""
    return LEGEND + SEEDS * bool(self.seeds)

  def table(self) -> tables.Table:
    """Returns a line for each run, then one for each mean over seeds."""
    fields = tuple(self.rows[0].values)
    columns = ('steps', 'last loss', 'tau')
    columns += ('agree 1', 'agree late', 'surv late')
    rows = [_line(row) for row in self.rows]
    rows += [_mean_line(group, fields) for group in self.seeds]
    return tables.Table(
      (*fields, 'state', *columns), rows, words=len(fields) + 1
    )

  def to_json(self, recipe: str) -> dict[str, Any]:
    """Returns what results.json holds."""
    return {
      'schema': SCHEMA,
      'config': recipe,
      'runs': [
        {
          'values': dict(row.values),
          'workdir': row.workdir,
          'failure': row.failure or None,
          **row.result,
          'agree_late': row.late('agree'),
          'surv_late': row.late('surv'),
          'tau_over_steps': list(zip(*row.over_steps('tau'))),
        }
        for row in self.rows
      ],
      'over_seeds': [
        {
          'values': dict(group.values),
          'seeds': [row.values[_SEED] for row in group.rows],
          **{
            name: one and {'mean': one[0], 'std': one[1]}
            for name, one in zip(_FIGURES, group.figures)
          },
        }
        for group in self.seeds
      ],
    }

  def summary(self) -> dict[str, Any]:
    """Returns how many runs are done, and the best of them."""
    measured = [row for row in self.rows if row.result.get('tau_eval')]
    best = max(measured, key=lambda row: row.result['tau_eval'], default=None)
    return {
      'runs': len(self.rows),
      'done': len(self.rows) - len(self.failed),
      'failed': len(self.failed),
      'best': dict(best.values) if best else None,
      'best_tau': best.result['tau_eval'] if best else None,
    }


def _line(row: Row) -> tuple[str, ...]:
  return (
    *row.values.values(),
    'FAILED' if row.failure else 'done',
    str(row.result.get('steps', '-')),
    *('-' if value is None else f'{value:.3f}' for value in row.figures),
  )


def _mean_line(group: Group, fields: Sequence[str]) -> tuple[str, ...]:
  seeds = f'{len(group.rows)} seeds'
  return (
    *(group.values.get(field, seeds) for field in fields),
    'mean',
    str(group.rows[0].result.get('steps', '-')),
    *(
      '-' if one is None else f'{one[0]:.3f} ±{one[1]:.3f}'
      for one in group.figures
    ),
  )
