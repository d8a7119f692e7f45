"""`distill`: trains a drafter to follow its verifier."""

import os
from typing import Any

from absl import flags

from specdiff_jax.cli import collect
from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.recipes import fields_decoding
from specdiff_jax.recipes import fields_training

PREEMPTED = 75  # as launch/environment.sh has it


def _define(own: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir',
    None,
    'where checkpoints, metrics and the drafter go. Needed',
    flag_values=own,
  )


COMMAND = command.Command(
  name='distill',
  what="""
    Trains a masked-diffusion drafter on the verifier's own completions
    (config.data: the work directory of `collect`, or a file of prompts that
    are then completed first). The default loss is streak-distillation
    (SpecDiff-2, Eq. 6): it maximises the expected number of accepted tokens.

    WORKDIR holds checkpoints/ (with the data iterator: a run that was stopped
    goes on where it was, to the same bits), metrics.jsonl, and at the end
    drafter.safetensors, which --config.drafter of `decode` and `bench` takes.
    The last line of stdout is one JSON object: steps, loss, tau_eval,
    params_sha256.
    """,
  define=_define,
  fields=fields_decoding.DECODING | fields_training.TRAINING,
  examples=(
    'distill --config=configs/tiny.py --workdir runs/tiny',
    'distill --config=configs/distill_smollm2.py --workdir runs/mine '
    '--config.data=runs/trajectories --config.steps=2000',
  ),
  exit_codes={
    0: 'done',
    2: 'bad input, or a full disk: nothing written is lost, run it again',
    PREEMPTED: 'SIGTERM came, as when a machine is taken away; the state '
    'is saved, and the launchers start it again',
    130: 'interrupted after a checkpoint; run it again to go on',
  },
)


def main(argv) -> int:
  """Runs the subcommand; returns its exit code."""
  return COMMAND.run(argv, _body)


def _body(call: command.Call) -> int:
  from specdiff_jax.parallel import processes
  from specdiff_jax.recipes import training as build_training

  config = call.config
  workdir = command.needed(call.options, 'workdir')
  build_training.check(config)
  build_training.start(config)
  checkpoint = command.verifier(config, build_training.placement(config))
  result, path = train(config, checkpoint, workdir)
  if result.interrupted:
    return stopped(result)
  if processes.is_first():
    console.say(f'The drafter is in {path}.')
    console.result(figures(result) | {'drafter': path})
  return 0


def train(
  config,
  checkpoint,
  workdir: str,
  memory: dict[Any, dict] | None = None,
  what: str = 'distilling',
):
  """Trains in `workdir`; returns a `loop.Result` and the drafter's file.

  Collects the trajectories first if there are only prompts. An interrupted run
  leaves no drafter. `memory`: see `build_training.run`.
  """
  import jax

  from specdiff_jax.parallel import processes
  from specdiff_jax.recipes import decoding
  from specdiff_jax.recipes import training as build_training

  folders, prompts_file = build_training.data(config, workdir)
  if prompts_file:
    prompts = decoding.prompts(config, prompts_file, 0)
    # There is no drafter yet; lookup drafts for it, to the same tokens.
    collect.into(config, checkpoint, prompts, folders[0], 'lookup')
  run = build_training.run(config, checkpoint, folders, workdir, memory)
  if idle := jax.device_count() - run.placement.mesh.size:
    console.say(f'config.mesh leaves {idle} devices idle.')
  for line in run.not_split() if processes.is_first() else ():
    console.say(f'Held whole by every device: {line}')
  with console.progress(what, run.schedule.steps) as show:
    result = run.train(
      lambda step, steps, values: show(step, steps, _note(values)),
      console.say,
    )
  path = os.path.join(workdir, 'drafter.safetensors')
  if not result.interrupted:
    run.save(path, result)
  return result, path


def figures(result) -> dict[str, Any]:
  """Returns what a finished run came to, as its JSON line has it."""
  return {
    'steps': result.steps,
    'loss': result.loss,
    'tau_eval': result.evaluation.get('tau'),
    'params_sha256': result.params_sha256,
    'evaluation': result.evaluation,
    'skipped': result.skipped,
    'best_step': result.best,
  }


def stopped(result) -> int:
  """Says where a run was interrupted; returns the exit code for it."""
  console.say(f'Stopped after step {result.steps}, which is saved.')
  return PREEMPTED if result.preempted else 130


def _note(values: dict) -> str:
  names = [name for name in ('loss', 'streak') if name in values]
  return ' '.join(f'{name} {float(values[name]):.3f}' for name in names)
