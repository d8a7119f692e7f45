"""The network of a one-pass masked-diffusion drafter.

A window of G masked slots is filled in one pass. Each slot starts from the
verifier's states of the last verified token, the embedding of the anchor (the
last committed token, which the verifier has not read yet) and, where the text
repeats itself, the embedding of the token that prompt lookup would copy: a
hint that the network weighs against all else. Slots see each other in both
directions and the committed text through keys and values made of the
verifier's own features (DFlash, 2602.06036): the prefix never sees the masks,
so its keys are exact in serving and shared by all windows in training.

`windows` calls it.
"""

import dataclasses
from typing import Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.core import jax_settings
from specdiff_jax.drafters.diffusion import layer as drafter_layer
from specdiff_jax.models import attention
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer as layer_lib
from specdiff_jax.models import views

# Root mean square of the residual stream before the last layers of SmolLM2.
_STREAM = 16.0


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
  """Sizes of a drafter; widths follow the verifier's.

  Attributes:
    gamma: G, slots of the window.
    layers: of the drafter.
    features: verifier layers (0-based outputs) that it reads; the last of
      them also starts the slots.
    trunk: hidden width of the MLP that starts the slots.
    vocab: number of tokens it can draft, the verifier's most frequent ones.
    ngram: longest match of the lookup hint; 0 for no hint.
    verifier: the verifier's own sizes.
  """

  gamma: int
  layers: int
  features: tuple[int, ...]
  trunk: int
  vocab: int
  ngram: int
  verifier: config_lib.TransformerConfig

  kind: ClassVar[str] = 'diffusion'
  may_be_zero: ClassVar[tuple[str, ...]] = ('ngram',)

  def __post_init__(self):
    config_lib.require_transformer(self.verifier, 'A diffusion drafter')

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Which layers turn their heads as the verifier's local ones do."""
    return self.verifier.local_layers[-self.layers :]

  def shapes(self):
    """Returns the tree of trained parameters as shapes; `vocab` aside."""
    return jax.eval_shape(lambda: initial(self, jax_settings.key(0)))


class DrafterNetwork(nn.Module):
  """Fills N windows of G slots for each row."""

  config: DrafterConfig
  param_dtype: Any = jnp.float32
  remat: bool = False  # compute each layer again on the way back

  def setup(self):
    c = self.config
    width = c.verifier.width
    matrix, ones = layers_lib.NORMAL, nn.initializers.ones
    zeros = nn.initializers.zeros

    def param(name, init, *shape):
      return self.param(name, init, shape, self.param_dtype)

    read = len(c.features) * width
    self.fuse = param('fuse', matrix, width, read)
    self.trunk = param('trunk', matrix, c.trunk, read + width)
    self.slot_shift = param(
      'slot_shift', nn.initializers.normal(0.5), c.gamma, c.trunk
    )
    self.slot_scale = param('slot_scale', ones, c.gamma, c.trunk)
    self.expand = param('expand', matrix, width, c.trunk)
    self.stream = param('stream', ones, width)
    if c.ngram:
      self.hint = param('hint', matrix, width, width)
      self.matched = param('matched', zeros, c.ngram + 1, width)
    layer = drafter_layer.DrafterLayer
    layer = nn.remat(layer) if self.remat else layer
    self.layer = [layer(c.verifier, self.param_dtype) for _ in range(c.layers)]
    final = layers_lib.initializer('final_norm', 1.0 - c.verifier.norm_offset)
    self.final_norm = param('final_norm', final, width)

  def context(self, features: jax.Array, positions: jax.Array):
    """Maps features [B, T, F, E] to keys and values of every layer."""
    chex.assert_rank([features, positions], [4, 2])
    h = layers_lib.dense(self._read(features), self.fuse)
    turns, kinds = self._turns(positions), self.config.local_layers
    return tuple(
      layer.context(h, *turns[local])
      for layer, local in zip(self.layer, kinds, strict=True)
    )

  def _turns(self, positions):
    """Returns (cos, sin) of global layers (False) and of local ones."""
    return {
      local: views.rope_of(self.config.verifier, positions, local)
      for local in sorted(set(self.config.local_layers))
    }

  def _read(self, features):
    normed = layers_lib.rms_norm(features, None, 1e-6)
    return normed.reshape(normed.shape[:-2] + (-1,))

  def __call__(
    self, last, anchor, hint, matched, context, mask, positions, serving=False
  ):
    """Returns the final states of all slots [B, N, G, E].

    Args:
      last: [B, N, F, E] features of the token before the anchor.
      anchor: [B, N, E] embedding of the last committed token.
      hint: [B, N, G, E] embeddings of the copied tokens.
      matched: [B, N, G] length of the lookup match, 0 for none.
      context: keys and values of each layer, [B, Hkv, S, Dh].
      mask: [B, N, S] what of the context a window sees.
      positions: [B, N, G] absolute positions of the slots.
      serving: whether there is no gradient: what no window sees is not read.
    """
    c = self.config
    read = self._read(last)
    anchor = layers_lib.rms_norm(anchor, None, 1e-6)
    hidden = layers_lib.dense(
      jnp.concatenate([read, anchor], axis=-1), self.trunk
    )
    hidden = hidden[..., None, :] + self.slot_shift.astype(jnp.float32)
    hidden = jax.nn.silu(hidden) * self.slot_scale.astype(jnp.float32)
    x = layers_lib.dense(hidden, self.expand)
    x = x + read[..., None, -c.verifier.width :]
    if c.ngram:
      hint = layers_lib.rms_norm(hint, None, 1e-6)
      hint = layers_lib.dense(hint, self.hint)
      hint = hint + self.matched.astype(jnp.float32)[matched]
      x = x + jnp.where(matched[..., None] > 0, hint, 0.0)
    x = x * self.stream.astype(jnp.float32)
    turns = self._turns(positions)
    seen = attention.span(mask) if serving else None
    for layer, local, kv in zip(
      self.layer, c.local_layers, context, strict=True
    ):
      x = layer(x, kv, mask, seen, *turns[local])
    return layers_lib.rms_norm(
      x, self.final_norm, c.verifier.norm_eps, c.verifier.norm_offset
    )


def initial(config: DrafterConfig, key: jax.Array) -> Any:
  """Returns random parameters, float32."""
  c = config.verifier
  batch, windows, size = 1, 1, 1
  kv = jnp.zeros((batch, c.kv_heads, size, c.head_dim))
  network = DrafterNetwork(config)
  features = jnp.zeros((batch, size, len(config.features), c.width))

  def touch(module):
    module.context(features, jnp.zeros((batch, size), jnp.int32))
    return module(
      features,
      jnp.zeros((batch, windows, c.width)),
      jnp.zeros((batch, windows, config.gamma, c.width)),
      jnp.zeros((batch, windows, config.gamma), jnp.int32),
      ((kv, kv),) * config.layers,
      jnp.ones((batch, windows, size), bool),
      jnp.zeros((batch, windows, config.gamma), jnp.int32),
    )

  return nn.init(touch, network)(key)['params']


def initial_from_verifier(
  config: DrafterConfig, key: jax.Array, verifier
) -> Any:
  """Returns parameters whose layers are the verifier's last ones.

  The fused features start as the state that those layers read in the
  verifier, so that the keys of the context start as the verifier's own; the
  slots start at the scale that the residual stream has there, so that what
  the layers add stays in proportion.
  """
  params = initial(config, key)
  c = config.verifier
  first = c.layers - config.layers
  verifier = layer_lib.parted(c, verifier)
  for i in range(config.layers):
    params[f'layer_{i}'] = jax.tree.map(
      lambda x: jnp.asarray(x, jnp.float32),
      dict(transformer.layer_params(verifier, first + i)),
    )
  params['stream'] = _STREAM * params['stream']
  params['final_norm'] = jnp.asarray(verifier['final_norm'], jnp.float32)
  if first - 1 in config.features:
    at = config.features.index(first - 1) * c.width
    fuse = 0.1 * params['fuse']
    params['fuse'] = fuse.at[:, at : at + c.width].add(jnp.eye(c.width))
  return params
