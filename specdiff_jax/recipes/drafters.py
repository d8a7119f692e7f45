"""Trained drafters by their kind: sizes, first params, loading.

A new kind of network is one line in `FAMILIES`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising
from specdiff_jax.drafters import diffusion
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import masked_lm
from specdiff_jax.models import adapted_network
from specdiff_jax.models import causal_network
from specdiff_jax.models import drafter_network
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import published as build_published

Config = options_lib.Trained
ZOO = pathlib.Path(__file__).parent.parent / 'zoo'


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


def _adapted_sizes(
  config: Config, checkpoint: weights.Checkpoint
) -> adapted_network.AdaptedConfig:
  """Returns the sizes of a masked language model made of the verifier."""
  return adapted_network.AdaptedConfig(
    config.masked_lm.mask_id, checkpoint.config
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
  'masked_lm': Family(
    adapted_network.AdaptedConfig,
    _adapted_sizes,
    adapted_network.initial,
    adapted_network.initial_from_verifier,
  ),
}


def window(
  config: Config,
  checkpoint: weights.Checkpoint,
  strategy: marginals.Strategy,
  cache_dtype: str,
) -> tuple[types.Drafter, Any]:
  """Returns the drafter config.drafter, which fills windows, and its params.

  A directory is a published drafter, whose config.json names its family; a
  file is one of ours.
  """
  common = dict(
    strategy=strategy,
    cache_dtype=cache_dtype,
    denoising=denoising.Denoising(
      config.denoising_steps, config.denoising_order, config.remask
    ),
  )
  if config.drafter.startswith(build_published.PRESET):
    return build_published.of_shape(config, checkpoint, **common)
  if _is_published(config.drafter):
    folder = config.drafter
    folder = folder if os.path.isdir(folder) else hub.folder(folder)
    return build_published.drafter(folder, config, checkpoint, **common)
  if _kind(config) == 'masked_lm':
    return _adapted(config, checkpoint, common)
  network, params = load(config, checkpoint)
  if config.denoising_steps > 1 and not network.ngram:
    raise errors.InputError(
      f'config.denoising_steps is {config.denoising_steps}, but the drafter '
      f'{config.drafter} has no input for decided slots (its ngram is 0). '
      'Give 1.'
    )
  one = diffusion.MaskedDiffusion(
    config=network,
    gamma=config.gamma,
    context_window=config.context_window,
    **common,
  )
  return one, params


def _kind(config: Config) -> str:
  """Returns the kind of drafter that config.drafter is."""
  if config.drafter == 'random':
    return config.network.kind
  return drafter_file.kind(_drafter_path(config.drafter))


def _adapted(config: Config, checkpoint, common) -> tuple[types.Drafter, Any]:
  """Returns a masked language model that was made of the verifier."""
  network, params = load(config, checkpoint, 'masked_lm')
  one = masked_lm.MaskedLMDrafter(
    model=network.model,
    gamma=config.gamma,
    context_window=config.context_window,
    largest=config.gamma,
    **common,
  )
  whole = adapted_network.whole(params.network, checkpoint.params)
  ids = np.arange(network.vocab)
  return one, masked_lm.make_params(network.model, whole, ids, network.vocab)


def load(
  config: Config, checkpoint: weights.Checkpoint, kind: str = 'diffusion'
) -> tuple[drafter_file.Config, diffusion.DrafterParams]:
  """Loads config.drafter for this verifier, in the verifier's dtype."""
  family = FAMILIES[kind]
  if config.drafter == 'random':
    network = family.sizes(config, checkpoint)
    params = family.initial(network, jax_settings.key(config.seed))
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
  head = checkpoint.params[name]  # an array, or int8 with scales, row by row
  dtype = checkpoint.params['final_norm'].dtype
  return network, diffusion.DrafterParams(
    network=jax.tree.map(lambda x: jnp.asarray(x, dtype), params),
    vocab=jnp.asarray(vocab, jnp.int32),
    head=jax.tree.map(lambda x: jnp.take(x, jnp.asarray(vocab), axis=0), head),
  )


def _drafter_path(name: str) -> str:
  """Returns the file that config.drafter names: a path, or one of the zoo."""
  if not name:
    raise errors.InputError(
      'config.drafter is empty, but this system needs one: give a '
      "safetensors file that `specdiff distill` wrote, 'random', or the "
      'directory of a published diffusion drafter.'
    )
  if _is_published(name):
    raise errors.InputError(
      f'{name}: this is a directory or a name on the hub, but this system '
      'drafts with a safetensors file that `specdiff distill` wrote '
      '(config.drafters has one for each system). Published diffusion '
      'drafters go with specdiff, specdiff2, tree, best_first and adaptive.'
    )
  return shipped(name)


def shipped(name: str) -> str:
  """Returns the file of a drafter in the zoo; any other path as it is."""
  file = ZOO / name
  here = not os.path.exists(name) and file.is_file()
  return str(file) if here else name


def _is_published(name: str) -> bool:
  """True for a directory, and for a name on the hub."""
  if os.path.exists(name) or name.endswith('.safetensors'):
    return os.path.isdir(name)
  return hub.is_name(name)
