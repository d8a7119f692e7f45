"""From a recipe to a training run."""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import fields as field_lib
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.data import dataset
from specdiff_jax.data import overlap
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import windows
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import tables
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import tuning as build_tuning
from specdiff_jax.training import distill
from specdiff_jax.training import loop
from specdiff_jax.training import optimizer as optimizer_lib
from specdiff_jax.training import reading


@fields.rim()
def check(recipe: recipe_lib.Recipe) -> None:
  """Raises InputError on values that no run could work with."""
  decoding.check(recipe)
  if int8 := recipe.model.int8:
    raise errors.InputError(
      f'config.int8 is {int8!r}, but a drafter learns from weights '
      'that are not rounded; leave it empty. The trained drafter drafts for '
      'the int8 verifier too.'
    )
  for group in (
    recipe.training,
    recipe.optimizer,
    recipe.schedule,
    recipe.memory,
    recipe.placement,
    recipe.processes,
  ):
    field_lib.check(group)
  build_losses.check(recipe)
  build_tuning.check(recipe.training)
  kind, memory = recipe.training.network.kind, recipe.memory
  if memory.accumulate > 1 and kind == 'masked_lm':
    raise errors.InputError(
      f'config.accumulate is {memory.accumulate}, but a masked language '
      'model takes its batch at once; give 1.'
    )
  if memory.remat and not registry.network(kind).remat:
    raise errors.InputError(
      f'config.remat is set, but a drafter of kind {kind} '
      'has no layers that are computed again; leave it out.'
    )


def same_verifier(recipe: recipe_lib.Recipe, other: recipe_lib.Recipe) -> bool:
  """Whether `decoding.verifier` would return the same for both."""
  return recipe.model == other.model and recipe.placement == other.placement


def start(recipe: recipe_lib.Recipe) -> None:
  """Joins the other processes, if there are any; call it before `verifier`."""
  options = recipe.processes
  processes.initialize(options.distributed, options.join_timeout)


def placement(recipe: recipe_lib.Recipe) -> Callable[[Any], Any] | None:
  """Returns what gives the verifier's weights their shardings, or None.

  Where the verifier runs in the train step it goes straight onto the mesh, and
  no process holds it whole. None, so that each does: where features are kept
  (config.feature_cache), or this verifier first completes prompts.
  """
  if recipe.placement.feature_cache or is_prompts(recipe.training.data):
    return None
  return functools.partial(
    rules.shardings, rules=split_frozen(recipe), mesh=mesh(recipe)
  )


def mesh(
  recipe: recipe_lib.Recipe, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh of a run; InputError where its batch does not fit."""
  made = mesh_lib.make_mesh(recipe.placement.mesh, devices=devices)
  ways, count = rules.row_ways(made), recipe.memory.accumulate
  if recipe.training.batch % (ways * count):
    raise errors.InputError(
      f'config.batch is {recipe.training.batch}, but has to be a multiple of '
      f'{ways * count}: {ways} devices take its trajectories, in '
      f'config.accumulate={count} micro-batches each.'
    )
  return made


def score(recipe: recipe_lib.Recipe, network: Any) -> scores.Score:
  """Returns the score of the recipe's kind of drafter, in its dtype."""
  more = {'remat': True} if recipe.memory.remat else {}
  one = registry.network(recipe.training.network.kind).score(network, **more)
  return scores.in_dtype(one, recipe.memory.train_dtype)


def split(recipe: recipe_lib.Recipe) -> Sequence[rules.Rule]:
  """Returns the rules by which a run splits what it trains."""
  return tables.sharding(over_data=recipe.placement.fsdp)


def split_frozen(recipe: recipe_lib.Recipe) -> Sequence[rules.Rule]:
  """Returns the rules by which a run splits what stays frozen."""
  return rules.FSDP_LAYERS if recipe.placement.fsdp else rules.TRANSFORMER


def data(recipe: recipe_lib.Recipe, workdir: str) -> tuple[list[str], str]:
  """Returns where the trajectories are, and the prompts to make them of."""
  where = recipe.training.data
  if not where:
    raise errors.InputError(
      'config.data is empty: give the work directory of `specdiff collect`, '
      'or a JSONL file of prompts.'
    )
  if is_prompts(where):
    return [os.path.join(workdir, 'trajectories')], where
  return _folders(where), ''


def is_prompts(path: str) -> bool:
  """Whether config.data names prompts, whose trajectories are yet to be made."""
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


@fields.rim()
def run(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  folders: Sequence[str],
  workdir: str,
  memory: dict[Any, dict] | None = None,
) -> distill.Run:
  """Returns the run over the trajectories in `folders`, ready to start.

  Runs that are given one `memory` compute the verifier's features once.
  """
  train, held_out = processes.together(
    lambda: _trajectories(recipe, checkpoint, folders)
  )
  schedule, options = recipe.schedule, recipe.training
  start, masks = options.start_from, build_tuning.masks(options)
  output = distill.Output(
    workdir,
    facts=recipe.deciding('run')
    | {
      'verifier': checkpoint.fingerprint,
      'trajectories': len(train),
      'data': windows.digest(train),
      'held_out': windows.digest(held_out),
      'start': files.contents([build_drafters.shipped(start)]),
      'dtype': checkpoint.dtype.name,
    }
    | ({'mask_id': options.masked_lm.mask_id} if masks else {}),
    tensorboard=schedule.tensorboard,
    keep=schedule.keep,
    best=schedule.export == 'best',
    int8=schedule.store == 'int8',
  )
  return _run(recipe, checkpoint, train, held_out, mesh(recipe), output, memory)


def abstract_run(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  mesh: jax.sharding.Mesh,
) -> distill.Run:
  """Returns the run on a mesh without its data; see `Run.program`.

  The params of `checkpoint` may be shapes.
  """
  output = distill.Output('', {})
  return _run(recipe, checkpoint, (), (), mesh, output)


def _run(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  train: windows.Source,
  held_out: windows.Source,
  mesh: jax.sharding.Mesh,
  output: distill.Output,
  memory: dict[Any, dict] | None = None,
) -> distill.Run:
  options, schedule = recipe.training, recipe.schedule
  tuning = build_tuning.make(options, checkpoint)
  network: Any = tuning.network
  if options.network.kind == 'dflash':
    check_mask(network.mask_id, train)
  return distill.Run(
    student=tuning.student(score(recipe, tuning.network)),
    reading=reading.Reading(
      checkpoint,
      recipe.placement.feature_cache,
      tuning.network.features,
      options.tokens,
      {} if memory is None else memory,
      recipe.placement.feature_store,
    ),
    data=distill.Data(
      train,
      held_out,
      windows.WindowConfig(
        options.tokens,
        options.windows,
        options.gamma,
        options.batch,
        options.seed,
      ),
    ),
    objective=tuning.objective(build_losses.make(recipe, tuning.network)),
    optimizer=optimizer(recipe, tuning.trained),
    schedule=loop.Schedule(
      schedule.steps,
      schedule.save_every,
      schedule.eval_every,
      schedule.log_every,
      skip_limit=recipe.optimizer.skip_limit,
      survive_full_disk=schedule.on_full_disk == 'go_on',
    ),
    placement=distill.Placement(mesh, split(recipe), split_frozen(recipe)),
    output=output,
  )


def optimizer(
  recipe: recipe_lib.Recipe, trained: str = ''
) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer of a run, of params named by an expression."""
  options = recipe.optimizer
  return optimizer_lib.make_optimizer(
    options.learning_rate,
    recipe.schedule.steps,
    warmup=options.warmup,
    weight_decay=options.weight_decay,
    trained=trained,
    explosion=options.explosion,
  )


def learning_rate(recipe: recipe_lib.Recipe, step: int) -> float:
  """Returns the learning rate after `step` steps of a run."""
  options = recipe.optimizer
  schedule = optimizer_lib.schedule(
    options.learning_rate, recipe.schedule.steps, options.warmup
  )
  return float(jnp.asarray(schedule(step)))


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
  if str(header.get('dtype')).startswith('int8/'):
    raise errors.InputError(
      f'The trajectories in {folder} were written by the verifier with weights '
      'rounded to int8, which is another one. Collect them without config.int8.'
    )


def recorded(
  checkpoint: weights.Checkpoint, folder: str
) -> tuple[dict[str, Any], dataset.Source]:
  """Returns manifest and trajectories of a work directory, checked."""
  manifest = dataset.build(folder)
  header, source = dataset.read(folder)
  check_verifier(header, checkpoint, folder)
  dataset.check_ids(folder, source, checkpoint.config.vocab_size)
  return manifest, source


def _dataset(
  recipe: recipe_lib.Recipe, checkpoint: weights.Checkpoint, folder: str
) -> dataset.Source:
  """Returns the trajectories of a work directory, as the loss needs them."""
  manifest, source = recorded(checkpoint, folder)
  build_losses.check_data(recipe, manifest['header'], folder)
  return source


def check_mask(mask_id: int, source: windows.Source) -> None:
  """Raises InputError if a trajectory contains the mask token."""
  for index in range(len(source)):
    item = source[index]
    if mask_id in item.prompt or mask_id in item.completion:
      raise errors.InputError(
        f'config.masked_lm.mask_id is {mask_id}, but the trajectory '
        f'{item.id!r} holds that token. Give one that no text has.'
      )


def _trajectories(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  folders: Sequence[str],
) -> tuple[windows.View, windows.View]:
  """Returns trajectories to train on and held-out ones, checked."""
  options = recipe.training
  parts = [_dataset(recipe, checkpoint, folder) for folder in folders]
  if build_losses.reads_stored(recipe):
    kept = [
      None if x[0].top_ids is None else x[0].top_ids.shape[1] for x in parts
    ]
    if len(set(kept)) > 1:
      raise errors.InputError(
        'config.stored_law is set, but the trajectories in '
        f'{printing.names(folders)} were collected with store_top_k of {kept}; '
        'give data that was collected with one, or set stored_law=False.'
      )
  source = dataset.Joined(parts)
  if options.gamma >= options.tokens:
    raise errors.InputError(
      f'config.gamma is {options.gamma}, which does not fit config.tokens, '
      f'{options.tokens}. Lower gamma, or raise tokens.'
    )
  train, held_out = windows.split(source, options.eval_fraction)
  evaluated = [p for f in options.eval_prompts for p in prompts_lib.read(f)]
  known = windows.hashes(train)
  if options.start_from:
    start = build_drafters.shipped(options.start_from)
    known |= drafter_file.trained_on(start)
  overlap.check_disjoint(
    known, {prompts_lib.text_hash(p.text) for p in evaluated}
  )
  limit = min(options.eval_limit, len(held_out))
  first = min(options.train_limit or len(train), len(train))
  return (
    windows.View(train, range(first)),
    windows.View(held_out, range(limit)),
  )
