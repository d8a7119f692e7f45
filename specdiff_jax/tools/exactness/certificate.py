"""The certificate that drafting does not change the output."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import reporting
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.tools import tables
from specdiff_jax.tools.exactness import plan as plan_lib
from specdiff_jax.tools.exactness import verification

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Certificate:
  """What was verified, and every difference that was found."""

  rows: Sequence[verification.Row]
  facts: Mapping[str, Any]  # what was verified, and where
  names: Mapping[int, str]  # ids of the prompts, by number of the request
  decode: Callable[[Sequence[int]], str] = dataclasses.field(repr=False)

  @property
  def passed(self) -> bool:
    """Whether no output differs by more than rounding explains."""
    return all(row.passed for row in self.rows)

  def to_json(self) -> dict[str, Any]:
    """Returns what the last line of `verify` holds."""
    summary = verification.summary(self.rows)
    for line in summary['systems']:
      for found in line['divergences']:
        found['prompt'] = self.names[found.pop('request')]
    return {'schema': SCHEMA, **summary, **self.facts}

  def head(self) -> list[str]:
    """Returns a line for each fact."""
    wide = max(map(len, self.facts))
    return [
      f'{name:<{wide}}  {value}'
      for name, value in self.facts.items()
      if value not in ('', {})
    ]

  def tables(self) -> list[tables.Table]:
    """Returns the table of systems, and one of the differences if any."""
    differ = any(row.report.divergences for row in self.rows)
    columns = ('system', 'T', 'batch', 'prompts', 'tokens compared')
    columns += ('mismatches', 'worst margin', 'allowed', 'equal')
    systems = tables.Table(columns, [_line(row) for row in self.rows])
    return [systems, *([_differences(self)] if differ else ())]

  def verdict(self) -> str:
    """Returns the last words."""
    summary = verification.summary(self.rows)
    what = f'{summary["prompts"]} prompts, {summary["tokens"]} tokens compared'
    if not summary['mismatches']:
      return f'Equal to plain decoding, token for token: {what}.'
    bad = [row.system for row in self.rows if not row.passed]
    if not bad:
      return (
        f'Equal to plain decoding up to rounding: {what}. Every difference '
        'is at a near-tie that rounding flipped.'
      )
    why = 'Rounding does not explain a margin above the allowed one'
    if self.facts['mode'] == 'exact':
      why = f'Through the same shapes a chain may not differ at all. {why}'
    where = ', '.join(dict.fromkeys(bad))
    return f'NOT equal to plain decoding: {where}; {what}. {why}: a bug.'


def _line(row: verification.Row) -> tuple[str, ...]:
  found = row.report.divergences
  return (
    row.system,
    f'{row.temperature:g}',
    str(row.batch),
    str(row.prompts),
    str(row.report.tokens),
    str(len(found)),
    f'{row.report.worst_margin:.4f}' if found else '-',
    f'{found[0].allowed:.4f}' if found and not row.exact else '-',
    ('within rounding' if found else 'yes') if row.passed else 'NO',
  )


def _differences(certificate: Certificate) -> tables.Table:
  """Returns a line for the first difference of each prompt."""
  columns = ('system', 'T', 'batch', 'prompt', 'token', 'plain', 'drafted')
  columns += ('top-2 margin', 'margin')

  def shown(token: int | None) -> str:
    if token is None:
      return '(end)'
    return f'{token} {certificate.decode([token])!r}'

  lines = [
    (
      row.system,
      f'{row.temperature:g}',
      str(row.batch),
      certificate.names[d.number],
      str(d.index),
      shown(d.expected),
      shown(d.got),
      f'{d.top2:.4f}',
      f'{d.margin:.4f}',
    )
    for row in certificate.rows
    for d in row.report.divergences
  ]
  title = 'first difference of each prompt'
  return tables.Table(columns, lines, title, words=7)


def verify(
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  prompts: Sequence[prompts_lib.Prompt],
  names: Sequence[str] | None = None,
  *,
  report: reporting.Reporter = reporting.SILENT,
) -> Certificate:
  """Returns the certificate of systems on prompts.

  Args:
    config: of `plan.settle`.
    checkpoint: the verifier, loaded by that config.
    prompts: what every system decodes.
    names: systems; by default those of the config.
    report: shows a bar.
  """
  plan = plan_lib.plan(config, checkpoint, names)
  requests = decoding.requests(config, checkpoint, prompts)
  rows = []
  # Other than CPUs multiply float32 at a lower precision unless they are told.
  precision = 'highest' if plan.exact else None
  with (
    jax.default_matmul_precision(precision),
    report.progress('verifying', len(plan)) as show,
  ):
    show(0, len(plan))
    for row in plan.rows(requests):
      rows.append(row)
      show(len(rows), len(plan), row.system)
  return Certificate(
    rows,
    {
      'verifier': checkpoint.source,
      'fingerprint': checkpoint.fingerprint,
      'mode': 'exact' if plan.exact else 'fast',
      **plan.facts,
      'device': decoding.device(),
      'jax': jax.__version__,
    },
    {request.number: request.id for request in requests},
    checkpoint.tokenizer.decode,
  )
