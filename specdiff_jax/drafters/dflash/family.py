"""The family of DFlash drafters, published ones alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.drafters import family
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters.dflash import drafter
from specdiff_jax.drafters.dflash import format as format_lib
from specdiff_jax.drafters.dflash import network
from specdiff_jax.models import config as config_lib


def _published(
  folder: str,
  published: published_lib.Published,
  params: Any,
  checkpoint: weights.Checkpoint,
  serving: family.Serving,
) -> family.Made:
  """Returns the drafter; InputError where it is another verifier's."""
  sizes, model = published.sizes, checkpoint.config
  for name in ('width', 'vocab_size'):
    theirs, wanted = getattr(sizes.network, name), getattr(model, name)
    if theirs != wanted:
      raise errors.InputError(
        f'{folder}: the DFlash drafter was made for a verifier with {name} '
        f'{theirs}, but that of {checkpoint.source} is {wanted}. Take the '
        'drafter of this verifier.'
      )
  if not all(0 <= layer < model.layers for layer in sizes.features):
    raise errors.InputError(
      f'{folder}: the DFlash drafter reads the verifier layers '
      f'{sizes.features} (target_layer_ids), but those of '
      f'{checkpoint.source} are 0 to {model.layers - 1}. Take the drafter '
      'of this verifier.'
    )
  if serving.gamma > sizes.gamma:
    raise errors.InputError(
      f'gamma is {serving.gamma}, but the blocks of {folder} have '
      f'{sizes.block} slots, of which the first is the last committed token: '
      f'it drafts {sizes.gamma} tokens at once. Lower gamma.'
    )
  family.no_context_window(
    serving, folder, 'a DFlash drafter keeps all its keys'
  )
  one = drafter.Block(config=sizes, **serving.window)
  return one, params


def _shape(
  name: str, checkpoint: weights.Checkpoint, serving: family.Serving
) -> family.Made:
  """Returns a drafter of zeros, of the shape that DFlash has for a verifier.

  Five layers as wide as the verifier's, and as many of its layers read (of a
  verifier of few layers, as for a test, half as many); a block of gamma tokens
  and the last committed one.
  """
  verifier = checkpoint.config
  if not isinstance(verifier, config_lib.TransformerConfig):
    raise errors.InputError(
      f'preset:{name} is a drafter for transformers of the Llama and Qwen '
      f'families, not for {checkpoint.source}; take another verifier.'
    )
  layers = max(1, min(5, verifier.layers // 2))
  sizes = network.DFlashConfig(
    network=dataclasses.replace(
      verifier, layers=layers, scan_layers=False, qk_norm=True, tied_head=True
    ),
    features=tuple(
      (2 * i + 1) * verifier.layers // (2 * layers) for i in range(layers)
    ),
    block=serving.gamma + 1,
    mask_id=verifier.vocab_size - 1,
  )
  dtype = checkpoint.params['final_norm'].dtype
  read = jnp.zeros((1, 1, layers, verifier.width))
  shapes = jax.eval_shape(
    lambda: network.DFlash(sizes).init(
      jax_settings.key(0), read, jnp.zeros((1, 1), jnp.int32), method='context'
    )['params']
  )
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), shapes)
  return drafter.Block(config=sizes, **serving.window), params


def _describe(found: published_lib.Published) -> dict[str, Any]:
  return {'kind': 'DFlash', 'mask_id': found.mask_id}


FAMILY = family.Family(
  readers={'dflash': format_lib.read},
  architectures={'DFlashDraftModel': 'dflash'},
  published=_published,
  shapes=('dflash',),
  shape=_shape,
  describe=_describe,
  heads=True,
  by_output=('fuse',),
)
