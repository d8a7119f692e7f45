"""`verify`: a certificate that drafting does not change the output."""

from collections.abc import Sequence

from absl import flags
import rich.table

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.recipes import recipe


def _define(own: flags.FlagValues) -> None:
  command.define_prompts(own)
  flags.DEFINE_list(
    'systems',
    None,
    'what to verify: some of the names of config.system but '
    'ar; without it config.systems',
    flag_values=own,
  )
  flags.DEFINE_bool(
    'fast',
    False,
    'decode as `bench` does when it is fast: in config.dtype, and plain AR '
    'through its own fastest shape. A difference passes if the verifier was '
    'undecided there: by no more than its logits move between the shapes',
    flag_values=own,
  )


COMMAND = command.Command(
  name='verify',
  what="""
    Checks on your verifier, drafter and prompts that drafting changes nothing:
    every system decodes the prompts at temperature 0 and at config.temperature
    (1.0 if that is 0), one at a time and in batches of config.batch, and has to
    give the tokens of plain AR decoding with the same seed. It runs in float32,
    plain AR through the same shapes as the system, and then no token of a chain
    may differ; of a tree only where rounding explains it, since a branch's keys
    lie elsewhere in the cache while it is scored.

    With --fast it runs in config.dtype, plain AR through its fastest shape.
    Rounding then differs between the two, and can turn a near-tie. For the
    first difference of each prompt it reports the margin by which the verifier
    preferred its choice (of the logits, or above temperature 0 of log p + the
    noise that is keyed by the position), beside the margin that rounding
    explains: the largest move of a margin between a likely token and the best,
    when the verifier reads the run's own texts in both ways, along a branch of
    the system's tree if it drafts trees. A greater margin is a failure.

    Only config.rule=match gives plain decoding's very tokens. The other rules
    give its law, which the tests prove by enumeration; verify refuses them.

    It prints a certificate: what was verified, and a table. The last line of
    stdout is one JSON object.
    """,
  define=_define,
  fields=recipe.described(*recipe.DECODING)
  | recipe.described(recipe.Bench, only=('prompts', 'limit', 'systems')),
  examples=(
    'verify --config=configs/quickstart.py',
    'verify --config=configs/quickstart.py --fast --prompts my.jsonl '
    '--limit 8 --config.batch=4 --config.temperature=0.7',
    'verify --config=configs/tiny.py --systems '
    'lookup,specdiff,specdiff2,tree,best_first',
  ),
  exit_codes={
    0: 'every output equals plain decoding (trees, and with --fast all: '
    'every difference is within the rounding)',
    1: 'an output differs; the table says where',
    2: 'bad input; the message says what and where, and what to do',
  },
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  import jax

  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.exactness import plan as build_verify
  from specdiff_jax.tools.exactness import verification

  options = call.options
  config = build_verify.settle(call.config, options.fast)
  prompts = decoding.prompts(config, options.prompts, options.limit)
  checkpoint = command.verifier(config)
  plan = build_verify.plan(config, checkpoint, options.systems)
  requests = decoding.requests(config, checkpoint, prompts)
  rows = []
  # Other than CPUs multiply float32 at a lower precision unless they are told.
  precision = 'highest' if plan.exact else None
  with (
    jax.default_matmul_precision(precision),
    console.progress('verifying', len(plan)) as show,
  ):
    for row in plan.rows(requests):
      rows.append(row)
      show(len(rows), len(plan), row.system)
  summary = verification.summary(rows)
  facts = {
    'verifier': checkpoint.source,
    'fingerprint': checkpoint.fingerprint,
    'mode': 'exact' if plan.exact else 'fast',
    **plan.facts,
    'device': decoding.device(),
    'jax': jax.__version__,
  }
  names = {request.number: request.id for request in requests}
  for line in summary['systems']:
    for found in line['divergences']:
      found['prompt'] = names[found.pop('request')]
  _show(rows, summary, facts, names, checkpoint.tokenizer.decode)
  console.result({'schema': 1, **summary, **facts})
  return 0 if summary['passed'] else 1


def _show(rows, summary, facts, names, decode) -> None:
  """Prints the certificate."""
  out = console.out()
  wide = max(map(len, facts))
  for name, value in facts.items():
    if value != {}:
      out.print(f'{name:<{wide}}  {value}')
  out.print(table(rows))
  if summary['mismatches']:
    out.print(differences(rows, names, decode))
  out.print(_verdict(rows, summary, facts['mode'] == 'exact'))


def table(rows: Sequence) -> rich.table.Table:
  """Returns a line for each system, temperature and batch."""
  result = rich.table.Table()
  result.add_column('system')
  columns = ('T', 'batch', 'prompts', 'tokens compared')
  for name in (*columns, 'mismatches', 'worst margin', 'allowed', 'equal'):
    result.add_column(name, justify='right')
  for row in rows:
    found = row.report.divergences
    result.add_row(
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
  return result


def differences(rows: Sequence, names, decode) -> rich.table.Table:
  """Returns a line for the first difference of each prompt."""
  result = rich.table.Table(title='first difference of each prompt')
  for name in ('system', 'T', 'batch', 'prompt', 'token', 'plain', 'drafted'):
    result.add_column(name)
  for name in ('top-2 margin', 'margin'):
    result.add_column(name, justify='right')
  for row in rows:
    for d in row.report.divergences:
      result.add_row(
        row.system,
        f'{row.temperature:g}',
        str(row.batch),
        names[d.number],
        str(d.index),
        *(_token(decode, token) for token in (d.expected, d.got)),
        f'{d.top2:.4f}',
        f'{d.margin:.4f}',
      )
  return result


def _token(decode, token: int | None) -> str:
  return '(end)' if token is None else f'{token} {decode([token])!r}'


def _verdict(rows, summary, exact: bool) -> str:
  """Returns the last words."""
  what = f'{summary["prompts"]} prompts, {summary["tokens"]} tokens compared'
  if not summary['mismatches']:
    return f'Equal to plain decoding, token for token: {what}.'
  bad = [row for row in rows if not row.passed]
  if not bad:
    return (
      f'Equal to plain decoding up to rounding: {what}. Every difference '
      'is at a near-tie that rounding turned.'
    )
  where = ', '.join(dict.fromkeys(row.system for row in bad))
  why = 'Rounding does not explain a margin above the allowed one'
  if exact:
    why = f'Through the same shapes a chain may not differ at all. {why}'
  return f'NOT equal to plain decoding: {where}; {what}. {why}: a bug.'
