"""From a recipe to trajectories and to a trained drafter, on the disk."""

from collections.abc import Sequence
import os
import time
from typing import Any

import jax

from specdiff_jax.checkpoints import weights
from specdiff_jax.collecting import collect as collect_lib
from specdiff_jax.core import reporting
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import windows
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import collecting
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import training
from specdiff_jax.training import loop


def collect(
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  wanted: Sequence[collect_lib.Request],
  workdir: str,
  system: str = '',
  facts: dict[str, Any] | None = None,
  *,
  report: reporting.Reporter = reporting.SILENT,
) -> dict[str, Any]:
  """Collects what is missing in `workdir`; returns the closing figures.

  `system` drafts, else the one of the config; `facts`: see
  `collecting.collect`.
  """
  start = time.perf_counter()
  with report.progress('collecting', len(wanted)) as show:

    def tell(done: int, total: int, tokens: int) -> None:
      speed = tokens / (time.perf_counter() - start)
      show(done, total, f'{speed:.0f} tokens/s')

    found = collecting.collect(
      config, checkpoint, wanted, workdir, tell, system, facts
    )
  seconds = time.perf_counter() - start
  return {
    'prompts': found.pop('prompts'),
    'tokens': found['tokens'],
    'tokens_per_s': round(found.pop('tokens') / seconds, 3),
    **found,
    'verifier': checkpoint.fingerprint,
    'workdir': workdir,
  }


def complete(
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  prompts: Sequence[prompts_lib.Prompt],
  workdir: str,
  system: str = '',
  *,
  report: reporting.Reporter = reporting.SILENT,
) -> dict[str, Any]:
  """Collects the config's completions of prompts; see `collect`."""
  collecting.check(config)
  wanted = collecting.requests(config, checkpoint, prompts)
  return collect(config, checkpoint, wanted, workdir, system, report=report)


def train(
  config: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  workdir: str,
  memory: dict[Any, dict] | None = None,
  what: str = 'distilling',
  *,
  report: reporting.Reporter = reporting.SILENT,
) -> tuple[loop.Result, str]:
  """Trains in `workdir`; returns the result and the drafter's file.

  Collects the trajectories first if there are only prompts. An interrupted run
  leaves no drafter. `memory`: see `training.run`; `what`: what the bar shows.
  """
  folders, prompts_file = training.data(config, workdir)
  if prompts_file:
    prompts = decoding.prompts(config, prompts_file, 0)
    # There is no drafter yet; lookup drafts for it, to the same tokens.
    complete(config, checkpoint, prompts, folders[0], 'lookup', report=report)
  run = training.run(config, checkpoint, folders, workdir, memory)
  known = run.student.seen & windows.hashes(run.data.held_out)
  if known and processes.is_first():
    report.say(
      f'{len(known)} held-out prompts are among those that config.start_from was '
      'trained on: tau on held-out trajectories flatters this run.'
    )
  if idle := jax.device_count() - run.placement.mesh.size:
    report.say(f'config.mesh leaves {idle} devices idle.')
  for line in run.not_split() if processes.is_first() else ():
    report.say(f'Held whole by every device: {line}')
  name = 'head' if config.training.head_kind else 'drafter'
  path = os.path.join(workdir, f'{name}.safetensors')
  before = (
    f'; it had come to 0 when the {name} there was finished, and fractions of '
    'the steps, such as config.ce_fraction, are of the new total'
  )
  before *= os.path.exists(path)
  with report.progress(what, run.schedule.steps) as show:
    new = True

    def tell(step: int, steps: int, values: dict[str, Any]) -> None:
      nonlocal new
      if new and step > 1 and processes.is_first():
        rate = training.learning_rate(config, step - 1)
        report.say(
          f'Goes on after step {step - 1}: the learning rate there is {rate:.3g}, '
          f'on the cosine to 0 at config.steps={steps}{before}.'
        )
      new = False
      names = [name for name in ('loss', 'streak') if name in values]
      note = ' '.join(f'{name} {float(values[name]):.3f}' for name in names)
      show(step, steps, note)

    result = run.train(tell, report.say)
  if not result.interrupted:
    run.save(path, result)
  return result, path


def figures(result: loop.Result) -> dict[str, Any]:
  """Returns what a finished run yields, as its JSON line has it."""
  return {
    'steps': result.steps,
    'loss': result.loss,
    'tau_eval': result.evaluation.get('tau'),
    'params_sha256': result.params_sha256,
    'evaluation': result.evaluation,
    'skipped': result.skipped,
    'best_step': result.best,
  }
