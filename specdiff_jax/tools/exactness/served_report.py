"""What `verify --drafter` found: rows, their table, and the last words."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from specdiff_jax.tools import tables
from specdiff_jax.tools.exactness import verification

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Row:
  """What was compared of one drafter."""

  name: str
  source: str
  served: str
  windows: int
  slots: int
  agreement: float  # share of slots whose likeliest token is the same
  by_slot: tuple[float, ...]  # largest difference of each slot of the window
  text: str  # id of the text of the largest difference
  anchor: int  # its last committed token
  slot: int  # of its window, from 1 on
  tolerance: float

  @property
  def worst(self) -> float:
    """The largest difference of two log-probabilities."""
    return float(np.max(self.by_slot))  # a NaN counts

  @property
  def passed(self) -> bool:
    """Whether no difference is above the tolerance."""
    return self.worst <= self.tolerance

  def json(self) -> dict[str, Any]:
    """Returns the row as the last line of the program holds it."""
    number = lambda x: verification.number(float(f'{x:.3g}'))
    return {
      'system': self.name,
      'drafter': self.source,
      'served': self.served,
      'windows': self.windows,
      'slots': self.slots,
      'agreement': round(self.agreement, 6),
      'worst': number(self.worst),
      'by_slot': [number(value) for value in self.by_slot],
      'trajectory': self.text,
      'anchor': self.anchor,
      'slot': self.slot,
      'passed': self.passed,
    }


@dataclasses.dataclass(frozen=True)
class Report:
  """What `verify --drafter` found."""

  rows: Sequence[Row]
  facts: Mapping[str, Any]

  @property
  def passed(self) -> bool:
    return all(row.passed for row in self.rows)

  def to_json(self) -> dict[str, Any]:
    """Returns what the last line of `verify --drafter` holds."""
    rows = [row.json() for row in self.rows]
    return {
      'schema': SCHEMA,
      'drafters': rows,
      'passed': self.passed,
      **self.facts,
    }

  def table(self) -> tables.Table:
    """Returns a line for each drafter."""
    columns = ('system', 'drafter', 'served', 'windows', 'slots')
    columns += ('argmax agrees', 'largest difference', 'where', 'equal')
    return tables.Table(columns, [_line(row) for row in self.rows], words=3)

  def verdict(self) -> str:
    """Returns the last words."""
    bad = ', '.join(dict.fromkeys(r.name for r in self.rows if not r.passed))
    allowed = f'the tolerance {self.facts["tolerance"]:g}'
    if not bad:
      return f'What is served is what was trained, within {allowed}.'
    return (
      f'What is served is NOT what was trained: {bad} is above {allowed}. See '
      'which slots differ (by_slot): all of them point to features, positions '
      'or the mask token; the later ones to the order of slots.'
    )


def _line(row: Row) -> tuple[str, ...]:
  return (
    row.name,
    row.source,
    '' if row.served == row.source else row.served,
    str(row.windows),
    str(row.slots),
    f'{row.agreement:.4f}',
    f'{row.worst:.2g}',
    f'{row.text}, anchor {row.anchor}, slot {row.slot}',
    'yes' if row.passed else 'NO',
  )
