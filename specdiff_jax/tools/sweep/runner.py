"""Runs the points of a grid one after another, and goes on with a sweep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import os
from typing import Any

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks
from specdiff_jax.core import reporting
from specdiff_jax.data import journal
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import runs
from specdiff_jax.recipes import training
from specdiff_jax.tools.sweep import grid
from specdiff_jax.tools.sweep import table
from specdiff_jax.training import loop
from specdiff_jax.training import metrics

# (config, how to split the weights) -> the verifier; see `decoding.verifier`.
Load = Callable[[recipe_lib.Recipe, Any], weights.Checkpoint]


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
  """Keeps other sweeps out of a directory; InputError where one is in it.

  Two would write the same tables, and runs whose values they share.
  """
  with contextlib.ExitStack() as stack:
    lock = os.path.join(workdir, 'sweep.lock')
    processes.on_first(lambda: stack.enter_context(locks.held(lock)))
    yield


def run(
  points: Sequence[grid.Point],
  workdir: str,
  load: Load = lambda config, split: decoding.verifier(config, split=split),
  *,
  report: reporting.Reporter = reporting.SILENT,
) -> table.Sweep:
  """Trains every point that is not done, each in a directory under `workdir`.

  A run that fails is marked and the others go on; one that is interrupted ends
  the sweep. The directory has to be `held`.
  """
  trainer = _Trainer(load, report)
  rows = []
  for number, point in enumerate(points, 1):
    folder = os.path.join(workdir, point.name)
    what = f'[{number}/{len(points)}] {point.name}'
    result, failure = {}, ''
    try:
      result, stopped = trainer.run(point.config, folder, what)
      if stopped:
        return table.Sweep(rows, stopped)
      if result['loss'] is None and processes.is_first():
        failure = 'its loss is not a number; lower config.learning_rate'
    except errors.InputError as error:
      failure = str(error)
    if failure:
      report.say(f'{what} failed: {failure}')
    path = os.path.join(folder, 'metrics.jsonl')
    lines = metrics.MetricsWriter(path).read()
    rows.append(table.Row(point.values, folder, failure, result, lines))
  return table.Sweep(rows)


class _Trainer:
  """Runs one point after another, and keeps what the next may share."""

  def __init__(self, load: Load, report: reporting.Reporter):
    self._load, self._report = load, report
    self._memory = {}
    self._loaded = None  # (config, verifier)

  def run(
    self, config: recipe_lib.Recipe, workdir: str, what: str
  ) -> tuple[dict[str, Any], loop.Result | None]:
    """Returns the figures of a point, or the result where it was stopped."""
    path = os.path.join(workdir, 'result.json')
    recipe = json.loads(json.dumps(config.flat()))
    before = finished(path, self._report)
    # Done is what was made of these very files, and is still there.
    folders, prompts = training.data(config, workdir)
    start = build_drafters.shipped(config.training.start_from)
    sources = files.contents([start, *([prompts] if prompts else folders)])
    same = before.get('sources', sources) == sources
    made = os.path.basename(before.get('result', {}).get('drafter') or '-')
    same &= os.path.exists(os.path.join(workdir, made))
    if before.get('config') == recipe and same:
      self._report.say(f'{what}: done before')
      return before['result'], None
    self._report.say(f'{what} ...')
    result, drafter = runs.train(
      config,
      self._verifier(config),
      workdir,
      self._memory,
      what,
      report=self._report,
    )
    if result.interrupted:
      return {}, result
    figures = runs.figures(result) | {'drafter': drafter}
    if processes.is_first() and figures['loss'] is not None:
      made = journal.with_sum(
        {'config': recipe, 'result': figures, 'sources': sources}
      )
      files.write_json(path, made)
    return figures, None

  def _verifier(self, config: recipe_lib.Recipe) -> weights.Checkpoint:
    if self._loaded is not None:
      if training.same_verifier(self._loaded[0], config):
        return self._loaded[1]
      self._loaded = None  # before the next one takes its place in memory
      self._memory.clear()
    self._loaded = config, self._load(config, training.placement(config))
    return self._loaded[1]


def finished(path: str, report: reporting.Reporter) -> Mapping[str, Any]:
  """Returns the config and the figures of a run that is done; else {}.

  From its last checkpoint a run whose figures are damaged yields them again.
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
  except (KeyError, TypeError, ValueError) as e:
    report.say(f'{path} is damaged ({e}); that run goes on.')
    return {}
