"""From a config to a training run: with `build.py`, the only config reader."""

from collections.abc import Callable, Mapping
import json
import os

import ml_collections
import optax

from specdiff_jax import build
from specdiff_jax import build_drafters
from specdiff_jax import build_losses
from specdiff_jax import build_systems as systems
from specdiff_jax.core import errors
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import trajectories
from specdiff_jax.data import windows
from specdiff_jax.formats import weights
from specdiff_jax.parallel import hosts
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.training import distill
from specdiff_jax.training import loop
from specdiff_jax.training import objective
from specdiff_jax.training import step as step_lib

Config = systems.Config


SCORES: Mapping[str, Callable[..., objective.Score]] = {
    'diffusion': objective.diffusion_score,
    'autoregressive': objective.causal_score,
}


# What a run cannot change when it goes on; `steps` may grow or shrink, and the
# schedules of learning rate and loss follow it. Beside these, what only this
# loss reads.
DECIDING = (
    'loss', 'gamma', 'batch', 'learning_rate', 'warmup', 'weight_decay',
    'ce_fraction', 'decay', 'beta_end', 'tokens', 'windows', 'network',
    'eval_fraction', 'seed',
)  # fmt: skip


def check(config: Config) -> None:
  """Raises InputError on values that no run could work with."""
  build.check(config)
  if config.int8:
    raise errors.InputError(
        f'config.int8 is {config.int8!r}, but a drafter learns from weights '
        'that are not rounded; leave it empty. The trained drafter drafts for '
        'the int8 verifier too.'
    )
  systems.one_of('network.kind', config.network.kind, build_drafters.FAMILIES)
  build_losses.check(config)
  for name in ('steps', 'tokens', 'windows', 'eval_limit'):
    systems.least(name, config[name], 1)
  for name, bound in (('layers', 1), ('trunk', 1), ('vocab', 1), ('ngram', 0)):
    systems.least(f'network.{name}', config.network[name], bound)
  for name in ('decay', 'learning_rate'):
    if not config[name] > 0:
      raise errors.InputError(
          f'config.{name} is {config[name]}, but it has to be positive.'
      )
  if not 0 < config.eval_fraction < 1:
    raise errors.InputError(
        f'config.eval_fraction is {config.eval_fraction}, but it has to lie '
        'between 0 and 1: some prompts to train on, some to evaluate on.'
    )


def start(config: Config) -> None:
  """Joins the other processes, if there are any; call it before `verifier`."""
  hosts.initialize(config.distributed)


def data(config: Config, workdir: str) -> tuple[str, str]:
  """Returns where the trajectories are, and the prompts to make them of."""
  if not config.data:
    raise errors.InputError(
        'config.data is empty: give the work directory of `specdiff collect`, '
        'or a JSONL file of prompts.'
    )
  if config.data.endswith('.jsonl'):
    return os.path.join(workdir, 'trajectories'), config.data
  return config.data, ''


def run(
    config: Config, checkpoint: weights.Checkpoint, folder: str, workdir: str
) -> distill.Run:
  """Returns the run over the trajectories in `folder`, ready to start."""
  train, held_out = _trajectories(config, checkpoint, folder)
  family = build_drafters.FAMILIES[config.network.kind]
  network = family.sizes(config, checkpoint)
  deciding = DECIDING + build_losses.LOSSES[config.loss].reads
  return distill.Run(
      network=network,
      initial=family.from_verifier,
      score=SCORES[config.network.kind](network),
      verifier=checkpoint,
      data=train,
      held_out=held_out,
      sizes=windows.WindowConfig(
          config.tokens,
          config.windows,
          config.gamma,
          config.batch,
          config.seed,
      ),
      loss=build_losses.make(config),
      optimizer=optimizer(config),
      schedule=loop.Schedule(
          config.steps, config.save_every, config.eval_every
      ),
      mesh=mesh_lib.make_mesh(tuple(config.mesh)),
      feature_cache=config.feature_cache,
      vocab_block=config.vocab_block,
      workdir=workdir,
      facts={name: _plain(config[name]) for name in deciding} | {
          'verifier': checkpoint.fingerprint,
          'trajectories': len(train),
      },
  )


def optimizer(config: Config) -> optax.GradientTransformation:
  """Returns the optimizer of a run."""
  return step_lib.make_optimizer(
      config.learning_rate,
      config.steps,
      warmup=config.warmup,
      weight_decay=config.weight_decay,
  )


def _plain(value):
  """Returns a value of a config as JSON would give it back."""
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  return json.loads(json.dumps(value))


def _trajectories(
    config: Config, checkpoint: weights.Checkpoint, folder: str
) -> tuple[windows.View, windows.View]:
  """Returns trajectories to train on and held-out ones, checked."""
  trajectories.build_dataset(folder)
  header, source = trajectories.open_dataset(folder)
  if header.get('verifier') != checkpoint.fingerprint:
    raise errors.InputError(
        f'The trajectories in {folder} were written by the verifier with the '
        f'fingerprint {header.get("verifier")}, but {checkpoint.source} has '
        f'{checkpoint.fingerprint}. Collect them again, or give that verifier.'
    )
  build_losses.check_data(config, header, folder)
  if config.gamma >= config.tokens:
    raise errors.InputError(
        f'config.gamma is {config.gamma}, which does not fit config.tokens, '
        f'{config.tokens}. Lower gamma, or raise tokens.'
    )
  train, held_out = windows.split(source, config.eval_fraction)
  evaluated = [p for f in config.eval_prompts for p in prompts_lib.read(f)]
  prompts_lib.check_disjoint(
      train.hashes(), {prompts_lib.text_hash(p.text) for p in evaluated}
  )
  limit = min(config.eval_limit, len(held_out))
  return train, windows.View(held_out, range(limit))
