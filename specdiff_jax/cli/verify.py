"""`verify`: a certificate that drafting does not change the output."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import errors
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
  'drafter': flag.Flag(
    'check the drafters of the systems instead: that each is served as it was '
    'trained',
    False,
    'bool',
  ),
  'against': flag.Flag(
    'with --drafter: what is served in place of the drafter, such as the '
    'directory that it was exported to'
  ),
  'tolerance': flag.Flag(
    'with --drafter: the largest difference of two log-probabilities that '
    'passes',
    1e-3,
    'float',
    0,
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

    With --drafter it compares the two sides of each trained drafter instead.
    Recorded texts (of config.data, else greedy ones of the prompts) pass
    through the forward that its loss sees, and through the decode engine, with
    prefill, passes of the verifier and caches, as far as each draft is right;
    the log-probabilities of every slot have to be the same. Of a drafter that
    goes on from its own tokens slots count up to the first that is not the
    text's; a head (config.head) is compared after the text's own tokens; the
    second drafter of d2sd is shown beginnings of its windows.

    It prints a certificate: what was verified, and a table. The last line of
    stdout is one JSON object.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING)
  | recipe.described(groups.Bench, only=('prompts', 'limit', 'systems'))
  | recipe.described(groups.Training, only=('data',)),
  examples=(
    'verify --config=configs/quickstart.py',
    'verify --config=configs/quickstart.py --fast --prompts my.jsonl '
    '--limit 8 --config.batch=4 --config.temperature=0.7',
    'verify --config=configs/tiny.py --systems '
    'lookup,specdiff,specdiff2,tree,best_first',
    'verify --drafter --config=configs/quickstart.py --systems specdiff,sps',
  ),
  exit_codes={
    0: 'every output equals plain decoding (trees, and with --fast all: '
    'every difference is within the rounding); with --drafter: no score '
    'differs by more than --tolerance',
    1: 'an output or a score differs; the table says where',
  },
)


def body(call: command.Call) -> int:
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.exactness import certificate
  from specdiff_jax.tools.exactness import plan

  options = call.options
  config = plan.settle(call.config, options.fast)
  if options.drafter:
    if options.fast:
      raise errors.InputError(
        '--fast is about systems, but drafters are compared in float32; leave '
        'out --fast or --drafter.'
      )
    return _drafters(config, options)
  for name in ('against', 'tolerance'):
    if options[name].present:
      raise errors.InputError(
        f'--{name} says how drafters are checked; give --drafter with it.'
      )
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


def _drafters(config: recipe.Recipe, options) -> int:
  """Checks that drafters are served as they were trained."""
  from specdiff_jax.tools.exactness import served

  found = served.check(
    config,
    command.verifier(config),
    options.systems,
    options.prompts,
    options.limit,
    against=options.against or '',
    tolerance=options.tolerance,
    report=console,
  )
  console.table(found.table())
  console.out().print(found.verdict())
  console.result(found.to_json())
  return 0 if found.passed else 1
