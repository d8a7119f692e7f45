"""What a bench yields: an object, with its tables, as JSON."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from specdiff_jax.tools import tables
from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.bench import plots
from specdiff_jax.tools.bench import report
from specdiff_jax.tools.bench import trace

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class BenchResult:
  """Systems side by side, on the same prompts."""

  rows: Sequence[metrics.Row]  # one a system
  verifier: str  # where it came from
  device: str
  dtype: str  # of all rows
  temperature: float
  rounds: int
  exact: bool  # references went through the systems' own shapes
  settings: Mapping[str, Any]  # other fields that a reader wants
  ar_tokens_per_s: float  # plain AR in `dtype`, at its fastest shape
  fastest_ar_tokens_per_s: float  # plain AR in any dtype
  fastest_ar_dtype: str
  ar_rows_unlike_reference: int  # bits may differ between shapes
  # transformers' in `dtype`, where it was timed
  rival_tokens_per_s: float | None = None
  rivals: Sequence[metrics.Rival] = ()
  peak_memory: int = 0  # bytes; see `costs.peak_memory`
  # Bytes a second that this device reads, and those of a plain step's weights.
  read_bandwidth: float | None = None
  ar_bandwidth: float | None = None
  example: Sequence[trace.Trace] = ()  # the first prompt, if it was traced
  simulated: float | None = None  # the rate of simulated acceptance
  ungraded: str = ''  # what was not graded, and why
  fingerprint: str = ''  # of the verifier

  @property
  def passed(self) -> bool:
    """Whether outputs are plain AR's, or differ by rounding alone."""
    return not any(map(metrics.failed, self.rows))

  @property
  def ar_over_rival(self) -> float | None:
    """Speed of plain AR over the rival's; None where there is none."""
    if not self.rival_tokens_per_s:
      return None
    return self.ar_tokens_per_s / self.rival_tokens_per_s

  def tables(self) -> list[tables.Table]:
    """Returns the main table, acceptance, why drafts end, costs of a cycle."""
    found = report.table, report.curves, report.ends, report.costs
    made = [make(self.rows) for make in found]
    made.append(report.rivals(self.rivals, self.ar_tokens_per_s, self.rows))
    return [table for table in made if table is not None]

  def legend(self) -> str:
    """Returns what the columns of the tables mean."""
    told = report.legend(
      self.rows, self.rounds, self.dtype, self.fastest_ar_dtype, self.exact
    )
    if self.simulated is not None:
      told = (
        'SIMULATED ACCEPTANCE: in rows that say so, tokens of the first chain of a '
        f'draft are right at a rate of {self.simulated}, given those before them, '
        'whatever the drafter says; tau and what follows from it are made up.\n'
        f'{told}'
      )
    if self.ungraded:
      told += f'\n{self.ungraded}'
    if self.read_bandwidth and self.ar_bandwidth:
      told += (
        f'\nA plain step reads its weights at {self.ar_bandwidth / 1e9:.1f} GB/s, '
        f'{self.ar_bandwidth / self.read_bandwidth:.0%} of what this device reads '
        'in a sum.'
      )
    return told

  def to_json(self, recipe: str = '') -> dict[str, Any]:
    """Returns what the last line of `bench` holds."""
    rival = {}
    if self.rival_tokens_per_s is not None:
      ratio = self.ar_over_rival
      rival = {
        'rival': 'transformers',
        'rival_tokens_per_s': round(self.rival_tokens_per_s, 3),
        'ar_over_rival': None if ratio is None else round(ratio, 4),
      }
    return {
      'schema': SCHEMA,
      'device': self.device,
      'fastest_ar_tokens_per_s': round(self.fastest_ar_tokens_per_s, 3),
      'config': recipe,
      'verifier': self.verifier,
      **({'fingerprint': self.fingerprint} if self.fingerprint else {}),
      'dtype': self.dtype,
      'temperature': self.temperature,
      'systems': [_system(row) for row in self.rows],
      'settings': dict(self.settings),
      **rival,
      **(
        {'rivals': list(map(dataclasses.asdict, self.rivals))}
        if self.rivals
        else {}
      ),
      **(
        {'example': [one.to_json() for one in self.example]}
        if self.example
        else {}
      ),
      **(
        {}
        if self.simulated is None
        else {'simulated_acceptance': self.simulated}
      ),
      'rounds': self.rounds,
      'fastest_ar_dtype': self.fastest_ar_dtype,
      'ar_rows_unlike_reference': self.ar_rows_unlike_reference,
      'peak_memory_bytes': self.peak_memory,
      'read_bandwidth': self.read_bandwidth and round(self.read_bandwidth),
      'ar_bandwidth': self.ar_bandwidth and round(self.ar_bandwidth),
    }

  def plot(self, path: str) -> None:
    """Draws speeds and acceptance into a file; see `plots.save`."""
    title = f'{self.verifier}, {self.dtype}'
    if self.simulated is not None:
      title += f', simulated acceptance {self.simulated:g}'
    plots.save(path, self.rows, title)


def _system(row: metrics.Row) -> dict[str, Any]:
  return (
    {
      'system': row.system,
      'tokens_per_s': round(row.tokens_per_s, 3),
      'speedup': round(row.speedup, 4),
      'speedup_over_fastest_ar': round(row.speedup_over_fastest_ar, 4),
      'tau': round(row.tau, 4),
      'accepted': round(row.accepted, 4),
      'exact': row.exact,
      'prompts': row.prompts,
      'new_tokens': row.new_tokens,
      'recompiles': row.recompiles,
      'cycles': row.cycles,
      'host_looks': row.looks,
      'total_tokens_per_s': round(row.total_tokens_per_s, 3),
      'speedup_best': round(row.speedup_best, 4),
      'mismatched_rows': row.mismatched_rows,
      'excused_rows': row.near_ties,
      'accepted_histogram': list(row.histogram),
      'cond': metrics.cond(row.histogram),
      'surv': metrics.surv(row.histogram),
      'ends': {name: list(cycles) for name, cycles in row.ends.items()},
      'gamma': row.gamma,
      'drafts': row.drafts,
      'verify_tokens': row.verify_tokens,
      'break_even_tau': row.break_even_tau and round(row.break_even_tau, 4),
      'interval': row.interval and [round(end, 4) for end in row.interval],
    }
    | ({'simulated': True} if row.simulated else {})
    | _costs(row)
    | _graded(row)
  )


def _graded(row: metrics.Row) -> dict[str, Any]:
  """Returns which answers are right; nothing where none was graded."""
  if not row.graded:
    return {}
  told = [
    one._replace(seconds=one.seconds and round(one.seconds, 4))._asdict()
    for one in row.graded
  ]
  return {'correct': round(row.correct or 0.0, 4), 'graded': told}


def _costs(row: metrics.Row) -> dict[str, Any]:
  """Returns the parts of a cycle, null where they were not measured."""
  names = ('r', 'c_draft', 'cycle_overhead', 'predicted_speedup')
  names += ('prediction_error',)
  if row.costs is None:
    return dict.fromkeys(names)
  c = row.costs
  values = c.r, c.c_draft, c.overhead, c.predicted_speedup(row.tau)
  values += (row.prediction_error,)
  return {
    name: None if value is None else round(value, 4)
    for name, value in zip(names, values)
  }
