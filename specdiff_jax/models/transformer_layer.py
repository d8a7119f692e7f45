"""One layer of `transformer.Transformer`, driven by the config.

Serving merges weights that meet the same input (`merged`): queries, keys and
values are then one product, gate and up another. The layer goes by the params
that it is given. What is trained and what lies in files is not merged.
"""

from collections.abc import Mapping
import itertools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.models import attention
from specdiff_jax.models import attention_kernel
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import int8
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.parallel import pin

# Names of weights that meet the same input, in the order that they are merged.
GROUPS = (('query', 'key', 'value'), ('gate', 'up'))
_JOINTS = tuple((group, kind) for group in GROUPS for kind in ('', '_bias'))


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


def merged(params: Any, platform: str = '') -> Any:
  """Returns params with the weights of each of GROUPS as one, in all layers.

  Of arrays and of `int8.Int8`, stacked over layers or not. On a TPU gate and up
  stay apart: there the second product multiplies its result with the first one,
  and what is between them does not go to memory in float32. `platform` is that
  of the devices, by default of this process.

  Example: merged(checkpoint.params, 'cpu')
  """
  platform = platform or jax.default_backend()

  def one(layer):
    if not _is_plain(layer):
      return layer
    table, axis = dict(layer), _axis(layer)
    for group, kind in _JOINTS:
      if platform == 'tpu' and group == GROUPS[1]:
        continue
      if group[0] + kind in table:
        table['_'.join(group) + kind] = jax.tree.map(
          lambda *x: jnp.concatenate(x, axis),
          *(table.pop(name + kind) for name in group),
        )
    return table

  return jax.tree.map(one, params, is_leaf=_is_plain)


def parted(config: Any, params: Any) -> Any:
  """Returns the params that were `merged`; others as they are, of any config."""

  def one(layer):
    if not is_merged(layer):
      return layer
    table, axis, sizes = dict(layer), _axis(layer), shapes(config)
    for group, kind in _JOINTS:
      joint, start = table.pop('_'.join(group) + kind, None), 0
      for name in group if joint is not None else ():
        end = start + sizes[name][0]
        table[name + kind] = jax.tree.map(
          lambda x: lax.slice_in_dim(x, start, end, axis=axis), joint
        )
        start = end
    return table

  return jax.tree.map(one, params, is_leaf=is_merged)


def is_merged(layer: Any) -> bool:
  """Whether these are the params of a layer whose weights are merged."""
  return isinstance(layer, Mapping) and '_'.join(GROUPS[0]) in layer


def _is_plain(layer: Any) -> bool:
  return isinstance(layer, Mapping) and GROUPS[0][0] in layer


def _axis(layer: Mapping[str, Any]) -> int:
  """Returns where all its weights, scales and biases have their outputs."""
  return layer['attention_norm'].ndim - 1  # behind that of stacked layers


class LayerParts(nn.Module):
  """A layer without its attention: the weights, and the maps around it.

  A drafter's layer attends in a way of its own between the same maps.
  """

  config: config_lib.TransformerConfig
  param_dtype: Any = jnp.float32

  def table(self) -> layers_lib.Shapes:
    """Returns the shape of each of its tensors, none merged."""
    return shapes(self.config)

  def setup(self):
    table = self.table()
    for group, kind in _JOINTS:
      joint = '_'.join(group) + kind
      if self.has_variable('params', joint):
        rows = [table.pop(name + kind) for name in group]
        table[joint] = (sum(x[0] for x in rows), *rows[0][1:])
    layers_lib.make_params(
      self, table, self.param_dtype, 1.0 - self.config.norm_offset
    )

  def norm(self, x, scale):
    """Norms x over its last axis, with this weight."""
    c = self.config
    return layers_lib.rms_norm(x, scale, c.norm_eps, c.norm_offset)

  def queries_keys_values(self, h, cos, sin):
    """Maps normed h [..., T, E] to rotated queries, keys and values.

    Queries are [..., T, H, Dh], the others as of `keys_values`.
    """
    query, key, value = self._heads(h, 'query', 'key', 'value')
    query = layers_lib.rotate(query, cos, sin)
    return query, *_stored(key, value, cos, sin)

  def keys_values(self, h, cos, sin):
    """Maps normed h [..., T, E] to keys and values [..., Hkv, T, Dh]."""
    key, value = self._heads(h, 'key', 'value')
    return _stored(key, value, cos, sin)

  def attended(self, h, layer, view, start=None) -> Any:
    """Attends by `attention_kernel`, from normed h [B, M, E] on.

    Returns what it does; None where that is not asked for, or does not fit.
    """
    c = self.config
    rows = h.shape[-2] * c.heads // c.kv_heads
    if c.attention != 'kernel' or layer is None or view.seen is None:
      return None
    if not attention_kernel.fits(rows, layer):
      return None
    weight = self.output
    dtype = jnp.float32 if isinstance(weight, int8.Int8) else weight.dtype
    return attention_kernel.attend(
      self._heads(h, *GROUPS[0]), (view.cos, view.sin), layer, view.mask,
      view.seen, c.score_scale, start, dtype,
    )  # fmt: skip

  def _heads(self, h, *names):
    """Maps h to heads [..., T, H, Dh] of these names, normed and not rotated."""
    heads = []
    for name, x in zip(names, self._products(h, *names), strict=True):
      x = x.reshape(*x.shape[:-1], -1, self.config.head_dim)
      if self.config.qk_norm and name != 'value':
        x = self.norm(x, getattr(self, f'{name}_norm'))
      heads.append(x)
    return heads

  def _products(self, h, *names):
    """Maps h by weights of a group, all of them or the last ones."""
    group = next(group for group in GROUPS if names[-1] in group)
    joint = '_'.join(group)
    if not hasattr(self, joint):
      return [self._product(h, name) for name in names]
    sizes = [shapes(self.config)[name][0] for name in group]
    first = len(group) - len(names)
    out = self._product(h, joint, sum(sizes[:first]))
    ends = itertools.accumulate(sizes[first:-1])
    return jnp.split(out, list(ends), axis=-1)

  def _product(self, h, name, skipped=0):
    """Maps h by the rows of a weight behind those skipped, adds its bias."""
    weight = getattr(self, name), getattr(self, f'{name}_bias', None)
    weight, bias = jax.tree.map(lambda x: x[skipped:], weight)
    out = layers_lib.dense(h, weight)
    return out if bias is None else out + bias.astype(jnp.float32)

  def after(self, x, attended):
    """Returns x after what it attended to [..., H * Dh], and after the MLP."""
    x = x + self.attention_output(attended)
    return x + self.mlp(self.norm(x, self.mlp_norm))

  def attention_output(self, attended):
    """Returns what is added to x for what was attended to."""
    out = layers_lib.dense(attended, self.output)
    normed = self.config.post_norms
    return self.norm(out, self.attention_post_norm) if normed else out

  def mlp(self, h):
    """Returns what the MLP adds to x, of normed x."""
    c = self.config
    gate, up = self._products(h, 'gate', 'up')
    if c.activation == 'silu':
      gate = jax.nn.silu(gate)
    else:
      gate = jax.nn.gelu(gate, approximate=True)
    out = layers_lib.dense(gate * up, self.down)
    return self.norm(out, self.mlp_post_norm) if c.post_norms else out


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
    if found := self.attended(h, cache, view, start):
      out, cache = found
    else:
      query, key, value = self.queries_keys_values(h, cos, sin)
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


def _stored(key, value, cos, sin):
  """Returns keys, rotated, and values [..., Hkv, T, Dh]."""
  key = layers_lib.rotate(key, cos, sin)
  return jnp.swapaxes(key, -3, -2), jnp.swapaxes(value, -3, -2)
