"""`sweep`: a `distill` run for every point of a grid, side by side."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
from typing import Any

from absl import flags

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import distill
from specdiff_jax.cli import grid
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks
from specdiff_jax.data import journal
from specdiff_jax.recipes import fields_decoding
from specdiff_jax.recipes import fields_training


def _define(own: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir',
    None,
    'where the runs, the table and the figure go. Needed',
    flag_values=own,
  )
  flags.DEFINE_multi_string(
      'grid', [],
      'FIELD=VALUE,VALUE,...: a field of the config and the values that it '
      'takes. Give it several times for all combinations. Commas within '
      'brackets belong to a value. Needed',
      flag_values=own,
  )  # fmt: skip


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
    values), best_tau, results, figure.
    """,
  define=_define,
  fields=fields_decoding.DECODING | fields_training.TRAINING,
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


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, lambda call: _body(call, argv))


def _body(call: command.Call, argv: Sequence[str]) -> int:
  from specdiff_jax.parallel import processes
  from specdiff_jax.recipes import training as build_training

  workdir = command.needed(call.options, 'workdir')
  points = grid.points(COMMAND, argv, call.options.grid)
  for point in points:
    build_training.check(point.config)
  build_training.start(call.config)
  with contextlib.ExitStack() as stack:
    # Two sweeps would write the same tables, and runs whose values they share.
    lock = os.path.join(workdir, 'sweep.lock')
    processes.on_first(lambda: stack.enter_context(locks.held(lock)))
    return _sweep(call, workdir, points)


def _sweep(
  call: command.Call, workdir: str, points: Sequence[grid.Point]
) -> int:
  """Runs the points of a directory that is held; returns the exit code."""
  from specdiff_jax.parallel import processes
  from specdiff_jax.tools.sweep import table as sweep_lib
  from specdiff_jax.training import metrics

  trainer = _Trainer()
  rows = []
  for number, point in enumerate(points, 1):
    own = os.path.join(workdir, point.name)
    what = f'[{number}/{len(points)}] {point.name}'
    result, failure = {}, ''
    try:
      result, code = trainer.run(point.config, own, what)
      if code:
        return code
      if result['loss'] is None and processes.is_first():
        failure = 'its loss is not a number; lower config.learning_rate'
    except errors.InputError as error:
      failure = str(error)
    if failure:
      console.say(f'{what} failed: {failure}')
    lines = metrics.MetricsWriter(os.path.join(own, 'metrics.jsonl')).read()
    rows.append(sweep_lib.Row(point.values, own, failure, result, lines))
  if processes.is_first():
    _report(call, workdir, rows)
  return 1 if any(row.failure for row in rows) else 0


class _Trainer:
  """Runs one point after another, and keeps what the next may share."""

  def __init__(self):
    self._memory = {}
    self._loaded = None  # (config, verifier)

  def run(self, config, workdir: str, what: str) -> tuple[dict, int]:
    """Returns the figures of a point, and an exit code where it stopped."""
    from specdiff_jax.parallel import processes

    path = os.path.join(workdir, 'result.json')
    recipe = json.loads(json.dumps(config.to_dict()))
    before = _finished(path)
    if before.get('config') == recipe:
      console.say(f'{what}: done before')
      return before['result'], 0
    console.say(f'{what} ...')
    verifier = self._verifier(config)
    result, drafter = distill.train(
      config, verifier, workdir, self._memory, what
    )
    if result.interrupted:
      return {}, distill.stopped(result)
    figures = distill.figures(result) | {'drafter': drafter}
    if processes.is_first() and figures['loss'] is not None:
      made = journal.with_sum({'config': recipe, 'result': figures})
      files.write_json(path, made)
    return figures, 0

  def _verifier(self, config):
    from specdiff_jax.recipes import training as build_training

    if self._loaded is not None:
      if build_training.same_verifier(self._loaded[0], config):
        return self._loaded[1]
      self._loaded = None  # before the next one takes its place in memory
      self._memory.clear()
    split = build_training.placement(config)
    self._loaded = config, command.verifier(config, split)
    return self._loaded[1]


def _finished(path: str) -> Mapping[str, Any]:
  """Returns the config and the figures of a run that is done; else {}.

  From its last checkpoint a run whose figures are damaged comes to them again.
  """
  if not os.path.exists(path):
    return {}
  try:
    found = journal.without_sum(files.read_json(path))
    result = found['result']
    if not isinstance(result['evaluation'], Mapping):
      raise ValueError('its evaluation is no object')
    for name in ('loss', 'tau_eval'):
      if not isinstance(result[name], (int, float, type(None))):
        raise ValueError(f'its {name} is no number')
    return found
  except (KeyError, TypeError, ValueError, errors.InputError) as e:
    console.say(f'{path} is damaged ({e}); that run goes on.')
    return {}


def _report(call: command.Call, workdir: str, rows) -> None:
  """Prints and writes what the runs came to."""
  from specdiff_jax.tools.bench import plots
  from specdiff_jax.tools.bench import report
  from specdiff_jax.tools.sweep import table as sweep_lib

  results = os.path.join(workdir, 'results.json')
  figure = os.path.join(workdir, 'sweep.png')
  files.write_json(results, sweep_lib.as_json(call.recipe, rows))
  out = console.out()
  out.print(report.sweep(rows))
  out.print(report.SWEEP_LEGEND)
  for row in rows:
    if row.failure:
      console.say(f'{row.name} failed: {row.failure}')
  plots.save_sweep(figure, rows, call.recipe)
  console.result(_summary(rows) | {'results': results, 'figure': figure})


def _summary(rows) -> Mapping[str, Any]:
  measured = [row for row in rows if row.result.get('tau_eval')]
  best = max(measured, key=lambda row: row.result['tau_eval'], default=None)
  failed = sum(bool(row.failure) for row in rows)
  return {
    'runs': len(rows),
    'done': len(rows) - failed,
    'failed': failed,
    'best': dict(best.values) if best else None,
    'best_tau': best.result['tau_eval'] if best else None,
  }
