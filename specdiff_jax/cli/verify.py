"""`verify`: a certificate that drafting does not change the output."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import recipe

_FLAGS = flag.PROMPTS | {
  'systems': flag.Flag(
    'what to verify: some of the names of config.system but '
    'ar; without it config.systems',
    kind='list',
  ),
  'fast': flag.Flag(
    'decode as `bench` does when it is fast: in config.dtype, and plain AR '
    'through its own fastest shape. A difference passes if the verifier was '
    'undecided there: by no more than its logits move between the shapes',
    False,
    'bool',
  ),
}

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
    Rounding then differs between the two, and can flip a near-tie. For the
    first difference of each prompt it reports the margin by which the verifier
    preferred its choice (of the logits, or above temperature 0 of log p + the
    noise that is keyed by the position), beside the margin that rounding
    explains: the largest move of a margin between a likely token and the best,
    when the verifier reads the run's own texts in both ways, along a branch of
    the system's tree if it drafts trees. A greater margin is a failure.

    Only config.rule=match gives plain decoding's very tokens. The other rules
    give its distribution, which the tests prove by enumeration; verify refuses
    them.

    It prints a certificate: what was verified, and a table. The last line of
    stdout is one JSON object.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING)
  | recipe.described(groups.Bench, only=('prompts', 'limit', 'systems')),
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
  },
)


def body(call: command.Call) -> int:
  """Runs the subcommand; returns its exit code."""
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.exactness import certificate
  from specdiff_jax.tools.exactness import plan

  options = call.options
  config = plan.settle(call.config, options.fast)
  prompts = decoding.prompts(config, options.prompts, options.limit)
  checkpoint = command.verifier(config)
  found = certificate.verify(
    config, checkpoint, prompts, options.systems, report=console
  )
  for line in found.head():
    console.out().print(line)
  for table in found.tables():
    console.table(table)
  console.out().print(found.verdict())
  console.result(found.to_json())
  return 0 if found.passed else 1
