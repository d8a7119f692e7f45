"""`distill`: trains a drafter to follow its verifier."""

import os

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import recipe

PREEMPTED = 75  # as launch/environment.sh has it

_FLAGS = {
  'workdir': flag.Flag('where checkpoints, metrics and the drafter go. Needed'),
}

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
    With config.head_kind it trains a head of the drafter config.start_from, and
    writes head.safetensors, for --config.head of the system lattice.
    The last line of stdout is one JSON object: steps, loss, tau_eval,
    params_sha256.
    """,
  flags=_FLAGS,
  fields=recipe.described(*recipe.DECODING, *recipe.TRAINING)
  | recipe.described(groups.Collecting, only=('completions', 'store_top_k')),
  examples=(
    'distill --config=configs/tiny.py --workdir runs/tiny',
    'distill --config=configs/distill_smollm2.py --workdir runs/mine '
    '--config.data=runs/trajectories --config.steps=2000',
  ),
  exit_codes={
    2: 'bad input, or a full disk: nothing written is lost, run it again',
    PREEMPTED: 'SIGTERM came, as when a machine is taken away; the state '
    'is saved, and the launchers start it again',
    130: 'interrupted after a checkpoint; run it again to go on',
  },
)


def body(call: command.Call) -> int:
  from specdiff_jax.parallel import processes
  from specdiff_jax.recipes import runs
  from specdiff_jax.recipes import training

  config = call.config
  workdir = command.needed(call.options, 'workdir')
  training.check(config)
  training.start(config)
  checkpoint = command.verifier(config, training.placement(config))
  result, path = runs.train(config, checkpoint, workdir, report=console)
  if result.interrupted:
    return stopped(result)
  if processes.is_first():
    name, _ = os.path.splitext(os.path.basename(path))
    console.say(f'The {name} is in {path}.')
    console.result(runs.figures(result) | {'drafter': path})
  return 0


def stopped(result) -> int:
  """Says where a run was interrupted; returns the exit code for it."""
  console.say(f'Stopped after step {result.steps}, which is saved.')
  return PREEMPTED if result.preempted else 130
