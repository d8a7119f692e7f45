"""`aot`: compiles for a TPU pod on any machine, and says whether it fits."""

from typing import Any

from absl import flags

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.recipes import recipe

_ROWS = 6  # of the largest arrays and collectives
_DOES_NOT_FIT = 3


def _define(own: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'topology',
    None,
    'chips to compile for: generation and shape, as v5p:4x4x4. Needed',
    flag_values=own,
  )
  flags.DEFINE_integer(
    'slices',
    1,
    'how many of these, joined by the data centre network; the '
    'first axis of config.mesh goes over them',
    flag_values=own,
  )
  flags.DEFINE_enum(
    'program',
    'train',
    ['train', 'decode'],
    'a step of `distill`, with the verifier running in it where the drafter '
    'reads its features; or the loop of `decode` over config.batch rows',
    flag_values=own,
  )


COMMAND = command.Command(
  name='aot',
  what="""
    Compiles a program of the recipe for a TPU topology, without a TPU, weights
    or data: config.verifier may be preset:NAME, the shape of a published model
    (`inspect preset:` lists them), and config.drafter 'random' or preset:NAME
    of a masked language model. An axis of config.mesh that is -1 takes what the
    topology has.

    Says what each chip has to hold at its peak and of what that is made, the
    FLOPs of one step or one cycle (a token for each row and slot), and the
    collectives, those within loops as often as these turn. It tells no times.

    It needs the compiler: pip install 'specdiff_jax[tpu]'. The last line of
    stdout is one JSON object: topology, fits, peak_bytes, limit_bytes,
    flops_per_chip, collectives ({kind: {count, bytes}}) and more.
    """,
  define=_define,
  fields=recipe.described(*recipe.DECODING, *recipe.TRAINING),
  examples=(
    'aot --config=configs/qwen2_5_72b_7b.py --topology=v5p:4x4x4',
    'aot --config=configs/qwen2_5_72b_7b.py --topology=v5p:2x2x4 '
    '--program=decode --config.batch=16',
    'aot --config=configs/distill_smollm2.py --topology=v5e:4x4 --slices=2 '
    '--config.batch=64',
  ),
  exit_codes={
    0: 'it fits',
    2: 'bad input; the message says what and where, and what to do',
    3: 'it does not fit; the advice says what to change',
  },
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  import jax

  jax.config.update('jax_platforms', 'cpu')  # chips that are here stay free
  from specdiff_jax.tools.aot import lowering as build_aot
  from specdiff_jax.tools.aot import memory

  name = command.needed(call.options, 'topology')
  devices, limit = build_aot.devices(name, call.options.slices)
  program = build_aot.program(call.config, call.options.program, devices)
  console.say(f'Compiling for {len(devices)} devices ...')
  outcome = memory.compiled(program.lowered, limit)
  advice = [] if outcome.fits else memory.advice(program.held, outcome)
  _show(program, outcome, advice)
  console.result(
    {
      'topology': name,
      'slices': call.options.slices,
      'program': call.options.program,
      'mesh': program.mesh,
      'chips': len(devices),
      'fits': outcome.fits,
      'peak_bytes': outcome.peak,
      'limit_bytes': outcome.limit,
      'memory': dict(outcome.parts),
      'held': dict(program.held),
      'flops_per_chip': outcome.costs and outcome.costs.flops,
      'collectives': outcome.costs.collectives() if outcome.costs else {},
      'largest': [
        vars(x) for x in (outcome.costs.arrays if outcome.costs else ())[:_ROWS]
      ],
      'not_split': list(program.whole),
      'advice': advice,
      'compile_seconds': round(outcome.seconds, 1),
    }
  )
  return 0 if outcome.fits else _DOES_NOT_FIT


def _show(program: Any, outcome: Any, advice: list[str]) -> None:
  """Prints the tables."""
  _table('each chip', ['what', 'bytes'], _memory(program, outcome))
  if costs := outcome.costs:
    console.out().print(f'FLOPs of each chip: {costs.flops:.4g}')
    rows = [
      (x.kind, f'{x.count:,}', console.size(x.nbytes), x.shape, _end(x.label))
      for x in costs.traffic[:_ROWS]
    ]
    _table('collectives', ['kind', 'count', 'bytes', 'of', 'name'], rows)
    rows = [
      (console.size(x.nbytes), x.shape, _end(x.label))
      for x in costs.arrays[:_ROWS]
    ]
    _table('largest arrays', ['bytes', 'shape', 'name'], rows)
  whole = [f'Held whole by every chip: {line}' for line in program.whole]
  for line in (*whole, outcome.allocations, *advice):
    if line:
      console.out().print(line)


def _memory(program: Any, outcome: Any):
  """Yields the rows of the first table."""
  for name, count in program.held.items():
    yield f'holds {name}', console.size(count)
  for name, count in outcome.parts.items():
    yield name, console.size(count)
  fits = 'fits in' if outcome.fits else 'does not fit in'
  limit = console.size(outcome.limit) if outcome.limit else 'an unknown amount'
  yield 'peak', f'{console.size(outcome.peak)}, which {fits} {limit}'


def _table(title: str, columns: list[str], rows) -> None:
  import rich.table

  table = rich.table.Table(title=title, title_justify='left')
  for column in columns:
    table.add_column(column, overflow='fold')
  for row in rows:
    table.add_row(*map(str, row))
  console.out().print(table)


def _end(label: str, size: int = 60) -> str:
  """Returns the end of a long name, which tells most."""
  return label if len(label) <= size else '...' + label[3 - size :]
