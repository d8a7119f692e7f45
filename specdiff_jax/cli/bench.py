"""`bench`: the systems side by side, on the same prompts."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import files
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import recipe

_FLAGS = flag.PROMPTS | {
  'systems': flag.Flag(
    'what to compare: some of the names of config.system', kind='list'
  ),
  'rounds': flag.Flag(
    'interleaved repetitions; their median is reported', None, 'integer', 1
  ),
  'rival': flag.Flag(
    'other programs to time on the same weights, greedily, a prompt at a time: '
    'transformers (generate and its prompt lookup in bfloat16 and float32; '
    'needs the extra [rival]), llama_cpp (plain and prompt lookup on the same '
    'GGUF file; needs llama-cpp-python)',
    kind='list',
  ),
  'costs': flag.Flag(
    "time the parts of each system's cycle alone (r, c_draft, overhead) and "
    'predict its speed-up from them; half a minute of compilation a system',
    False,
    'bool',
  ),
  'trace': flag.Flag(
    'decode the first prompt once more with each system and keep what proposed '
    'each token, for `report`; compiles each system again, after the timing',
    False,
    'bool',
  ),
  'out': flag.Flag(
    'write the JSON object into this file too, for `report`; it is replaced'
  ),
  'plot': flag.Flag('draw the result into this .png, .svg or .pdf'),
}

COMMAND = command.Command(
  name='bench',
  what="""
    Decodes the same prompts with several systems in turns, after a warm-up on
    the same shapes: by default plain AR decoding (ar), prompt lookup (lookup)
    and the trained diffusion drafter (specdiff). It shows one example as it is
    decoded, then a table: tokens/s, speed-up over plain AR, tau (tokens for
    each call of the verifier, the bonus token included), and whether every
    output equals plain AR's, token for token.

    A system that chooses among shapes, and all with config.exact=False, are
    compared with plain AR at its fastest shape: outputs that differ by no
    more than rounding explains are counted as near-ties.

    The last line of stdout is one JSON object with "schema": 1.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING, groups.Bench),
  examples=(
    'bench --config=configs/quickstart.py',
    'bench --config=configs/quickstart.py --prompts my.jsonl --limit 32 '
    '--config.temperature=1.0 --config.max_new_tokens=256',
    'bench --config=configs/quickstart.py --costs --trace '
    '--out quickstart.json',
    'bench --config=configs/tiny.py --systems ar,specdiff '
    '--config.drafter=runs/tiny/drafter.safetensors',
  ),
  exit_codes={
    0: 'done; every output was exact, or rounding explains its difference',
    1: "an output differed from plain AR's (the table says how many)",
  },
)


def body(call: command.Call) -> int:
  """Runs the subcommand; returns its exit code."""
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools import plots
  from specdiff_jax.tools.bench import runner

  config, options = call.config, call.options
  if options.plot:
    plots.check(options.plot)
  decoding.check(config)
  prompts = decoding.prompts(config, options.prompts, options.limit)
  found = runner.run(
    config,
    command.verifier(config),
    prompts,
    options.systems,
    options.rounds,
    costs=options.costs,
    trace=options.trace,
    rivals=options.rival or (),
    report=console,
    on_warm=_example,
  )
  for table in found.tables():
    console.table(table)
  console.out().print(found.legend())
  told = found.to_json(call.recipe)
  console.result(told)
  if options.out:  # after it was printed: whatever the disk says, it is out
    files.write_json(options.out, told)
  if options.plot:
    found.plot(options.plot)
  return 0 if found.passed else 1


def _example(system, request) -> None:
  """Shows one prompt's completion while it is decoded."""
  console.text(f'{system.name} decodes {request.id}:\n\n')
  console.stream(system, request)
  console.text('\n')
