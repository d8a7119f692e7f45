"""MDLM's network: a diffusion transformer over text (2406.07524, DDiT).

Tokens see what the mask lets them see: when trained, all others. A vector of
the noise level scales and shifts what is normed (adaLN). The published models
do without that level: theirs is the vector of zero noise in every pass.
"""

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
from specdiff_jax.models import transformer

_FREQUENCIES = 256  # of the noise level's sinusoids
_ROPE_BASE = 10000.0
_NORM_EPS = 1e-5
_MLP_RATIO = 4


@dataclasses.dataclass(frozen=True)
class DDiTConfig:
  """The sizes of a DDiT; raises InputError on impossible ones.

  Example: DDiTConfig(vocab_size=50258, width=768, layers=12, heads=12,
  condition_width=128, max_positions=1024)
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  condition_width: int
  max_positions: int

  def __post_init__(self):
    config_lib.check_sizes(self)
    if self.width % (2 * self.heads):
      raise errors.InputError(
        f'DDiTConfig: width={self.width} does not part into {self.heads} '
        'heads of an even size; change one of the two.'
      )

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def kv_heads(self) -> int:
    return self.heads

  @property
  def scan_layers(self) -> bool:
    return False

  @property
  def local_layers(self) -> tuple[bool, ...]:
    return (False,) * self.layers


def shapes(config: DDiTConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  return layers_lib.layered(
    top_shapes(config), layer_shapes(config), config.layers
  )


def top_shapes(config: DDiTConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of what belongs to no layer."""
  vocab, width = config.vocab_size, config.width
  condition = config.condition_width
  return {
    'embed': (vocab, width),
    'noise_in': (condition, _FREQUENCIES),
    'noise_in_bias': (condition,),
    'noise_out': (condition, condition),
    'noise_out_bias': (condition,),
    'final_norm': (width,),
    'final_modulation': (2 * width, condition),
    'final_modulation_bias': (2 * width,),
    'head': (vocab, width),
    'head_bias': (vocab,),
  }


def layer_shapes(config: DDiTConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of one layer."""
  width, between = config.width, _MLP_RATIO * config.width
  return {
    'attention_norm': (width,),
    'qkv': (3 * width, width),
    'output': (width, width),
    'mlp_norm': (width,),
    'up': (between, width),
    'up_bias': (between,),
    'down': (width, between),
    'down_bias': (width,),
    'modulation': (6 * width, config.condition_width),
    'modulation_bias': (6 * width,),
  }


class Layer(nn.Module):
  """Attention and an MLP, each normed, modulated and gated."""

  config: DDiTConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    layers_lib.make_params(self, layer_shapes(self.config), self.param_dtype)

  def __call__(self, x, cache, local, start, view):
    """Returns x [B, M, E] after the layer, and (its cache, x again).

    The form is that of `transformer.Layer`; there is no local layer.
    """
    c = self.config
    del local
    condition, cos, sin, mask, seen = view
    parts = layers_lib.affine(condition, self.modulation, self.modulation_bias)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(
      parts, 6, axis=-1
    )
    h = modulated(x, self.attention_norm, shift, scale)
    qkv = layers_lib.dense(h, self.qkv)
    qkv = qkv.reshape(x.shape[:2] + (3, c.heads, c.head_dim))
    query = layers_lib.rotate(qkv[:, :, 0], cos, sin)
    key = layers_lib.rotate(qkv[:, :, 1], cos, sin).transpose(0, 2, 1, 3)
    value = qkv[:, :, 2].transpose(0, 2, 1, 3)
    if cache is not None:  # before attention, as in `transformer.Layer`
      cache = cache.written((key, value), start)
    keys = cache or cache_lib.Layer(key, value)
    out = attention.attend(query, keys, mask, seen)
    x = x + gate * layers_lib.dense(out, self.output)
    h = modulated(x, self.mlp_norm, mlp_shift, mlp_scale)
    h = jax.nn.gelu(
      layers_lib.affine(h, self.up, self.up_bias), approximate=True
    )
    x = x + mlp_gate * layers_lib.affine(h, self.down, self.down_bias)
    return x, (cache, x)


class DDiT(nn.Module):
  """Scores M tokens of each row in one pass."""

  config: DDiTConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    layers_lib.make_params(self, top_shapes(self.config), self.param_dtype)
    self.layer = [
      Layer(self.config, self.param_dtype) for _ in range(self.config.layers)
    ]

  def __call__(
    self, tokens, positions, mask, cache=None, start=None, features=()
  ):
    """Returns the final state, the cache, features; as `Transformer` does."""
    chex.assert_rank([tokens, positions, mask], [2, 2, 3])
    c = self.config
    x = layers_lib.lookup(self.embed, tokens)
    angles = layers_lib.rope(positions, c.head_dim, _ROPE_BASE)
    condition = self._condition()
    seen = None if cache is None else attention.span(mask)
    view = (condition, *angles, mask, seen)
    view = jax.lax.optimization_barrier(view)
    x, cache, taken = transformer.run(
      self.layer, c, x, cache, start, {False: view}, features
    )
    parts = layers_lib.affine(
      condition, self.final_modulation, self.final_modulation_bias
    )
    x = modulated(x, self.final_norm, *jnp.split(parts, 2, axis=-1))
    return x, cache, taken

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps final states [..., E] to float32 logits [..., V]."""
    return layers_lib.affine(x, self.head, self.head_bias)

  def _condition(self):
    """Returns the vector [1, C] of zero noise: cosines are 1, sines 0."""
    x = (jnp.arange(_FREQUENCIES) < _FREQUENCIES // 2)[None].astype(jnp.float32)
    x = jax.nn.silu(layers_lib.affine(x, self.noise_in, self.noise_in_bias))
    return jax.nn.silu(
      layers_lib.affine(x, self.noise_out, self.noise_out_bias)
    )


def modulated(
  x: jax.Array, norm: jax.Array, shift: jax.Array, scale: jax.Array
) -> jax.Array:
  """Returns the normed x, scaled by 1 + scale and shifted."""
  x = layers_lib.layer_norm(x, norm, None, _NORM_EPS)
  return x * (1 + scale) + shift


networks.register(DDiTConfig, DDiT, shapes)
