"""`bench`: the systems side by side, on the same prompts."""

import os

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks
from specdiff_jax.core import printing
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import recipe

_FLAGS = flag.SUITE | {
  'systems': flag.Flag(
    'what to compare: some of the names of config.system', kind='list'
  ),
  'rounds': flag.Flag(
    'interleaved repetitions; their median is reported', None, 'integer', 1
  ),
  'rival': flag.Flag(
    'other programs to time on the same weights, greedily, a prompt at a time: '
    'transformers (generate and its prompt lookup in bfloat16 and float32, and '
    'with sps among the systems assisted generation by the same drafter; needs '
    'the extra [rival]), llama_cpp (plain and prompt lookup on the same '
    'GGUF file; needs llama-cpp-python)',
    kind='list',
  ),
  'costs': flag.Flag(
    "time each system's cycle and its passes (r, c_draft) alone and predict its "
    'speed-up by tau over the cycle; half a minute of compilation a system',
    False,
    'bool',
  ),
  'simulate': flag.Flag(
    'a rate from 0 to 1: drafters with networks run, but each drafted token is '
    "plain decoding's with this probability, if those before it are. Times are "
    'real and texts exact, tau is made up: what a drafter that is not trained '
    'yet would be worth',
    None,
    'float',
  ),
  'trace': flag.Flag(
    'decode the first prompt once more with each system and keep what proposed '
    'each token, for `report`; compiles each system again, after the timing',
    False,
    'bool',
  ),
  'grid': flag.Flag(
    'FIELD=VALUE,VALUE,...: benches for each value of a field of the config '
    '(given several times: all combinations), one file each in the folder '
    '--out; those that are there are not run again',
    [],
    'multi_string',
  ),
  'control': flag.Flag(
    'time plain decoding as two systems, ar and "ar again": how far equal '
    'systems differ on this machine',
    False,
    'bool',
  ),
  'out': flag.Flag(
    'write the JSON object into this file too, for `report`; it is replaced. '
    'With --grid a folder'
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

    With --suite the prompts are those of a standard set: second turns follow
    plain decoding's replies, and the column "correct" has the share of right
    answers where the set says what is right (programs run in a process without
    network or files to write, limited in time and memory).

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
    'bench --config=configs/tiny.py --simulate 0.7',
    'bench --config=configs/quickstart.py --suite mixed --limit 20',
    'bench --config=configs/quickstart.py --grid gamma=2,4,7 --grid '
    'temperature=0.0,1.0 --out=runs/gammas',
    'bench --config=configs/tiny.py --systems ar,specdiff '
    '--config.drafter=runs/tiny/drafter.safetensors',
  ),
  exit_codes={
    0: 'done; every output was exact, or rounding explains its difference',
    1: "an output differed from plain AR's (the table says how many)",
  },
)


def body(call: command.Call) -> int:
  from specdiff_jax.tools import plots

  options = call.options
  if options.plot:
    plots.check(options.plot)
  if options.grid:
    return _grid(call)
  if options.out:  # before it is measured
    files.check_place(options.out)
  found, told = _bench(call.config, options, call.recipe)
  console.result(told)
  if options.out:  # after it was printed: whatever the disk says, it is out
    files.write_json(options.out, told)
  if options.plot:
    found.plot(options.plot)
  return 0 if found.passed else 1


def _bench(config: recipe.Recipe, options, name: str):
  """Runs and prints one bench; returns its result, also as JSON."""
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.bench import runner

  decoding.check(config)
  prompts = _prompts(config, options)
  trained = runner.trained_on(config, prompts, options.systems)
  if trained and options.suite:
    raise errors.InputError(
      f'{len(trained)} prompts of {options.suite} are among those that a drafter '
      f'was trained on ({printing.names(trained[:5])}), so that its figures '
      'would not be held out; take another part of the set, or another drafter.'
    )
  if trained:
    console.say(
      f'{len(trained)} prompts are among those that a drafter was trained on '
      f'({printing.names(trained[:5])}): its figures are not held out.'
    )
  found = runner.run(
    config,
    command.verifier(config),
    prompts,
    options.systems,
    options.rounds,
    costs=options.costs,
    control=options.control,
    trace=options.trace,
    rivals=options.rival or (),
    simulate=options.simulate,
    report=console,
    on_warm=_example,
  )
  for table in found.tables():
    console.table(table)
  for line in found.legend().splitlines():
    console.out().print(line)
  told = found.to_json(name)
  if trained:
    told['trained_on'] = trained
  return found, told


def _grid(call: command.Call) -> int:
  """Runs a bench for every point of a grid; those that are done stay."""
  from specdiff_jax.recipes import decoding
  from specdiff_jax.tools.bench import points
  from specdiff_jax.tools.sweep import grid

  options, folder = call.options, command.needed(call.options, 'out')
  if options.plot:
    raise errors.InputError(
      '--plot draws one bench, but --grid makes several; leave it out, and make '
      'a report of the folder --out.'
    )
  every = grid.points(
    lambda more: COMMAND.parse([*call.argv, *more]).config, options.grid
  )
  for point in every:
    decoding.check(point.config)
  how = [options.systems, options.rounds, options.costs, options.rival]
  how += [options.simulate, options.control, options.trace]
  results = []
  # Two at once would measure all of it twice; and a folder that cannot be written
  # to is told of before anything is measured.
  with locks.held(os.path.join(folder, 'grid.lock')):
    for number, point in enumerate(every, 1):
      path = os.path.join(folder, f'{point.name}.json')
      prompts = _prompts(point.config, options)
      sources = points.sources(point.config)
      identity = points.identity(point.config, prompts, [*how, *sources])
      told = points.finished(path, identity)
      console.say(
        f'[{number}/{len(every)}] {point.name}{": done before" * bool(told)}'
      )
      if not told:
        found, told = _bench(point.config, options, call.recipe)
        told['grid'] = {
          'values': dict(point.values),
          'identity': identity,
          'passed': found.passed,
        }
        files.write_json(path, told)
      results.append(told)
  console.table(points.table(results))
  passed = all(told['grid']['passed'] for told in results)
  console.result({'points': len(results), 'out': folder, 'passed': passed})
  return 0 if passed else 1


def _prompts(config: recipe.Recipe, options):
  """Returns the prompts of a suite, or of a file, or of the recipe."""
  from specdiff_jax.data import suites
  from specdiff_jax.recipes import decoding

  if not options.suite:
    if options.path:
      raise errors.InputError(
        '--path is the file of a --suite, which is not given; give it, or '
        '--prompts.'
      )
    return decoding.prompts(config, options.prompts, options.limit)
  if options.prompts:
    raise errors.InputError(
      'There are both --suite and --prompts; give the file of a suite as '
      '--path, or leave --suite out.'
    )
  return suites.read(options.suite, options.path or '', options.limit or None)


def _example(system, request) -> None:
  """Shows one prompt's completion while it is decoded."""
  console.text(f'{system.name} decodes {request.id}:\n\n')
  console.stream(system, request)
  console.text('\n')
