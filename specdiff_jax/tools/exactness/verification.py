"""What `verify` checks: systems against plain decoding, prompt by prompt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.tools.exactness import divergence
from specdiff_jax.tools.exactness import reading


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the certificate."""

  system: str
  temperature: float
  batch: int
  prompts: int
  report: divergence.Report
  exact: bool  # no difference is within rounding

  @property
  def passed(self) -> bool:
    """Whether all outputs are equal, or each difference is within rounding."""
    found = self.report.divergences
    return not found or (not self.exact and all(d.near_tie for d in found))

  def json(self) -> dict[str, Any]:
    """Returns the row as the last line of the program holds it."""
    report = self.report
    return {
      'system': self.system,
      'temperature': self.temperature,
      'batch': self.batch,
      'prompts': self.prompts,
      'tokens': report.tokens,
      'mismatches': len(report.divergences),
      'worst_margin': number(report.worst_margin),
      'noise': number(report.noise),
      'passed': self.passed,
      'divergences': [
        {
          'request': d.number,
          'index': d.index,
          'expected': d.expected,
          'got': d.got,
          'top2_margin': number(d.top2),
          'margin': number(d.margin),
          'allowed': number(d.allowed),
          'excused': d.near_tie and not self.exact,
        }
        for d in report.divergences
      ],
    }


def number(value: float | None) -> float | str | None:
  """Returns what JSON can hold: 'inf' and 'nan' as text."""
  if value is None or math.isfinite(value):
    return value if value is None else round(value, 6)
  return str(value)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
  """Returns the figures of the whole certificate."""
  worsts = (row.report.worst_margin for row in rows)
  found = [margin for margin in worsts if margin is not None]
  worst = math.nan if any(map(math.isnan, found)) else max(found, default=None)
  return {
    'systems': [row.json() for row in rows],
    'prompts': max((row.prompts for row in rows), default=0),
    'tokens': sum(row.report.tokens for row in rows),
    'mismatches': sum(len(row.report.divergences) for row in rows),
    'worst_margin': number(worst),
    'passed': all(row.passed for row in rows),
  }


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Which systems are checked, at which temperatures and in which batches."""

  names: tuple[str, ...]
  temperatures: tuple[float, ...]
  batches: tuple[int, ...]
  plain_slots: int  # of plain AR; 0: those of the system that it is compared to
  make: Callable[[str, int], session_lib.Session]  # name, slots of plain AR
  facts: Mapping[str, Any]  # what was verified

  @property
  def exact(self) -> bool:
    """Whether plain AR goes through the systems' own shapes."""
    return not self.plain_slots

  def __len__(self) -> int:
    return len(self.names) * len(self.temperatures) * len(self.batches)

  def rows(self, requests: Sequence[request_lib.Request]) -> Iterator[Row]:
    """Runs everything; yields each row as soon as it is known."""
    systems = {name: self.make(name, 0) for name in self.names}
    plain, texts = {}, {}
    for batch in self.batches:
      for temperature in self.temperatures:
        for name, system in systems.items():
          drafted = system.engine.drafter.buckets[-1]
          slots = self.plain_slots or drafted
          if slots not in plain:
            plain[slots] = self.make('ar', slots)
          ar = _under(plain[slots], temperature, batch)
          run = (batch, temperature, slots)
          if run not in texts:
            texts[run] = _tokens(ar, requests)
          passes = reading.passes(slots, system.engine.drafter)
          report = divergence.Comparison(ar, passes).compare(
            requests,
            texts[run],
            _tokens(_under(system, temperature, batch), requests),
          )
          # A tree's keys lie elsewhere while it is scored, and passes of
          # other sizes add up in other orders: both round.
          drafter = system.engine.drafter
          alike = drafter.chain and len(drafter.buckets) == 1
          strict = self.exact and alike
          yield Row(name, temperature, batch, len(requests), report, strict)


def _under(
  system: session_lib.Session, temperature: float, batch: int
) -> session_lib.Session:
  settings = dataclasses.replace(system.settings, temperature=temperature)
  return dataclasses.replace(system, settings=settings, batch=batch)


def _tokens(system, requests) -> list[list[int]]:
  return [completion.tokens.tolist() for completion in system.decode(requests)]
