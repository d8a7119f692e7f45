"""The systems by name: what drafts, and which rule accepts.

`if kind == ...` is a dict from name to constructor here, and nowhere else: a
new drafter or rule is one line. With `build.py` and `build_training.py` the
only reader of configs.
"""

from collections.abc import Callable, Mapping
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.decoding import accept
from specdiff_jax.decoding import block_verification
from specdiff_jax.decoding import rejection
from specdiff_jax.drafters import diffusion
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import none
from specdiff_jax.models import drafter_file
from specdiff_jax.models import drafter_network
from specdiff_jax.models import weights

Config = ml_collections.ConfigDict
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
ZOO = pathlib.Path(__file__).parent / 'zoo'


class Parts(NamedTuple):
  """What a system is made of besides the verifier."""

  drafter: types.Drafter
  params: Any
  rule: types.AcceptanceRule


RULES: Mapping[str, types.AcceptanceRule] = {
    'match': accept.SampleAndMatch(),
    'greedy': rejection.GreedyAcceptance(),
    'rejection': rejection.Rejection(),
    'without_replacement': rejection.RejectionWithoutReplacement(),
    'block': block_verification.BlockVerification(),
}

# How K drafts are laid out for each rule.
_ARRANGEMENTS = {
    'match': 'merged',
    'greedy': 'merged',
    'rejection': 'chains',
    'without_replacement': 'distinct',
    'block': 'chains',
}


def _ar(config, checkpoint, slots):
  if not slots:
    own = config.ar_slots[dtype(checkpoint)]
    slots = config.gamma + 1 if config.exact else own
  return Parts(none.NoDraft(slots), (), accept.SampleAndMatch())


def _lookup(config, checkpoint, slots):
  del checkpoint, slots
  drafter = lookup.PromptLookup(config.gamma, config.ngram)
  return Parts(drafter, (), RULES[config.rule])


def _specdiff(config, checkpoint, slots):
  """One chain."""
  del slots
  strategy = marginals.Chain(mode=config.draft, **_tempered(config))
  return _diffusion(config, checkpoint, strategy, RULES[config.rule])


def _specdiff2(config, checkpoint, slots):
  """K chains, of which the verifier selects one (2511.00606, Algorithm 1)."""
  del slots
  strategy = marginals.Drafts(
      drafts=config.drafts,
      arrangement='chains',
      **_tempered(config, spread=True),
  )
  rule = accept.SelfSelection(RULES[config.rule])
  return _diffusion(config, checkpoint, strategy, rule)


def _tree(config, checkpoint, slots):
  """The same K drafts; the rule walks all of them."""
  del slots
  strategy = marginals.Drafts(
      drafts=config.drafts,
      arrangement=_ARRANGEMENTS[config.rule],
      budget=config.budget,
      **_tempered(config, spread=True),
  )
  return _diffusion(config, checkpoint, strategy, RULES[config.rule])


def _best_first(config, checkpoint, slots):
  """The most probable prefixes of the marginals."""
  del slots
  strategy = marginals.BestFirst(config.budget)
  return _diffusion(config, checkpoint, strategy, RULES[config.rule])


SYSTEMS: Mapping[str, Callable[..., Parts]] = {
    'ar': _ar,
    'lookup': _lookup,
    'specdiff': _specdiff,
    'specdiff2': _specdiff2,
    'tree': _tree,
    'best_first': _best_first,
}


def _tempered(config, spread: bool = False) -> dict[str, Any]:
  """Returns the drafter's law; `spread`: drafts have to differ from another."""
  temperature = config.draft_temperature
  return {
      'temperature': temperature or (1.0 if spread else 0.0),
      'top_k': config.draft_top_k,
      'keep_q': RULES[config.rule].reads_q,
  }


def _diffusion(config, checkpoint, strategy, rule) -> Parts:
  network, params = drafter(config, checkpoint)
  one = diffusion.MaskedDiffusion(
      config=network,
      gamma=config.gamma,
      strategy=strategy,
      cache_dtype=cache_dtype(checkpoint),
  )
  return Parts(one, params, rule)


def drafter(
    config: Config, checkpoint: weights.Checkpoint
) -> tuple[drafter_network.DrafterConfig, diffusion.DrafterParams]:
  """Loads config.drafter for this verifier, in the verifier's dtype."""
  if config.drafter == 'random':
    network = drafter_sizes(config, checkpoint)
    params = drafter_network.initial(network, jax.random.key(config.seed))
    vocab = jnp.arange(network.vocab)
  else:
    network, params, vocab = drafter_file.load(
        _drafter_path(config.drafter), checkpoint
    )
  if config.gamma > network.gamma:
    raise errors.InputError(
        f'config.gamma is {config.gamma}, but the drafter {config.drafter} '
        f'drafts {network.gamma} tokens at once. Lower gamma.'
    )
  own, verifier_params = DTYPES[dtype(checkpoint)], checkpoint.params
  head = verifier_params['embed' if checkpoint.config.tied_head else 'head']
  return network, diffusion.DrafterParams(
      network=jax.tree.map(lambda x: jnp.asarray(x, own), params),
      vocab=jnp.asarray(vocab, jnp.int32),
      head=jnp.take(head, jnp.asarray(vocab), axis=0),
  )


def _drafter_path(name: str) -> str:
  """Returns the file that config.drafter names: a path, or one of the zoo."""
  if not name:
    raise errors.InputError(
        'config.drafter is empty, but the system specdiff needs one: give a '
        "safetensors file that `specdiff distill` wrote, or 'random'."
    )
  shipped = ZOO / name
  if not os.path.exists(name) and shipped.is_file():
    return str(shipped)
  return name


def drafter_sizes(
    config: Config, checkpoint: weights.Checkpoint
) -> drafter_network.DrafterConfig:
  """Returns the sizes of a new drafter."""
  sizes, model = config.network, checkpoint.config
  if not 1 <= sizes.layers < model.layers:
    raise errors.InputError(
        f'config.network.layers is {sizes.layers}, but a drafter starts from '
        f"the last of the verifier's {model.layers} layers: give 1 to "
        f'{model.layers - 1}.'
    )
  features = tuple(sizes.features)
  features = features or (model.layers - sizes.layers - 1, model.layers - 1)
  if not all(0 <= layer < model.layers for layer in features):
    raise errors.InputError(
        f'config.network.features is {features}, but the layers of the '
        f'verifier are 0 to {model.layers - 1}.'
    )
  return drafter_network.DrafterConfig(
      gamma=config.gamma,
      layers=sizes.layers,
      features=features,
      trunk=sizes.trunk,
      vocab=min(sizes.vocab, model.vocab_size),
      ngram=sizes.ngram,
      verifier=model,
  )


def dtype(checkpoint: weights.Checkpoint) -> str:
  """Returns the name of the weights' dtype."""
  return jax.tree.leaves(checkpoint.params)[0].dtype.name


def cache_dtype(checkpoint: weights.Checkpoint) -> str:
  """Returns the weights' dtype, but float32 on CPU.

  There XLA updates a bf16 array, and attends to it, by way of float32 copies.
  """
  on_cpu = jax.default_backend() == 'cpu'
  return 'float32' if on_cpu else dtype(checkpoint)


def one_of(field: str, name: str, known) -> None:
  """Raises InputError unless `name` is one of `known`."""
  if name not in known:
    raise errors.InputError(
        f'config.{field} is {name!r}, but it has to be one of '
        f'{", ".join(known)}.'
    )


def least(field: str, value: float, bound: float) -> None:
  """Raises InputError unless `value` is at least `bound`."""
  if not value >= bound:  # NaN fails too
    raise errors.InputError(
        f'config.{field} is {value}, but it has to be at least {bound}.'
    )
