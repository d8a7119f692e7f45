"""Tables of a bench, and what their columns mean."""

from collections.abc import Sequence
import textwrap

from specdiff_jax.core import types
from specdiff_jax.tools import tables
from specdiff_jax.tools.bench import metrics


def table(rows: Sequence[metrics.Row]) -> tables.Table:
  """Returns the main table."""
  columns = 'system', 'tokens/s', 'speed-up', 'over fastest AR', 'tau'
  columns += 'break-even', 'exact'
  graded = any(row.graded for row in rows)
  if graded:
    columns += ('correct',)
  return tables.Table(
    columns,
    [
      (
        row.system + ' (simulated)' * row.simulated,
        f'{row.tokens_per_s:.1f}',
        f'{row.speedup:.2f}x',
        _over(row),
        f'{row.tau:.2f}',
        f'{row.break_even_tau:.2f}' if row.break_even_tau else '-',
        _exact(row),
        *([f'{row.correct:.1%}'] if graded else []),
      )
      for row in rows
    ],
  )


def _over(row: metrics.Row) -> str:
  """Returns the ratio to the fastest plain decoding, with its interval."""
  told = f'{row.speedup_over_fastest_ar:.2f}x'
  if row.interval is None:
    return told
  low, high = row.interval
  return f'{told} ({low:.2f}-{high:.2f})'


def _exact(row: metrics.Row) -> str:
  """Returns the cell that says whether outputs are plain decoding's."""
  if row.exact is None:
    return 'in distribution'
  if row.exact:
    return 'yes'
  wrong = metrics.wrong(row.exact, row.mismatched_rows, row.near_ties)
  ties = row.near_ties
  near = f'{ties} near-tie{"s" * (ties != 1)}'
  return f'NO ({wrong} prompts)' if wrong else near


def curves(rows: Sequence[metrics.Row]) -> tables.Table | None:
  """Returns cond and surv by drafted position; None if nothing was drafted."""
  drafted = [row for row in rows if len(row.histogram) > 1]
  if not drafted:
    return None
  depth = max(len(row.histogram) for row in drafted) - 1
  lines = []
  for row in drafted:
    for name, curve in (
      ('cond', metrics.cond(row.histogram)),
      ('surv', metrics.surv(row.histogram)),
    ):
      cells = ['-' if value is None else f'{value:.2f}' for value in curve]
      cells += [''] * (depth - len(cells))
      lines.append((row.system, name, *cells))
  return tables.Table(
    ('system', 'curve', *map(str, range(1, depth + 1))),
    lines,
    'acceptance by drafted position',
    words=2,
  )


def ends(rows: Sequence[metrics.Row]) -> tables.Table | None:
  """Returns why drafts ended, by accepted tokens; None if none was drafted."""
  drafted = [row for row in rows if row.ends and len(row.histogram) > 1]
  if not drafted:
    return None
  most = max(len(row.histogram) for row in drafted)
  lines = []
  for row in drafted:
    for name, cycles in row.ends.items():
      cells = [f'{count / max(row.cycles, 1):.1%}' for count in cycles]
      lines.append((row.system, name, *cells, *[''] * (most - len(cells))))
  return tables.Table(
    ('system', 'why', *map(str, range(most))),
    lines,
    'why drafts ended, by accepted tokens: share of cycles',
    words=2,
  )


def rivals(
  found: Sequence[metrics.Rival], ar: float, rows: Sequence[metrics.Row]
) -> tables.Table | None:
  """Returns other programs beside plain decoding and the fastest system."""
  best = max(row.tokens_per_s for row in rows)
  lines = []
  for one in found:
    cells = ('-', '-', '-')
    if speed := one.tokens_per_s:
      cells = (f'{speed:.1f}', f'{ar / speed:.2f}x', f'{best / speed:.2f}x')
    lines.append((one.name, one.version, *cells))
  names = 'rival', 'version', 'tokens/s', 'ar over it', 'best over it'
  title = 'other programs, greedy'
  return tables.Table(names, lines, title, words=2) if lines else None


def costs(rows: Sequence[metrics.Row]) -> tables.Table | None:
  """Returns what the cycles cost; None if it was not measured."""
  lines = [
    (
      row.system,
      str(row.verify_tokens),
      f'{c.r:.2f}',
      f'{c.c_draft:.2f}',
      f'{c.cycle:.2f}',
      f'{c.overhead:+.1%}',
      f'{c.predicted_speedup(row.tau):.2f}x',
      f'{row.speedup:.2f}x',
      '-' if (error := row.prediction_error) is None else f'{error:+.1%}',
    )
    for row in rows
    if (c := row.costs) is not None
  ]
  names = ('verified', 'r', 'c_draft', 'cycle', 'overhead')
  names += 'tau / cycle', 'speed-up', 'error'
  title = 'a cycle, in plain steps; predicted and measured'
  return tables.Table(('system', *names), lines, title) if lines else None


def legend(
  rows: Sequence[metrics.Row],
  rounds: int,
  dtype: str,
  fastest: str,
  same_shapes: bool,
) -> str:
  """Returns what the columns mean, a line or two for each."""
  spread = ', in parentheses its 95 % interval, resampled over prompts'
  of_rounds = f'; median of {rounds} interleaved rounds' if rounds > 1 else ''
  ratios = ", the median of the rounds' own ratios" if rounds > 1 else ''
  reference = (
    'plain decoding through the same shapes'
    if same_shapes
    else 'plain decoding at its own fastest shape'
  )
  meanings = {
    'ar': 'plain decoding at its fastest shape',
    'tokens/s': f'decoding without prefill and compilation{of_rounds}',
    'speed-up': f'over ar in {dtype}{ratios}',
    'over fastest AR': f'over ar in any dtype (here {fastest})'
    + spread * any(row.interval for row in rows),
    'tau': 'tokens per call of the verifier, the bonus token included',
    'break-even': 'the tau above which a system is faster than ar: its cycle '
    'over a plain step',
    'exact': f'every output equals {reference}, token for token (near-ties: '
    'outputs that differ by less than rounding moves the logits; in '
    'distribution: the rule draws coins of its own)',
    'cond': 'a drafted position is accepted, given that the one before it was',
    'surv': 'it is accepted, and so are all before it',
    'correct': 'of the prompts that say what a right answer is',
    **{
      name: f'drafts ended there because the next token {why}'
      for name, why in types.ENDS.items()
    },
  }
  if not any(row.graded for row in rows):
    del meanings['correct']
  width = max(map(len, meanings)) + 2
  return '\n'.join(
    textwrap.fill(
      f'{name:<{width}}{meaning}', 80, subsequent_indent=' ' * width
    )
    for name, meaning in meanings.items()
  )
