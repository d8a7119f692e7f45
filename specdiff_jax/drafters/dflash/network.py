"""The network of DFlash drafters (2602.06036), as z-lab publishes them.

A few Qwen3-like layers fill a block: the last committed token and masks, which
see each other. Beside the block's own keys and values each layer has those of
the verified text, made of the verifier's hidden states: the same fused state
for all layers, mapped by each layer's own weights. Embedding and head are the
verifier's. A slot is predicted by the output at its own position.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.models import attention
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks
from specdiff_jax.models import transformer_layer as layer_lib
from specdiff_jax.models import views

_MOST_BLOCK = 1024  # a file must not ask for more work than any drafter


@dataclasses.dataclass(frozen=True)
class DFlashConfig:
  """A DFlash drafter; raises InputError on impossible values.

  Attributes:
    network: the sizes of its layers; vocab_size and width are the verifier's.
    features: verifier layers whose outputs it reads, 0-based.
    block: slots of a block, the last committed token among them.
    mask_id: the verifier's id whose embedding stands for what is not known.
  """

  network: config_lib.TransformerConfig
  features: tuple[int, ...]
  block: int
  mask_id: int

  def __post_init__(self):
    config_lib.check_type('DFlashConfig', 'block', int, self.block)
    if not 2 <= self.block <= _MOST_BLOCK or not self.features:
      raise errors.InputError(
        f'a DFlash drafter has a block of {self.block} slots and reads the '
        f'layers {self.features} of the verifier, but it needs 2 to '
        f'{_MOST_BLOCK} and at least 1; correct block_size or dflash_config '
        'in its config.json.'
      )
    ids = range(self.network.vocab_size)
    if self.mask_id not in ids:
      raise errors.InputError(
        f'the mask token of a DFlash drafter has the id {self.mask_id}, but '
        f'its vocabulary has the ids 0 to {ids[-1]}; correct '
        'dflash_config.mask_token_id in its config.json.'
      )

  @property
  def layers(self) -> int:
    return self.network.layers

  @property
  def gamma(self) -> int:
    """Tokens that a block drafts: its first slot is known."""
    return self.block - 1


def shapes(config: DFlashConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  layer = layer_lib.shapes(config.network)
  return layers_lib.layered(_top_shapes(config), layer, config.layers)


def _top_shapes(config: DFlashConfig) -> layers_lib.Shapes:
  width = config.network.width
  return {
    'fuse': (width, len(config.features) * width),
    'context_norm': (width,),
    'final_norm': (width,),
  }


class Layer(layer_lib.LayerParts):
  """One layer, whose queries also see keys that the block does not have."""

  def __call__(self, x, context, view):
    """Returns x [B, M, E]; context (keys, values)."""
    h = self.norm(x, self.attention_norm)
    layer = cache_lib.Layer(*context)
    if found := self.attended(h, layer, view):
      return self.after(x, found[0])
    query, *own = self.queries_keys_values(h, view.cos, view.sin)
    own = (new.astype(old.dtype) for old, new in zip(context, own))
    out = attention.attend(
      query, layer, view.mask, view.seen, self.config.score_scale,
      self.config.attention, cache_lib.Layer(*own),
    )  # fmt: skip
    return self.after(x, out)


class DFlash(nn.Module):
  """Makes keys of hidden states (`context`), and fills blocks."""

  config: DFlashConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    layers_lib.make_params(self, _top_shapes(self.config), self.param_dtype)
    network = self.config.network
    self.layer = [
      Layer(network, self.param_dtype) for _ in range(network.layers)
    ]

  def context(
    self, features: jax.Array, positions: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns each layer's (keys, values) [B, Hkv, T, Dh] of verified tokens.

    Args:
      features: [B, T, F, E] outputs of the verifier's layers.
      positions: [B, T].
    """
    chex.assert_rank([features, positions], [4, 2])
    network = self.config.network
    joined = features.reshape(features.shape[:2] + (-1,))
    fused = layers_lib.dense(joined, self.fuse)
    h = layers_lib.rms_norm(fused, self.context_norm, network.norm_eps)
    cos, sin = views.rope_of(network, positions, local=False)
    return tuple(layer.keys_values(h, cos, sin) for layer in self.layer)

  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    context: Sequence[tuple[jax.Array, jax.Array]],
    seen: jax.Array,
  ) -> jax.Array:
    """Returns the final states [B, M, E] of blocks.

    Args:
      x: [B, M, E] embedded tokens of a block.
      positions: [B, M].
      context: keys and values of each layer, each [B, Hkv, S, Dh].
      seen: [B, S] which of them the block sees.
    """
    chex.assert_rank([x, positions, seen], [3, 2, 2])
    network = self.config.network
    angles = views.rope_of(network, positions, local=False)
    mask = seen[:, None]
    view = views.View(*angles, mask, attention.span(mask))
    view = jax.lax.optimization_barrier(view)
    for layer, keys in zip(self.layer, context):
      x = layer(x, keys, view)
    return layers_lib.rms_norm(x, self.final_norm, network.norm_eps)


# Not a language model of its own: it is called otherwise.
networks.register(DFlashConfig, DFlash, shapes)
