"""A decoder-only transformer of the Llama family, with an explicit cache.

Causal or not is the mask's business. The residual stream is float32; weights
and the operands of each matmul have the dtype of the params. One layer
function has two drivers: unrolled (fast on CPU) and `scan_layers` (fast to
compile on TPU and GPU; its params and cache are stacked over layers).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.models import config as config_lib

Cache = Any  # one (keys, values), each [B, Hkv, S, Dh], per layer; or stacked

_MASKED = -1e30  # finite, so that a row that sees nothing yields no NaN


def dense(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns x @ weight.T in float32 for weight [out, in].

  Two rules of XLA's CPU backend make this the fast form for thin x: both
  operands are matrices contracted over their last dimension (with more
  dimensions the weight would be transposed), and a bf16 weight meets at least
  two rows (one row converts the whole weight to float32).
  """
  rows = x.reshape(-1, x.shape[-1]).astype(weight.dtype)
  single = rows.shape[0] == 1 and weight.dtype == jnp.bfloat16
  if single:  # the barrier keeps XLA from seeing that the rows are equal
    rows = lax.optimization_barrier(jnp.concatenate([rows, rows]))
  out = lax.dot_general(
      rows,
      weight,
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
  )
  out = out[:1] if single else out
  return out.reshape(x.shape[:-1] + (weight.shape[0],))


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns rows of table [V, E] as float32 [..., E].

  The gather runs on the table's bits: XLA's CPU backend would convert a whole
  bf16 table to float32 first.
  """
  if table.dtype == jnp.bfloat16:
    bits = lax.bitcast_convert_type(table, jnp.uint16)
    return lax.bitcast_convert_type(bits[ids], jnp.bfloat16).astype(jnp.float32)
  return table[ids].astype(jnp.float32)


def rms_norm(x: jax.Array, scale: jax.Array | None, eps: float) -> jax.Array:
  """Divides by the root mean square over the last axis, in float32."""
  x = x.astype(jnp.float32)
  y = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  return y if scale is None else y * scale.astype(jnp.float32)


def rope(positions: jax.Array, head_dim: int, base: float):
  """Returns cos and sin [..., Dh/2] of rotary position embedding."""
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  angles = positions[..., None].astype(jnp.float32) * base**-exponents
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + Dh/2) of x [..., H, Dh] by angles [..., Dh/2]."""
  first, second = jnp.split(x, 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def grouped_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
  """Attends with grouped queries.

  Args:
    query: [B, M, H, Dh] float32.
    key: [B, Hkv, S, Dh].
    value: [B, Hkv, S, Dh].
    mask: [B, M, S] bool, True where slot m sees key s.

  Returns:
    [B, M, H * Dh] float32.
  """
  batch, slots, heads, head_dim = query.shape
  kv_heads = key.shape[1]
  group = heads // kv_heads
  # Query rows of one kv head are stacked [g0m0, g0m1, .., g1m0, ..], so that
  # each (row, kv head) is one plain matmul.
  query = query.reshape(batch, slots, kv_heads, group, head_dim)
  query = query.transpose(0, 2, 3, 1, 4).reshape(
      batch, kv_heads, group * slots, head_dim
  )
  query = (query * head_dim**-0.5).astype(key.dtype)
  scores = jnp.einsum(
      'bkqd,bksd->bkqs', query, key, preferred_element_type=jnp.float32
  ).reshape(batch, kv_heads, group, slots, -1)
  scores = jnp.where(mask[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1)
  weights = weights.reshape(batch, kv_heads, group * slots, -1)
  out = jnp.einsum(
      'bkqs,bksd->bkqd',
      weights.astype(value.dtype),
      value,
      preferred_element_type=jnp.float32,
  ).reshape(batch, kv_heads, group, slots, head_dim)
  return out.transpose(0, 3, 1, 2, 4).reshape(batch, slots, heads * head_dim)


def write_rows(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  """Writes new [B, Hkv, M, Dh] into cache [B, Hkv, S, Dh] at start [B].

  A loop of slice updates works in place, where the scatter that `vmap` makes of
  them may not; on bits, since XLA's CPU backend would update a bf16 array by
  converting all of it to float32 and back.
  """
  dtype = cache.dtype
  new = new.astype(dtype)
  if dtype == jnp.bfloat16:
    new = lax.bitcast_convert_type(new, jnp.uint16)
    cache = lax.bitcast_convert_type(cache, jnp.uint16)

  def one(row, cache):
    update = lax.dynamic_slice_in_dim(new, row, 1, axis=0)
    return lax.dynamic_update_slice(cache, update, (row, 0, start[row], 0))

  if cache.shape[0] == 1:
    cache = one(0, cache)
  else:
    cache = lax.fori_loop(0, cache.shape[0], one, cache)
  if dtype == jnp.bfloat16:
    cache = lax.bitcast_convert_type(cache, jnp.bfloat16)
  return cache


def normal(scale: float = 0.02):
  """Returns the initializer of all weights."""
  return nn.initializers.normal(scale)


class Layer(nn.Module):
  """One pre-norm layer: attention, then a gated MLP."""

  config: config_lib.TransformerConfig
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, cache, start, mask, cos, sin):
    """Returns x [B, M, E] after the layer, and (its cache, x again).

    The form is `nn.scan`'s: a carry, and what is stacked over layers.
    """
    c = self.config
    query_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def weight(name, *shape):
      return self.param(name, normal(0.02), shape, self.param_dtype)

    def norm(name):
      return self.param(
          name, nn.initializers.ones, (c.width,), self.param_dtype
      )

    batch, slots = x.shape[:2]
    h = rms_norm(x, norm('attention_norm'), c.norm_eps)
    query = dense(h, weight('query', query_width, c.width))
    key = dense(h, weight('key', kv_width, c.width))
    value = dense(h, weight('value', kv_width, c.width))
    query = rotate(
        query.reshape(batch, slots, c.heads, c.head_dim), cos, sin
    )
    key = rotate(key.reshape(batch, slots, c.kv_heads, c.head_dim), cos, sin)
    value = value.reshape(batch, slots, c.kv_heads, c.head_dim)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    if cache is not None:
      # New keys enter the cache before attention, so that a token's key sits
      # at the same index whichever cycle scores it: sums keep their order.
      key = write_rows(cache[0], key, start)
      value = write_rows(cache[1], value, start)
    out = grouped_attention(query, key, value, mask)
    x = x + dense(out, weight('output', c.width, query_width))
    h = rms_norm(x, norm('mlp_norm'), c.norm_eps)
    gate = dense(h, weight('gate', c.mlp_width, c.width))
    up = dense(h, weight('up', c.mlp_width, c.width))
    x = x + dense(
        jax.nn.silu(gate) * up, weight('down', c.width, c.mlp_width)
    )
    return x, (None if cache is None else (key, value), x)


class Transformer(nn.Module):
  """Scores M tokens of each row in one pass."""

  config: config_lib.TransformerConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    c = self.config
    self.embed = self.param(
        'embed', normal(0.02), (c.vocab_size, c.width), self.param_dtype
    )
    self.final_norm = self.param(
        'final_norm', nn.initializers.ones, (c.width,), self.param_dtype
    )
    if not c.tied_head:
      self.head = self.param(
          'head', normal(0.02), (c.vocab_size, c.width), self.param_dtype
      )
    if c.scan_layers:
      self.layers = nn.scan(
          Layer,
          variable_axes={'params': 0},
          split_rngs={'params': True},
          in_axes=(0,) + (nn.broadcast,) * 4,
          length=c.layers,
      )(c, self.param_dtype)
    else:
      self.layer = [Layer(c, self.param_dtype) for _ in range(c.layers)]

  def __call__(
      self,
      tokens: jax.Array,
      positions: jax.Array,
      mask: jax.Array,
      cache: Cache | None = None,
      start: jax.Array | None = None,
      features: Sequence[int] = (),
  ) -> tuple[jax.Array, Cache, jax.Array | None]:
    """Runs all layers; `logits` turns the result into scores.

    Args:
      tokens: [B, M] int32.
      positions: [B, M] rotary positions.
      mask: [B, M, S] bool over cache slots, or [B, M, M] without a cache.
      cache: keys and values, updated at `start`; None to attend among the M.
      start: [B] first cache slot that the M tokens take.
      features: layers whose outputs are wanted, 0-based.

    Returns:
      The final normed state [B, M, E], the cache, features [B, M, F, E] or
      None.
    """
    c = self.config
    x = lookup(self.embed, tokens)
    # Without the barrier XLA would compute cosines and the mask once a layer.
    cos, sin, mask = lax.optimization_barrier(
        rope(positions, c.head_dim, c.rope_base) + (mask,)
    )
    if c.scan_layers:
      x, (cache, outputs) = self.layers(x, cache, start, mask, cos, sin)
    else:
      outputs, caches = [], []
      for i in range(c.layers):
        x, (updated, output) = self.layer[i](
            x, None if cache is None else cache[i], start, mask, cos, sin
        )
        outputs.append(output)
        caches.append(updated)
      cache = None if cache is None else tuple(caches)
    taken = jnp.stack([outputs[i] for i in features], 2) if features else None
    return rms_norm(x, self.final_norm, c.norm_eps), cache, taken

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps final states [..., E] to float32 logits [..., V]."""
    return dense(x, self.embed if self.config.tied_head else self.head)


def layer_params(params, index: int):
  """Returns the params of one layer, out of unrolled or stacked layers."""
  if 'layers' in params:
    return jax.tree.map(lambda x: x[index], params['layers'])
  return params[f'layer_{index}']


def first_layers(
    config: config_lib.TransformerConfig,
    params,
    count: int,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    cache: Sequence[tuple[jax.Array, jax.Array]] | None = None,
    start: jax.Array | None = None,
) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...] | None]:
  """Runs the first layers over states: what drafters share with a verifier.

  Args:
    config: sizes; unrolled or not, the layers are run one by one.
    params: with `final_norm` and at least `count` layers.
    count: how many layers.
    x: [B, M, E] embedded tokens.
    positions: [B, M] rotary positions.
    mask: [B, M, S] bool over cache slots, or [B, M, M] without a cache.
    cache: (keys, values) of each of these layers, updated at `start`.
    start: [B] first cache slot that the M tokens take.

  Returns:
    The states after `final_norm` [B, M, E], and the cache.
  """
  cos, sin, mask = lax.optimization_barrier(
      rope(positions, config.head_dim, config.rope_base) + (mask,)
  )
  caches = []
  for i in range(count):
    x, (updated, _) = Layer(config).apply(
        {'params': layer_params(params, i)},
        x, None if cache is None else cache[i], start, mask, cos, sin,
    )  # fmt: skip
    caches.append(updated)
  x = rms_norm(x, params['final_norm'], config.norm_eps)
  return x, (None if cache is None else tuple(caches))


def empty_cache(
    config: config_lib.TransformerConfig, batch: int, slots: int, dtype
) -> Cache:
  """Returns a zeroed cache of `slots` for each of `batch` rows."""
  shape = (batch, config.kv_heads, slots, config.head_dim)
  if config.scan_layers:
    shape = (config.layers,) + shape
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
  return tuple(
      (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
      for _ in range(config.layers)
  )


def cache_slots(cache: Cache) -> int:
  """Returns S, how many tokens of each row a cache has room for."""
  return jax.tree.leaves(cache)[0].shape[-2]


def causal_mask(length: jax.Array, tokens: int) -> jax.Array:
  """Returns [B, T, T]: token i of a row sees tokens j <= i, j < length."""
  index = jnp.arange(tokens)
  seen = (index[None, :] <= index[:, None])[None]
  return seen & (index[None, None, :] < length[:, None, None])
