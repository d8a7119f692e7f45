"""One layer of `transformer.Transformer`, driven by the config."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.models import attention
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.parallel import pin


def shapes(config: config_lib.TransformerConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each of its tensors."""
  c = config
  query_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
  table = {
    'attention_norm': (c.width,),
    'query': (query_width, c.width),
    'key': (kv_width, c.width),
    'value': (kv_width, c.width),
    'output': (c.width, query_width),
    'mlp_norm': (c.width,),
    'gate': (c.mlp_width, c.width),
    'up': (c.mlp_width, c.width),
    'down': (c.width, c.mlp_width),
  }
  if c.qkv_bias:
    table |= {
      'query_bias': (query_width,),
      'key_bias': (kv_width,),
      'value_bias': (kv_width,),
    }
  if c.qk_norm:
    table |= {'query_norm': (c.head_dim,), 'key_norm': (c.head_dim,)}
  if c.post_norms:
    table |= {'attention_post_norm': (c.width,), 'mlp_post_norm': (c.width,)}
  return table


class LayerParts(nn.Module):
  """A layer without its attention: the weights, and the maps around it.

  A drafter's layer attends in a way of its own between the same maps.
  """

  config: config_lib.TransformerConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    layers_lib.make_params(
        self, shapes(self.config), self.param_dtype,
        1.0 - self.config.norm_offset,
    )  # fmt: skip

  def norm(self, x, scale):
    """Norms x over its last axis, with this weight."""
    c = self.config
    return layers_lib.rms_norm(x, scale, c.norm_eps, c.norm_offset)

  def queries(self, h, cos, sin):
    """Maps normed h [..., E] to rotated queries [..., H, Dh]."""
    c = self.config
    query = layers_lib.dense(h, self.query)
    if c.qkv_bias:
      query = query + self.query_bias.astype(jnp.float32)
    query = query.reshape(h.shape[:-1] + (c.heads, c.head_dim))
    if c.qk_norm:
      query = self.norm(query, self.query_norm)
    return layers_lib.rotate(query, cos, sin)

  def keys_values(self, h, cos, sin):
    """Maps normed h [..., T, E] to keys and values [..., Hkv, T, Dh]."""
    c = self.config
    key = layers_lib.dense(h, self.key)
    value = layers_lib.dense(h, self.value)
    if c.qkv_bias:
      key = key + self.key_bias.astype(jnp.float32)
      value = value + self.value_bias.astype(jnp.float32)
    shape = h.shape[:-1] + (c.kv_heads, c.head_dim)
    key, value = key.reshape(shape), value.reshape(shape)
    if c.qk_norm:
      key = self.norm(key, self.key_norm)
    key = layers_lib.rotate(key, cos, sin)
    return jnp.swapaxes(key, -3, -2), jnp.swapaxes(value, -3, -2)

  def after(self, x, attended):
    """Returns x after what it attended to [..., H * Dh], and after the MLP."""
    c = self.config
    out = layers_lib.dense(attended, self.output)
    x = x + (self.norm(out, self.attention_post_norm) if c.post_norms else out)
    h = self.norm(x, self.mlp_norm)
    gate = layers_lib.dense(h, self.gate)
    if c.activation == 'silu':
      gate = jax.nn.silu(gate)
    else:
      gate = jax.nn.gelu(gate, approximate=True)
    out = layers_lib.dense(gate * layers_lib.dense(h, self.up), self.down)
    return x + (self.norm(out, self.mlp_post_norm) if c.post_norms else out)


class Layer(LayerParts):
  """One pre-norm layer: attention, then a gated MLP."""

  def __call__(self, x, cache, local, start, view):
    """Returns x [B, M, E] after the layer, and (its cache, x again).

    The form is `nn.scan`'s: a carry, and what is stacked over layers. `view` is
    `views.View`, or a stack of global and local ones, if `local` is given.
    """
    if local is not None:
      view = jax.tree.map(lambda part: part[local], view)
    cos, sin, mask, seen = view
    h = self.norm(x, self.attention_norm)
    query = self.queries(h, cos, sin)
    key, value = self.keys_values(h, cos, sin)
    if cache is not None:
      # New keys enter the cache before attention, so that a token's key sits
      # at the same index whichever cycle scores it: sums keep their order.
      cache = cache.written((key, value), start)
    c = self.config
    out = attention.attend(
      query, cache or cache_lib.Layer(key, value), mask, seen, c.score_scale,
      c.attention,
    )  # fmt: skip
    x = pin.rows(self.after(x, out))
    return x, (cache, x)
