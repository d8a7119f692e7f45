"""Trained drafters by their kind: sizes, first params, loading.

With the other `build` modules the only reader of configs. A new kind of
network is one line in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from specdiff_jax.core import errors
from specdiff_jax.drafters import diffusion
from specdiff_jax.models import causal_network
from specdiff_jax.models import drafter_file
from specdiff_jax.models import drafter_network
from specdiff_jax.models import weights

Config = ml_collections.ConfigDict
ZOO = pathlib.Path(__file__).parent / 'zoo'


def _diffusion_sizes(
    config: Config, checkpoint: weights.Checkpoint
) -> drafter_network.DrafterConfig:
  """Returns the sizes of a new diffusion drafter."""
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


def _causal_sizes(
    config: Config, checkpoint: weights.Checkpoint
) -> causal_network.CausalConfig:
  """Returns the sizes of a new autoregressive drafter."""
  sizes, model = config.network, checkpoint.config
  start = tuple(sizes.start) or tuple(range(sizes.layers))
  if not all(0 <= layer < model.layers for layer in start):
    raise errors.InputError(
        f'config.network asks for copies of the layers {start}, but those of '
        f'the verifier are 0 to {model.layers - 1}; correct network.start, or '
        'network.layers where it is empty.'
    )
  return causal_network.CausalConfig(
      start=start, vocab=min(sizes.vocab, model.vocab_size), verifier=model
  )


class Family(NamedTuple):
  """What the drafters of one architecture have in common."""

  config: type[drafter_file.Config]
  sizes: Callable[..., drafter_file.Config]  # of a config and a verifier
  initial: Callable[..., Any]  # (sizes, key) -> random params
  from_verifier: Callable[..., Any]  # (sizes, key, verifier's params) -> params


FAMILIES: Mapping[str, Family] = {
    'diffusion': Family(
        drafter_network.DrafterConfig,
        _diffusion_sizes,
        drafter_network.initial,
        drafter_network.initial_from_verifier,
    ),
    'autoregressive': Family(
        causal_network.CausalConfig,
        _causal_sizes,
        causal_network.initial,
        causal_network.initial_from_verifier,
    ),
}


def load(
    config: Config, checkpoint: weights.Checkpoint, kind: str = 'diffusion'
) -> tuple[drafter_file.Config, diffusion.DrafterParams]:
  """Loads config.drafter for this verifier, in the verifier's dtype."""
  family = FAMILIES[kind]
  if config.drafter == 'random':
    network = family.sizes(config, checkpoint)
    params = family.initial(network, jax.random.key(config.seed))
    vocab = jnp.arange(network.vocab)
  else:
    network, params, vocab = drafter_file.load(
        _drafter_path(config.drafter), checkpoint, family.config
    )
  if kind == 'diffusion' and config.gamma > network.gamma:
    raise errors.InputError(
        f'config.gamma is {config.gamma}, but the drafter {config.drafter} '
        f'drafts {network.gamma} tokens at once. Lower gamma.'
    )
  name = 'embed' if checkpoint.config.tied_head else 'head'
  head = checkpoint.params[name]
  return network, diffusion.DrafterParams(
      network=jax.tree.map(lambda x: jnp.asarray(x, head.dtype), params),
      vocab=jnp.asarray(vocab, jnp.int32),
      head=jnp.take(head, jnp.asarray(vocab), axis=0),
  )


def _drafter_path(name: str) -> str:
  """Returns the file that config.drafter names: a path, or one of the zoo."""
  if not name:
    raise errors.InputError(
        'config.drafter is empty, but this system needs one: give a '
        "safetensors file that `specdiff distill` wrote, or 'random'."
    )
  shipped = ZOO / name
  if not os.path.exists(name) and shipped.is_file():
    return str(shipped)
  return name
