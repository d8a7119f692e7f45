"""GPT-2: learned positions, LayerNorm and biases, one fused Q, K and V.

The call, the cache and the two drivers are those of `transformer.Transformer`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.models import attention
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class GPT2Config:
  """Sizes of GPT-2; raises InputError on impossible ones.

  Example: GPT2Config(vocab_size=257, width=32, layers=2, heads=4,
  mlp_width=128, max_positions=64)
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  max_positions: int = 1024  # rows of the table of positions
  norm_eps: float = 1e-5
  tied_head: bool = True
  scan_layers: bool = False
  attention: str = ''  # see `TransformerConfig`

  def __post_init__(self):
    config_lib.check_sizes(self)
    config_lib.check_attention(self, config_lib.ATTENTION[:-1])  # no kernel
    if self.width % self.heads:
      raise errors.InputError(
        f'GPT2Config: width={self.width} is not a multiple of '
        f'heads={self.heads}; change one of the two.'
      )

  @property
  def kv_heads(self) -> int:
    return self.heads

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def local_layers(self) -> tuple[bool, ...]:
    return (False,) * self.layers


def shapes(config: GPT2Config) -> layers_lib.Shapes:
  """Returns the shape of every tensor, by its name joined with '.'."""
  return layers_lib.layered(
    _top_shapes(config), layer_shapes(config), config.layers
  )


def _top_shapes(config: GPT2Config) -> layers_lib.Shapes:
  c = config
  table = {
    'embed': (c.vocab_size, c.width),
    'position_embed': (c.max_positions, c.width),
    'final_norm': (c.width,),
    'final_norm_bias': (c.width,),
  }
  if not c.tied_head:
    table['head'] = (c.vocab_size, c.width)
  return table


def layer_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of one layer's tensors."""
  c = config
  return {
    'attention_norm': (c.width,),
    'attention_norm_bias': (c.width,),
    'qkv': (3 * c.width, c.width),
    'qkv_bias': (3 * c.width,),
    'output': (c.width, c.width),
    'output_bias': (c.width,),
    'mlp_norm': (c.width,),
    'mlp_norm_bias': (c.width,),
    'up': (c.mlp_width, c.width),
    'up_bias': (c.mlp_width,),
    'down': (c.width, c.mlp_width),
    'down_bias': (c.width,),
  }


class Layer(nn.Module):
  """One pre-norm layer: attention, then an MLP."""

  config: GPT2Config
  param_dtype: Any = jnp.float32

  def setup(self):
    table = layer_shapes(self.config)
    layers_lib.make_params(self, table, self.param_dtype)

  def __call__(self, x, cache, local, start, view):
    """Returns x [B, M, E] after the layer, and (its cache, x again).

    The form is that of `transformer.Layer`; there is no local layer.
    """
    c = self.config
    del local
    h = self._norm(x, 'attention_norm')
    fused = self._affine(h, 'qkv')
    fused = fused.reshape(x.shape[:2] + (3, c.heads, c.head_dim))
    query, key, value = (fused[:, :, i] for i in range(3))
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if cache is not None:  # before attention, as in `transformer.Layer`
      cache = cache.written((key, value), start)
    out = attention.attend(
      query, cache or cache_lib.Layer(key, value), *view, form=c.attention
    )
    x = x + self._affine(out, 'output')
    h = self._affine(self._norm(x, 'mlp_norm'), 'up')
    x = x + self._affine(jax.nn.gelu(h, approximate=True), 'down')
    return x, (cache, x)

  def _norm(self, x, name):
    bias = getattr(self, f'{name}_bias')
    return layers_lib.layer_norm(
      x, getattr(self, name), bias, self.config.norm_eps
    )

  def _affine(self, x, name):
    bias = getattr(self, f'{name}_bias')
    return layers_lib.affine(x, getattr(self, name), bias)


class GPT2(nn.Module):
  """Scores M tokens of each row in one pass; see `transformer.Transformer`."""

  config: GPT2Config
  param_dtype: Any = jnp.float32

  def setup(self):
    c = self.config
    layers_lib.make_params(self, _top_shapes(c), self.param_dtype)
    if c.scan_layers:
      self.layers = Layer(c, self.param_dtype)
    else:
      self.layer = [Layer(c, self.param_dtype) for _ in range(c.layers)]

  def __call__(
    self, tokens, positions, mask, cache=None, start=None, features=()
  ):
    """Returns the final state, the cache, features; as `Transformer` does."""
    c = self.config
    x = layers_lib.lookup(self.embed, tokens)
    x = x + layers_lib.lookup(self.position_embed, positions)
    seen = None if cache is None else attention.span(mask)
    views = {False: lax.optimization_barrier((mask, seen))}
    layers = self.layers if c.scan_layers else self.layer
    x, cache, taken = transformer.run(
      layers, c, x, cache, start, views, features
    )
    x = layers_lib.layer_norm(
      x, self.final_norm, self.final_norm_bias, c.norm_eps
    )
    return x, cache, taken

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps final states [..., E] to float32 logits [..., V]."""
    return layers_lib.dense(
      x, self.embed if self.config.tied_head else self.head
    )
