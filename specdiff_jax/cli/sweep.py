"""`sweep`: a `distill` run for every point of a grid, side by side."""

from collections.abc import Sequence
import os

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import distill
from specdiff_jax.cli import flag
from specdiff_jax.core import files
from specdiff_jax.tools.sweep import grid

_FLAGS = {
  'workdir': flag.Flag('where the runs, the table and the figure go. Needed'),
  'grid': flag.Flag(
    'FIELD=VALUE,VALUE,...: a field of the config and the values that it '
    'takes. Give it several times for all combinations. Commas within '
    'brackets belong to a value. Needed',
    [],
    'multi_string',
  ),
}

COMMAND = command.Command(
  name='sweep',
  what="""
    Trains one drafter, as `distill` does, for every combination of the values
    that --grid gives, and compares them: which loss, how many layers, which
    window.

    Each run has a directory under WORKDIR, named by its values. A sweep that
    was stopped goes on when started again, to the same bits; a run that is
    finished is not run again, and a larger grid adds its new runs. One that
    fails (bad input, or a loss that is not a number) is marked and the others
    go on. The runs share one process: the verifier is loaded once, and what
    it says about the trajectories is computed once, as long as the fields
    that decide them are equal. Give config.data the directory of a `collect`,
    or each run collects for itself.

    Writes WORKDIR/results.json (figures and curves of all runs) and
    WORKDIR/sweep.png (tau over steps, agreement and survival by slot), prints
    a table, and ends with one JSON object: runs, done, failed, best (its
    values), best_tau, results, figure. Runs that differ in their seed alone
    (--grid seed=0,1,2) are one curve, and one more line of the table: their
    mean, with one standard deviation.
    """,
  flags=_FLAGS,
  fields=distill.COMMAND.fields,
  examples=(
    'sweep --config=configs/ablations/losses_smollm2.py '
    '--grid loss=streak,ce,kl --workdir=runs/losses',
    'sweep --config=configs/tiny.py --grid loss=streak,ce '
    '--grid network.layers=1,2 --workdir=runs/tiny_sweep',
    'sweep --config=configs/tiny.py --grid "network.features=(1,),(0,1)" '
    '--workdir=runs/tiny_features',
  ),
  exit_codes={
    0: 'every run is done',
    1: 'some runs failed; the table says which, the lines below it why',
    2: 'bad input; nothing was trained',
    distill.PREEMPTED: 'SIGTERM came; what was trained is saved',
    130: 'interrupted after a checkpoint; run it again to go on',
  },
)


def points(argv: Sequence[str], specs: Sequence[str]) -> list[grid.Point]:
  """Returns the points of `--grid` flags, each parsed after `argv`."""
  return grid.points(lambda more: COMMAND.parse([*argv, *more]).config, specs)


def body(call: command.Call) -> int:
  from specdiff_jax.parallel import processes
  from specdiff_jax.recipes import training
  from specdiff_jax.tools.sweep import runner

  workdir = command.needed(call.options, 'workdir')
  every = points(call.argv, call.options.grid)
  for point in every:
    training.check(point.config)
  training.start(call.config)
  with runner.held(workdir):
    found = runner.run(every, workdir, command.verifier, report=console)
    if found.stopped:
      return distill.stopped(found.stopped)
    if processes.is_first():
      _report(call.recipe, workdir, found)
    return 1 if found.failed else 0


def _report(recipe: str, workdir: str, found) -> None:
  """Prints and writes what the runs yielded."""
  from specdiff_jax.tools.sweep import plots

  results = os.path.join(workdir, 'results.json')
  figure = os.path.join(workdir, 'sweep.png')
  files.write_json(results, found.to_json(recipe))
  console.table(found.table())
  console.out().print(found.legend)
  for row in found.failed:
    console.say(f'{row.name} failed: {row.failure}')
  plots.save(figure, found.rows, recipe)
  console.result(found.summary() | {'results': results, 'figure': figure})
