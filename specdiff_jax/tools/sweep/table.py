"""The runs of a sweep, side by side."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Row:
  """What one run came to."""

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


def as_json(recipe: str, rows: Sequence[Row]) -> dict[str, Any]:
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
      for row in rows
    ],
  }
