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
from specdiff_jax.models import int8
from specdiff_jax.models import networks
from specdiff_jax.models import transformer_layer
from specdiff_jax.parallel import rules
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import training as build_training
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.tools.aot import floor
from specdiff_jax.tools.aot import hlo_costs
from specdiff_jax.tools.inspect import describe

_SHIPPED = {'quickstart': 'smollm2_135m'}  # what fetched verifiers are


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that can be compiled, and what each device holds for it.

  Attributes:
    lowered: the program.
    held: bytes of each device, by what they are.
    mesh: axes of devices.
    whole: what the mesh does not divide; see `rules.not_split`.
    names: what its arguments are.
    floor: the least bytes of memory that each device moves, by what they are.
    looped: whether a call is a loop of which one turn is looked at.
  """

  lowered: jax.stages.Lowered
  held: Mapping[str, int]
  mesh: Mapping[str, int]
  whole: Sequence[str]
  names: hlo_costs.Names
  floor: Mapping[str, int]
  looped: bool = False


def program(
  config: recipe_lib.Recipe,
  name: str,
  devices: list,
  *,
  layers: int = 0,
  scan: bool | None = None,
) -> Program:
  """Returns the program `name` of a config, split over these devices.

  Args:
    config: the recipe.
    name: 'train', one step, the verifier's features included; 'decode', one
      call of the decode loop; or 'prefill', config.batch prompts of the largest
      of config.prompt_buckets.
    devices: to compile for.
    layers: layers of the verifier; 0 for all of them.
    scan: whether they run in a loop; by default as in use on such devices.

  Raises:
    InputError: config, mesh and devices do not go together.
  """
  systems.one_of('program', name, PROGRAMS)
  mesh = build_training.mesh(config, devices)
  checkpoint = verifier(config, devices[0].platform, layers, scan)
  return PROGRAMS[name](config, mesh, checkpoint)


def verifier(
  config: recipe_lib.Recipe,
  platform: str = '',
  layers: int = 0,
  scan: bool | None = None,
) -> weights.Checkpoint:
  """Returns the config's verifier as shapes; see `program`."""
  name = _SHIPPED.get(config.model.verifier, '')
  kind, _, rest = config.model.verifier.partition(':')
  if name or kind == 'preset':
    sizes = presets.published(name or rest)
  elif kind == 'random':
    systems.one_of('verifier', rest, presets.SIZES)
    sizes = presets.SIZES[rest]
  else:
    sizes = describe.sizes(config.model.verifier)
  scan = systems.scan_layers(platform) if scan is None else scan
  sizes = dataclasses.replace(
    sizes, layers=layers or sizes.layers, scan_layers=scan
  )
  params = networks.abstract(sizes, params_lib.dtype_of(config.model.dtype))
  tokenizer = tokenizer_lib.Tokenizer.bytes(sizes.vocab_size)
  return weights.Checkpoint(sizes, params, tokenizer, '', config.model.verifier)


def _train(config: recipe_lib.Recipe, mesh: jax.sharding.Mesh, checkpoint):
  """Returns the train step, as `distill` makes it, and what it holds."""
  build_training.check(config)
  # The verifier's pass is a part of the step, and no drafter is loaded.
  config = config.change(feature_cache=0, stored_law=False, start_from='')
  run = build_training.abstract_run(config, checkpoint, mesh)
  step, state, batch, view = run.program()
  placement = run.placement
  whole = rules.not_split({'drafter': state.params}, placement.split, mesh)
  whole += rules.not_split({'verifier': view}, placement.frozen, mesh)
  traced = step.trace(state, batch, view)
  updated = _bytes((state.params, state.opt_state))
  return Program(
    lowered=traced.lower(),
    held={
      'drafter': _bytes(state.params),
      'optimizer': _bytes(state.opt_state),
      'verifier': _bytes(view),
      'batch': _bytes(batch),
    },
    mesh=dict(mesh.shape),
    whole=whole,
    names=hlo_costs.Names(
      weights=('state.params', 'view'), vocab=_vocab(checkpoint, mesh)
    ),
    # The weights of each product, and an update that is read and written.
    floor={
      'weights': _weights(traced, (state, batch, view), (state.params, view)),
      'update': 2 * updated,
    },
  )


def _decode(config: recipe_lib.Recipe, mesh: jax.sharding.Mesh, checkpoint):
  """Returns the decode loop over config.batch requests, and what it holds."""
  serving = Serving.of(config, mesh, checkpoint)
  state = serving.state
  count = jax.ShapeDtypeStruct((), jnp.int32, sharding=rules.replicated(mesh))
  arguments = (*serving.models, state, count, count)
  traced = engine_lib.Engine.decode.trace(serving.engine, *arguments)
  tree = serving.engine.drafter.buckets[-1]
  return serving.program(traced, arguments, slots=tree, looped=True)


def _prefill(config: recipe_lib.Recipe, mesh: jax.sharding.Mesh, checkpoint):
  """Returns the prefill of config.batch prompts, and what it holds."""
  serving = Serving.of(config, mesh, checkpoint)
  inputs = rules.at(serving.inputs, rules.by_row(mesh))
  prompt, most, end_ids, *rest = inputs
  end_ids = rules.at(end_ids, rules.replicated(mesh))  # they have no rows
  arguments = (*serving.models, prompt, most, end_ids, *rest)
  traced = engine_lib.Engine.prefill.trace(serving.engine, *arguments)
  return serving.program(traced, arguments, slots=1)


@dataclasses.dataclass(frozen=True)
class Serving:
  """A system as shapes that lie on a mesh.

  `of` makes it of a recipe, a mesh and a verifier's shapes.
  """

  engine: engine_lib.Engine
  models: tuple[Any, Any]  # params of verifier and drafter
  inputs: tuple[Any, ...]  # of `Engine.prefill`, besides
  state: Any  # of the decode loop
  whole: Sequence[str]
  mesh: jax.sharding.Mesh
  vocab: tuple[int, ...]
  cold: str  # see `hlo_costs.Names`

  @classmethod
  def of(cls, config: recipe_lib.Recipe, mesh, checkpoint) -> 'Serving':
    decoding.check(config)
    # The largest cache that requests reach. The devices are those of `mesh`,
    # whatever serving would take of those here.
    config = config.change(cache_step=0, decode_mesh=(1, 1))
    made, platform = [], mesh.devices.flat[0].platform

    def make(params):
      # As `decoding.verifier` has them.
      if systems.is_int8(config, 'verifier'):
        params = int8.quantise(params)
      if mesh.shape['model'] == 1:
        params = transformer_layer.merged(params, platform)
      one = dataclasses.replace(checkpoint, params=params)
      made.append(decoding.system(config, one, platform=platform))
      return made[0].params, made[0].drafter_params

    params, drafter_params = jax.eval_shape(make, checkpoint.params)
    engine, bucket = made[0].engine, max(config.decoding.prompt_buckets)
    engine = dataclasses.replace(engine, mesh=mesh if mesh.size > 1 else None)
    inputs = made[0].inputs([request_lib.Request(0, [0] * bucket)])
    whole_engine = dataclasses.replace(engine, mesh=None)
    state = jax.eval_shape(
      whole_engine.prefill, params, drafter_params, *inputs
    )
    models = {'verifier': params, 'drafter': drafter_params}
    split = tables.sharding()
    return cls(
      engine=engine,
      models=(
        rules.placed(params, split, mesh),
        rules.placed(drafter_params, split, mesh),
      ),
      inputs=inputs,
      state=rules.at(state, engine.shardings(state, mesh)),
      whole=rules.not_split(models, split, mesh),
      mesh=mesh,
      vocab=_vocab(checkpoint, mesh),
      cold=_cold(config.sampling),
    )

  def program(self, traced, arguments, *, slots: int, looped=False) -> Program:
    """Returns a program of this system; `slots` of each row are scored."""
    params, drafter_params = self.models
    state, cache = self.state, _bytes((self.state.cache, self.state.drafter))
    batch, room = state.tokens.shape
    tree = self.engine.drafter.buckets[-1]
    room += tree  # of tokens that may be live
    rows = -(-batch // rules.row_ways(self.mesh))
    return Program(
      lowered=traced.lower(),
      held={
        'verifier': _bytes(params),
        'drafter': _bytes(drafter_params),
        'cache': cache,
      },
      mesh=dict(self.mesh.shape),
      whole=self.whole,
      names=hlo_costs.Names(
        weights=('params', 'drafter_params'),
        caches=('state.cache', 'state.drafter'),
        vocab=self.vocab,
        slots=(state.cache.slots, state.cache.slots + 2 * tree),
        sampling=('state.sampling', 'sampling'),
        cold=self.cold,
      ),
      # KV once, as long as a request may become; the verifier's logits once.
      floor={
        'weights': _weights(traced, arguments, self.models),
        'cache': cache * min(room, state.cache.slots) // state.cache.slots,
        'logits': 4 * rows * slots * self.vocab[-1],
      },
      looped=looped,
    )


def _cold(sampling: Any) -> str:
  """Returns the parameter whose value leaves the least to be sampled."""
  if not sampling.temperature:
    return 'temperature'
  return '' if sampling.top_k or sampling.top_p < 1 else 'top_k'


def _weights(traced: Any, arguments: Any, weights: Any) -> int:
  """Returns the bytes of weights that a device's products read."""
  own = set(map(id, jax.tree.leaves(weights)))
  sizes = [_bytes(x) if id(x) in own else 0 for x in jax.tree.leaves(arguments)]
  return floor.weights(traced.jaxpr, sizes)


def _vocab(checkpoint, mesh: jax.sharding.Mesh) -> tuple[int, ...]:
  """Returns the sizes of the vocabulary, whole and on one device."""
  size, ways = checkpoint.config.vocab_size, mesh.shape['model']
  return size, size // ways if size % ways == 0 else size


def _bytes(tree: Any) -> int:
  """Returns what a device holds of a tree of shapes."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


PROGRAMS = {'train': _train, 'decode': _decode, 'prefill': _prefill}
