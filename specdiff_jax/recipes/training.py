"""From a config to a training run."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.data import dataset
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import windows
from specdiff_jax.decoding import generate
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import tuning as build_tuning
from specdiff_jax.training import adaptation
from specdiff_jax.training import distill
from specdiff_jax.training import loop
from specdiff_jax.training import optimizer as optimizer_lib
from specdiff_jax.training import reading
from specdiff_jax.training import scores

Config = systems.Config


SCORES: Mapping[str, Callable[..., scores.Score]] = {
  'diffusion': scores.diffusion_score,
  'autoregressive': scores.causal_score,
  'masked_lm': adaptation.window_score,
}


# What a run cannot change when it goes on; `steps` may grow or shrink, and the
# schedules of learning rate and loss follow it. See `deciding` for the rest.
DECIDING = (
    'loss', 'gamma', 'batch', 'learning_rate', 'warmup', 'weight_decay',
    'ce_fraction', 'decay', 'beta_end', 'tokens', 'windows', 'network',
    'eval_fraction', 'seed', 'explosion', 'start_from', 'train_only',
    'lora_rank', 'train_dtype',
)  # fmt: skip


def check(config: Config) -> None:
  """Raises InputError on values that no run could work with."""
  decoding.check(config)
  if config.int8:
    raise errors.InputError(
      f'config.int8 is {config.int8!r}, but a drafter learns from weights '
      'that are not rounded; leave it empty. The trained drafter drafts for '
      'the int8 verifier too.'
    )
  systems.one_of('network.kind', config.network.kind, build_drafters.FAMILIES)
  build_losses.check(config)
  build_tuning.check(config)
  for name in ('steps', 'windows', 'eval_limit'):
    systems.least(name, config[name], 1)
  systems.between('tokens', config.tokens, 1, generate.MOST_TOKENS)
  least_zero = ('train_limit', 'eval_every', 'save_every', 'feature_cache')
  for name in least_zero + ('warmup', 'weight_decay'):
    systems.least(name, config[name], 0)
  if config.accumulate > 1 and config.network.kind == 'masked_lm':
    raise errors.InputError(
      f'config.accumulate is {config.accumulate}, but a masked language '
      'model takes its batch at once; give 1.'
    )
  if config.remat and config.network.kind != 'diffusion':
    raise errors.InputError(
      f'config.remat is set, but a drafter of kind {config.network.kind} '
      'has no layers that are computed again; leave it out.'
    )
  systems.one_of('train_dtype', config.train_dtype, systems.DTYPES)
  systems.one_of('on_full_disk', config.on_full_disk, ('stop', 'go_on'))
  systems.one_of('export', config.export, ('last', 'best'))
  for name in ('keep', 'join_timeout', 'accumulate'):
    systems.least(name, config[name], 1)
  for name in ('skip_limit', 'log_every'):
    systems.least(name, config[name], 0)
  systems.least('explosion', config.explosion, 0)
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


def deciding(config: Config) -> tuple[str, ...]:
  """Returns the fields that a run cannot change when it goes on."""
  # Runs from before there was this field go on without it.
  served = ('served',) if config.served else ()
  return DECIDING + build_losses.reads(config.loss) + served


def same_verifier(config: Config, other: Config) -> bool:
  """Whether `decoding.verifier` would return the same for both."""
  names = ('verifier', 'adapter', 'dtype', 'int8', 'cache_dir')
  names += ('feature_cache', 'mesh', 'fsdp')  # see `placement`
  return all(config[name] == other[name] for name in names)


def start(config: Config) -> None:
  """Joins the other processes, if there are any; call it before `verifier`."""
  processes.initialize(config.distributed, config.join_timeout)


def placement(config: Config) -> Callable[[Any], Any] | None:
  """Returns what gives the verifier's weights their shardings, or None.

  Where the verifier runs in the train step it goes straight onto the mesh, and
  no process holds it whole. None, so that each does: where features are kept
  (config.feature_cache), or this verifier first completes prompts.
  """
  if config.feature_cache or _is_prompts(config.data):
    return None
  return functools.partial(
    rules.shardings, rules=split_frozen(config), mesh=mesh(config)
  )


def mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh of a run; InputError where its batch does not fit."""
  made = mesh_lib.make_mesh(tuple(config.mesh), devices=devices)
  ways = rules.row_ways(made)
  if config.batch % (ways * config.accumulate):
    raise errors.InputError(
      f'config.batch is {config.batch}, but has to be a multiple of '
      f'{ways * config.accumulate}: {ways} devices take its rows, in '
      f'config.accumulate={config.accumulate} parts each.'
    )
  return made


def score(config: Config, network: Any) -> scores.Score:
  """Returns the score of the config's kind of drafter, in its dtype."""
  more = {'remat': True} if config.remat else {}
  one = SCORES[config.network.kind](network, **more)
  if config.train_dtype == 'float32':
    return one
  return scores.in_dtype(one, jnp.dtype(config.train_dtype))


def split(config: Config) -> Sequence[rules.Rule]:
  """Returns the rules by which a run splits what it trains."""
  return rules.FSDP if config.fsdp else rules.TRANSFORMER


def split_frozen(config: Config) -> Sequence[rules.Rule]:
  """Returns the rules by which a run splits what stays frozen."""
  return rules.FSDP_LAYERS if config.fsdp else rules.TRANSFORMER


def data(config: Config, workdir: str) -> tuple[list[str], str]:
  """Returns where the trajectories are, and the prompts to make them of."""
  if not config.data:
    raise errors.InputError(
      'config.data is empty: give the work directory of `specdiff collect`, '
      'or a JSONL file of prompts.'
    )
  if _is_prompts(config.data):
    return [os.path.join(workdir, 'trajectories')], config.data
  return _folders(config.data), ''


def _is_prompts(path: str) -> bool:
  return path.endswith('.jsonl') and not os.path.isdir(path)


def _folders(text: str) -> list[str]:
  """Splits at the commas that are not in the name of a directory there.

  The longest name that is there is taken, so `a,b` is one directory if there
  is one of this name, else the two `a` and `b`.
  """
  parts, found = text.split(','), []
  while parts:
    names = (','.join(parts[:size]) for size in range(len(parts), 1, -1))
    one = next(filter(os.path.isdir, names), parts[0])
    if not one:
      raise errors.InputError(
        f'config.data is {text!r}, in which a directory has no name; take '
        'out the comma that is too much.'
      )
    found.append(one)
    del parts[: 1 + one.count(',')]
  return found


def run(
  config: Config,
  checkpoint: weights.Checkpoint,
  folders: Sequence[str],
  workdir: str,
  memory: dict[Any, dict] | None = None,
) -> distill.Run:
  """Returns the run over the trajectories in `folders`, ready to start.

  Runs that are given one `memory` compute the verifier's features once.
  """
  train, held_out = processes.together(
    lambda: _trajectories(config, checkpoint, folders)
  )
  output = distill.Output(
    workdir,
    facts={name: _plain(config[name]) for name in deciding(config)}
    | {
      'verifier': checkpoint.fingerprint,
      'trajectories': len(train),
    },
    tensorboard=config.tensorboard,
    keep=config.keep,
    best=config.export == 'best',
  )
  return _run(config, checkpoint, train, held_out, mesh(config), output, memory)


def abstract_run(
  config: Config, checkpoint: weights.Checkpoint, mesh: jax.sharding.Mesh
) -> distill.Run:
  """Returns the run on a mesh without its data; see `Run.program`.

  The params of `checkpoint` may be shapes.
  """
  output = distill.Output('', {})
  return _run(config, checkpoint, (), (), mesh, output)


def _run(
  config: Config,
  checkpoint: weights.Checkpoint,
  train: windows.Source,
  held_out: windows.Source,
  mesh: jax.sharding.Mesh,
  output: distill.Output,
  memory: dict[Any, dict] | None = None,
) -> distill.Run:
  tuning = build_tuning.make(config, checkpoint)
  return distill.Run(
    student=tuning.student(score(config, tuning.network)),
    reading=reading.Reading(
      checkpoint,
      config.feature_cache,
      tuning.network.features,
      config.tokens,
      {} if memory is None else memory,
    ),
    data=distill.Data(
      train,
      held_out,
      windows.WindowConfig(
        config.tokens,
        config.windows,
        config.gamma,
        config.batch,
        config.seed,
      ),
    ),
    objective=tuning.objective(build_losses.make(config, tuning.network)),
    optimizer=optimizer(config, tuning.trained),
    schedule=loop.Schedule(
      config.steps,
      config.save_every,
      config.eval_every,
      config.log_every,
      skip_limit=config.skip_limit,
      survive_full_disk=config.on_full_disk == 'go_on',
    ),
    placement=distill.Placement(mesh, split(config), split_frozen(config)),
    output=output,
  )


def optimizer(
  config: Config, trained: str = ''
) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer of a run, of params named by an expression."""
  return optimizer_lib.make_optimizer(
    config.learning_rate,
    config.steps,
    warmup=config.warmup,
    weight_decay=config.weight_decay,
    trained=trained,
    explosion=config.explosion,
  )


def _plain(value):
  """Returns a value of a config as JSON would give it back."""
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  return json.loads(json.dumps(value))


def check_verifier(
  header: Mapping[str, Any], checkpoint: weights.Checkpoint, folder: str
) -> None:
  """Raises InputError unless this verifier wrote the trajectories."""
  if header.get('verifier') != checkpoint.fingerprint:
    raise errors.InputError(
      f'The trajectories in {folder} were written by the verifier with the '
      f'fingerprint {header.get("verifier")}, but {checkpoint.source} has '
      f'{checkpoint.fingerprint}. Collect them again, or give that verifier.'
    )


def _dataset(
  config: Config, checkpoint: weights.Checkpoint, folder: str
) -> dataset.Source:
  """Returns the trajectories of a work directory, checked."""
  dataset.build(folder)
  header, source = dataset.read(folder)
  check_verifier(header, checkpoint, folder)
  dataset.check_ids(folder, source, checkpoint.config.vocab_size)
  build_losses.check_data(config, header, folder)
  return source


def _trajectories(
  config: Config, checkpoint: weights.Checkpoint, folders: Sequence[str]
) -> tuple[windows.View, windows.View]:
  """Returns trajectories to train on and held-out ones, checked."""
  source = dataset.Joined(
    [_dataset(config, checkpoint, folder) for folder in folders]
  )
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
  first = min(config.train_limit or len(train), len(train))
  return (
    windows.View(train, range(first)),
    windows.View(held_out, range(limit)),
  )
