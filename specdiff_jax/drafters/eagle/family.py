"""The family of EAGLE-3 drafters, published and trained ones."""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.drafters import family
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters.eagle import drafter
from specdiff_jax.drafters.eagle import format as format_lib
from specdiff_jax.drafters.eagle import network
from specdiff_jax.drafters.eagle import options as options_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import head as head_lib
from specdiff_jax.models import layers as layers_lib


def _sizes(
  options: options_lib.Options,
  gamma: int,
  verifier: config_lib.TransformerConfig,
) -> network.TrainedConfig:
  del gamma  # it drafts as long as it is asked to
  most = verifier.layers
  usual = network.published_features(most)
  features = family.read_layers(options.features, usual, most)
  return network.TrainedConfig(
    features=features,
    vocab=min(options.vocab, verifier.vocab_size),
    verifier=verifier,
  )


def _drafter(parts, checkpoint, serving: family.Serving) -> family.Made:
  one = parts['drafter']
  params = family.cast(one, checkpoint)
  whole = head_lib.rows(checkpoint.params)
  rows = layers_lib.lookup(whole, jnp.asarray(one.vocab))
  head = rows + params['head'].astype(jnp.float32)
  return _made(one.config.run_as, params, one.vocab, head, serving)


def _made(
  config: network.EagleConfig, params, vocab, head, serving: family.Serving
) -> family.Made:
  tree = cast(lattice.Lattice, serving.strategy)  # its system asks for that
  own = {name: x for name, x in params.items() if name != 'head'}
  return drafter.Eagle(config, serving.gamma, tree), family.DrafterParams(
    network=own,
    vocab=jnp.asarray(vocab, jnp.int32),
    head=jnp.asarray(head, own['final_norm'].dtype),
  )


def _published(
  folder: str,
  published: published_lib.Published,
  params: Any,
  checkpoint: weights.Checkpoint,
  serving: family.Serving,
) -> family.Made:
  """Returns the drafter; InputError where it is another verifier's."""
  sizes, model = published.sizes, checkpoint.config
  family.same_verifier(f'{folder}: the EAGLE drafter', sizes, checkpoint)
  usual = network.published_features(model.layers)
  layers = sizes.features or usual
  told = f'{folder}: the EAGLE drafter reads the verifier layers {layers}'
  if tuple(x - 1 for x in layers) == usual:
    raise errors.InputError(
      f'{told}, each one more than in published drafters of verifiers with '
      f'{model.layers} layers, {usual}: in eagle_config they are counted from 0 '
      'on. Subtract one from each.'
    )
  if max(layers) >= model.layers:
    raise errors.InputError(
      f'{told}, but those of {checkpoint.source} are 0 to {model.layers - 1}. '
      'Take the drafter of this verifier.'
    )
  if params['fuse'].shape[1] != len(layers) * model.width:
    raise errors.InputError(
      f'{told}, but its tensor fc.weight is made for another number of them. '
      'Take the drafter of this verifier.'
    )
  vocab = format_lib.vocab(folder, sizes)
  config = dataclasses.replace(sizes, features=layers)
  return _made(config, params, vocab, params['head'], serving)


def _describe(found: published_lib.Published) -> dict[str, Any]:
  return {'kind': 'EAGLE-3', 'vocab': found.sizes.vocab}


FAMILY = family.Family(
  networks={
    'drafter': family.Network(
      sizes=_sizes,
      config=network.TrainedConfig,
      initial=network.initial,
      from_verifier=network.initial_from_verifier,
      training=f'{__package__}.training',
    )
  },
  drafter=_drafter,
  readers={'eagle3': format_lib.read},
  architectures=dict.fromkeys(
    ('LlamaForCausalLMEagle3', 'Eagle3LlamaForCausalLM'), 'eagle3'
  ),
  published=_published,
  describe=_describe,
  by_output=('fuse',),
)
