"""Tables, their legends, and the one JSON line that a bench ends with."""

from collections.abc import Sequence
from typing import Any

import rich.table

from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.sweep import table as sweep_lib

SCHEMA = 1


def table(rows: Sequence[metrics.Row]) -> rich.table.Table:
  """Returns the main table."""
  result = rich.table.Table()
  result.add_column('system')
  for name in ('tokens/s', 'speed-up', 'over fastest AR', 'tau', 'exact'):
    result.add_column(name, justify='right')
  for row in rows:
    result.add_row(
      row.system,
      f'{row.tokens_per_s:.1f}',
      f'{row.speedup:.2f}x',
      f'{row.speedup_over_fastest_ar:.2f}x',
      f'{row.tau:.2f}',
      _exact(row),
    )
  return result


def _exact(row: metrics.Row) -> str:
  """Returns the cell that says whether outputs are plain decoding's."""
  if row.exact is None:
    return 'in law'
  if row.exact:
    return 'yes'
  wrong = row.mismatched_rows - row.excused_rows
  return f'NO ({wrong} rows)' if wrong else f'{row.excused_rows} near-ties'


def curves(rows: Sequence[metrics.Row]) -> rich.table.Table | None:
  """Returns cond and surv by drafted position; None if nothing was drafted."""
  drafted = [row for row in rows if len(row.histogram) > 1]
  if not drafted:
    return None
  depth = max(len(row.histogram) for row in drafted) - 1
  result = rich.table.Table(title='acceptance by drafted position')
  result.add_column('system')
  result.add_column('curve')
  for position in range(1, depth + 1):
    result.add_column(str(position), justify='right')
  for row in drafted:
    for name, curve in (
      ('cond', metrics.cond(row.histogram)),
      ('surv', metrics.surv(row.histogram)),
    ):
      cells = ['-' if value is None else f'{value:.2f}' for value in curve]
      result.add_row(row.system, name, *cells)
  return result


def legend(rounds: int, dtype: str, fastest: str, same_shapes: bool) -> str:
  """Returns what the columns mean, in sentences."""
  reference = (
    'plain decoding through the same shapes'
    if same_shapes
    else 'plain decoding at its own fastest shape'
  )
  return (
    'ar: plain decoding at its fastest shape. tokens/s: decoding without '
    f'prefill and compilation, median of {rounds} interleaved rounds. '
    f'speed-up: over ar in {dtype}; over fastest AR: over ar in any dtype '
    f'(here {fastest}). tau: tokens per call of the verifier, the bonus '
    f'token included. exact: every row equals {reference}, token for token '
    '(near-ties: rows that differ by less than rounding moves the logits; in '
    'law: the rule draws coins of its own). '
    'cond: a position is accepted, given that the one before it was; surv: '
    'it is accepted.'
  )


def json_line(
  rows: Sequence[metrics.Row],
  *,
  device: str,
  fastest_ar_tokens_per_s: float,
  config: str,
  verifier: str,
  dtype: str,
  temperature: float,
  extra: dict[str, Any],
) -> dict[str, Any]:
  """Returns what the bench's last line holds."""
  return {
    'schema': SCHEMA,
    'device': device,
    'fastest_ar_tokens_per_s': round(fastest_ar_tokens_per_s, 3),
    'config': config,
    'verifier': verifier,
    'dtype': dtype,
    'temperature': temperature,
    'systems': [_system(row) for row in rows],
  } | extra


def _system(row: metrics.Row) -> dict[str, Any]:
  return {
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
    'total_tokens_per_s': round(row.total_tokens_per_s, 3),
    'speedup_best': round(row.speedup_best, 4),
    'mismatched_rows': row.mismatched_rows,
    'excused_rows': row.excused_rows,
    'accepted_histogram': list(row.histogram),
    'cond': metrics.cond(row.histogram),
    'surv': metrics.surv(row.histogram),
    'gamma': row.gamma,
    'drafts': row.drafts,
    'verify_tokens': row.verify_tokens,
  } | _costs(row)


def _costs(row: metrics.Row) -> dict[str, Any]:
  """Returns the parts of a cycle, null where they were not measured."""
  names = ('r', 'c_draft', 'cycle_overhead', 'predicted_speedup')
  if row.costs is None:
    return dict.fromkeys(names)
  c = row.costs
  values = (c.r, c.c_draft, c.overhead, c.predicted_speedup(row.tau))
  return {name: round(value, 4) for name, value in zip(names, values)}


def sweep(rows: Sequence[sweep_lib.Row]) -> rich.table.Table:
  """Returns a line for each run of a sweep."""
  result = rich.table.Table()
  for field in rows[0].values:
    result.add_column(field)
  result.add_column('')
  names = (
      'steps', 'last loss', 'tau', 'agree 1', 'agree late', 'surv late',
  )  # fmt: skip
  for name in names:
    result.add_column(name, justify='right')
  for row in rows:
    agree = row.curve('agree')
    figures = (
      row.result.get('loss'),
      row.result.get('tau_eval'),
      agree[0] if agree else None,
      row.late('agree'),
      row.late('surv'),
    )
    result.add_row(
      *row.values.values(),
      'FAILED' if row.failure else 'done',
      str(row.result.get('steps', '-')),
      *('-' if value is None else f'{value:.3f}' for value in figures),
    )
  return result


SWEEP_LEGEND = (
  'tau: tokens per call of the verifier on the held-out trajectories, the '
  'bonus token included. agree 1, agree late: how often the first slot, or '
  "the last quarter of the slots, has the verifier's token; surv late: and "
  'all slots before it too. Losses of different kinds have different units.'
)


def costs(rows: Sequence[metrics.Row]) -> rich.table.Table | None:
  """Returns what the cycles cost; None if it was not measured."""
  rows = [row for row in rows if row.costs is not None]
  if not rows:
    return None
  result = rich.table.Table(title='a cycle, in plain steps')
  names = ('verified', 'r', 'c_draft', 'cycle', 'overhead', 'tau / cycle')
  result.add_column('system')
  for name in names:
    result.add_column(name, justify='right')
  for row in rows:
    c = row.costs
    result.add_row(
      row.system,
      str(row.verify_tokens),
      f'{c.r:.2f}',
      f'{c.c_draft:.2f}',
      f'{c.cycle:.2f}',
      f'{c.overhead:+.1%}',
      f'{c.predicted_speedup(row.tau):.2f}x',
    )
  return result
