"""The runs of a sweep, side by side."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from specdiff_jax.tools import tables
from specdiff_jax.training import loop

SCHEMA = 1
LEGEND = (
  'tau: tokens per call of the verifier on the held-out trajectories, the '
  'bonus token included. agree 1, agree late: how often the first slot, or '
  "the last quarter of the slots, has the verifier's token; surv late: and "
  'all slots before it too. Losses of different kinds have different units.'
)


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
    return ' '.join(f'{field}={value}' for field, value in self.values.items())

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
class Sweep:
  """The runs of all points, or of those before the one that was stopped."""

  rows: Sequence[Row]
  stopped: loop.Result | None = None

  @property
  def failed(self) -> Sequence[Row]:
    """Runs that are not done."""
    return [row for row in self.rows if row.failure]

  def table(self) -> tables.Table:
    """Returns a line for each run."""
    fields = tuple(self.rows[0].values)
    columns = ('steps', 'last loss', 'tau')
    columns += ('agree 1', 'agree late', 'surv late')
    rows = [_line(row) for row in self.rows]
    return tables.Table((*fields, '', *columns), rows, words=len(fields) + 1)

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
  agree = row.curve('agree')
  figures = (
    row.result.get('loss'),
    row.result.get('tau_eval'),
    agree[0] if agree else None,
    row.late('agree'),
    row.late('surv'),
  )
  return (
    *row.values.values(),
    'FAILED' if row.failure else 'done',
    str(row.result.get('steps', '-')),
    *('-' if value is None else f'{value:.3f}' for value in figures),
  )
