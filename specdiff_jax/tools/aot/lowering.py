"""From a recipe to programs for accelerators that are not here.

Nothing is loaded: models are shapes, and what a run would compute of them is
traced.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import weights
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters import tables
from specdiff_jax.models import networks
from specdiff_jax.parallel import rules
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import training as build_training
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.tools.inspect import describe

_SHIPPED = {'quickstart': 'smollm2_135m'}  # what fetched verifiers are


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that can be compiled, and what each device holds for it."""

  lowered: jax.stages.Lowered
  held: Mapping[str, int]  # bytes of each device, by what they are
  mesh: Mapping[str, int]
  whole: Sequence[str]  # what the mesh does not divide; see `rules.not_split`


def program(config: recipe_lib.Recipe, name: str, devices: list) -> Program:
  """Returns the program `name` of a config, split over these devices.

  name: 'train', one step, the verifier's features included; or 'decode', one
  call of the decode loop.

  Raises InputError where config, mesh and devices do not go together.
  """
  systems.one_of('program', name, PROGRAMS)
  mesh = build_training.mesh(config, devices)
  lowered, held, whole = PROGRAMS[name](config, mesh)
  return Program(
    lowered,
    {what: sum(map(_bytes, jax.tree.leaves(x))) for what, x in held.items()},
    dict(mesh.shape),
    whole,
  )


def verifier(config: recipe_lib.Recipe) -> weights.Checkpoint:
  """Returns the config's verifier as shapes, its layers stacked."""
  name = _SHIPPED.get(config.model.verifier, '')
  kind, _, rest = config.model.verifier.partition(':')
  if name or kind == 'preset':
    sizes = presets.published(name or rest)
  elif kind == 'random':
    systems.one_of('verifier', rest, presets.SIZES)
    sizes = presets.SIZES[rest]
  else:
    sizes = describe.sizes(config.model.verifier)
  sizes = dataclasses.replace(sizes, scan_layers=True)
  params = networks.abstract(sizes, params_lib.dtype_of(config.model.dtype))
  tokenizer = tokenizer_lib.Tokenizer.bytes(sizes.vocab_size)
  return weights.Checkpoint(sizes, params, tokenizer, '', config.model.verifier)


def _train(config: recipe_lib.Recipe, mesh: jax.sharding.Mesh):
  """Returns the train step, as `distill` makes it, and what it holds."""
  build_training.check(config)
  # The verifier's pass is a part of the step, and no drafter is loaded.
  config = config.change(feature_cache=0, stored_law=False, start_from='')
  run = build_training.abstract_run(config, verifier(config), mesh)
  step, state, batch, view = run.program()
  placement = run.placement
  whole = rules.not_split({'drafter': state.params}, placement.split, mesh)
  whole += rules.not_split({'verifier': view}, placement.frozen, mesh)
  held = {
      'drafter': state.params, 'optimizer': state.opt_state,
      'verifier': view, 'batch': batch,
  }  # fmt: skip
  return step.lower(state, batch, view), held, whole


def _decode(config: recipe_lib.Recipe, mesh: jax.sharding.Mesh):
  """Returns the decode loop over config.batch requests, and what it holds."""
  decoding.check(config)
  checkpoint = verifier(config)
  config = config.change(cache_step=0)  # the largest cache that requests reach
  made, platform = [], mesh.devices.flat[0].platform

  def make(params):
    one = dataclasses.replace(checkpoint, params=params)
    made.append(decoding.system(config, one, platform=platform))
    return made[0].params, made[0].drafter_params

  params, drafter_params = jax.eval_shape(make, checkpoint.params)
  engine, bucket = made[0].engine, max(config.decoding.prompt_buckets)
  requests = [request_lib.Request(0, [0] * bucket)]
  state = jax.eval_shape(
    engine.prefill, params, drafter_params, *made[0].inputs(requests)
  )
  models = {'verifier': params, 'drafter': drafter_params}
  split = tables.sharding()
  whole = rules.not_split(models, split, mesh)
  params = rules.placed(params, split, mesh)
  drafter_params = rules.placed(drafter_params, split, mesh)
  state = _at(state, engine.shardings(state, mesh))
  count = jax.ShapeDtypeStruct((), jnp.int32, sharding=rules.replicated(mesh))
  lowered = engine_lib.Engine.decode.lower(
    engine, params, drafter_params, state, count, count
  )
  return (
    lowered,
    {
      'verifier': params,
      'drafter': drafter_params,
      'cache': (state.cache, state.drafter),
    },
    whole,
  )


def _at(tree: Any, shardings: Any) -> Any:
  """Returns shapes with their shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def _bytes(x: jax.ShapeDtypeStruct) -> int:
  """Returns what a device holds of an array."""
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


PROGRAMS = {'train': _train, 'decode': _decode}
