"""A decoder-only transformer with an explicit cache, driven by its config.

One network for Llama, SmolLM2, Mistral, Qwen and Gemma 3: what a config does
not ask for leaves no trace in the compiled program. Causal or not is the mask's
business. The residual stream is float32; weights and the operands of each
matmul have the dtype of the params. One layer has two drivers: unrolled (fast
on CPU) and `scan_layers` (fast to compile, and moves the same bytes on a TPU;
its params and cache are stacked over layers).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer_layer as layer_lib
from specdiff_jax.models import views as views_lib


def shapes(config: config_lib.TransformerConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  layer = layer_lib.shapes(config)
  return layers_lib.layered(_top_shapes(config), layer, config.layers)


def _top_shapes(config: config_lib.TransformerConfig) -> layers_lib.Shapes:
  c = config
  table = {'embed': (c.vocab_size, c.width), 'final_norm': (c.width,)}
  if not c.tied_head:
    table['head'] = (c.vocab_size, c.width)
  return table


class Transformer(nn.Module):
  """Scores M tokens of each row in one pass."""

  config: config_lib.TransformerConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    c = self.config
    layers_lib.make_params(
      self, _top_shapes(c), self.param_dtype, 1.0 - c.norm_offset
    )
    if c.scan_layers:
      self.layers = layer_lib.Layer(c, self.param_dtype)
    else:
      self.layer = [
        layer_lib.Layer(c, self.param_dtype) for _ in range(c.layers)
      ]

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    cache: cache_lib.Cache | None = None,
    start: jax.Array | None = None,
    features: Sequence[int] = (),
  ) -> tuple[jax.Array, cache_lib.Cache | None, jax.Array | None]:
    """Runs all layers; `logits` turns the result into scores.

    Args:
      tokens: [B, M] int32.
      positions: [B, M] rotary positions.
      mask: [B, M, S] bool over cache slots, or [B, M, M] without a cache; local
        layers see those of it that are within their window.
      cache: updated at `start`; None to attend among the M.
        Slot s holds position s, apart from the M that are written.
      start: [B] first cache slot that the M tokens take.
      features: layers whose outputs are wanted, 0-based.

    Returns:
      The final normed state [B, M, E], the cache, features [B, M, F, E] or
      None.
    """
    c = self.config
    x = scaled(c, layers_lib.lookup(self.embed, tokens))
    views = views_lib.views_of(c, positions, mask, start, c.local_layers)
    layers = self.layers if c.scan_layers else self.layer
    x, cache, taken = run(layers, c, x, cache, start, views, features)
    x = layers_lib.rms_norm(x, self.final_norm, c.norm_eps, c.norm_offset)
    return x, cache, taken

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps final states [..., E] to float32 logits [..., V]."""
    return layers_lib.dense(
      x, self.embed if self.config.tied_head else self.head
    )


def scaled(config: config_lib.TransformerConfig, x: jax.Array) -> jax.Array:
  """Returns what the first layer reads of stored embeddings [..., E]."""
  return x if config.embed_scale == 1 else x * config.embed_scale


def run(
  layers, config, x, cache, start, views, features
) -> tuple[jax.Array, cache_lib.Cache | None, jax.Array | None]:
  """Drives all layers of a network, unrolled or scanned.

  Args:
    layers: modules called as `Layer` is: a list, or one of stacked params.
    config: of the network.
    x: [B, M, E].
    cache: of all layers, or None.
    start: [B] or None.
    views: what global (False) and local (True) layers see by.
    features: layers whose outputs are wanted.

  Returns:
    x, the cache, and features [B, M, F, E] or None.
  """
  local = config.local_layers
  if config.scan_layers:
    which, view = None, views[local[0]]
    if len(views) > 1:
      which = jnp.asarray(local, jnp.int32)
      view = jax.tree.map(lambda *x: jnp.stack(x), views[False], views[True])
    return _scan(layers, config, x, cache, which, start, view, features)
  outputs = []
  for i, layer in enumerate(layers):
    x, (updated, output) = _call(
      layer, x, cache and cache.layer(i), None, start, views[local[i]]
    )
    outputs.append(output)
    cache = cache and cache.updated(i, updated)
  taken = jnp.stack([outputs[i] for i in features], 2) if features else None
  return x, cache, taken


def _call(layer: nn.Module, *args):
  """Calls a bound layer, traced once for all layers of the same form."""
  if layer.is_initializing():
    return layer(*args)
  alone = layer.clone(parent=None, name=None)
  return _apply(alone, layer.variables, *args)


@functools.partial(jax.jit, static_argnums=0)
def _apply(layer, variables, *args):
  return layer.apply(variables, *args)


def _scan(layer, config, x, cache, which, start, view, features):
  """Drives stacked layers; keeps the outputs that are wanted, and no others.

  Each layer writes its output where the first wanted one from it on belongs,
  or past the last: what is not wanted is overwritten.
  """
  wanted = sorted(set(features))
  place = [sum(w < i for w in wanted) for i in range(config.layers)]

  def body(layer, carry, index, which, place, start, view):
    x, pair, kept = carry
    cache = None
    if pair is not None:
      cache = cache_lib.Layer(*pair, index=index)
    x, (cache, output) = layer(x, cache, which, start, view)
    if wanted:
      kept = lax.dynamic_update_index_in_dim(kept, output, place, 0)
    return (x, cache and cache.pair, kept), None

  over_layers = nn.scan(
    body,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=(0, 0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]  # a prefix
    length=config.layers,
  )
  kept = jnp.zeros((len(wanted) + 1, *x.shape), x.dtype) if wanted else None
  place = jnp.asarray(place, jnp.int32)
  # The cache rides in the carry: stacked over turns, all of it would be copied.
  pair = None if cache is None else cache.layers
  index = jnp.arange(config.layers, dtype=jnp.int32)
  (x, pair, kept), _ = over_layers(
    layer, (x, pair, kept), index, which, place, start, view
  )
  cache = None if cache is None else cache_lib.Cache(pair)
  if not wanted:
    return x, cache, None
  taken = jnp.stack([kept[wanted.index(i)] for i in features], 2)
  return x, cache, taken


def stacked(config, params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Returns config and params of the same network whose layers are scanned.

  `params` is emptied, a leaf of all layers at a time: no more is there twice.
  """
  layers = [params.pop(f'layer_{i}') for i in range(config.layers)]
  leaves, form = zip(*map(jax.tree.flatten, layers), strict=True)
  layers.clear()
  joint = []
  for place in range(len(leaves[0])):
    joint.append(jnp.stack([one[place] for one in leaves]))
    for one in leaves:
      one[place] = None
  params = {**params, 'layers': form[0].unflatten(joint)}
  return dataclasses.replace(config, scan_layers=True), params


def unrolled(config, params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the params of `stacked` layers as those of single ones."""
  rest = {name: value for name, value in params.items() if name != 'layers'}
  each = {f'layer_{i}': layer_params(params, i) for i in range(config.layers)}
  return rest | each


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
  cache: cache_lib.Cache | None = None,
  start: jax.Array | None = None,
  local: Sequence[bool] | None = None,
) -> tuple[jax.Array, cache_lib.Cache | None]:
  """Runs the first layers over states: what drafters share with a verifier.

  Args:
    config: sizes; unrolled or not, the layers are run one by one.
    params: with `final_norm` and at least `count` layers.
    count: how many layers.
    x: [B, M, E] embedded tokens.
    positions: [B, M] rotary positions.
    mask: [B, M, S] bool over cache slots, or [B, M, M] without a cache.
    cache: of these layers, updated at `start`.
    start: [B] first cache slot that the M tokens take.
    local: which of these layers are local; by default as in the config.

  Returns:
    The states after `final_norm` [B, M, E], and the cache.
  """
  local = config.local_layers[:count] if local is None else local
  views = views_lib.views_of(config, positions, mask, start, local)
  for i in range(count):
    x, (updated, _) = _apply(
        layer_lib.Layer(config), {'params': layer_params(params, i)},
        x, cache and cache.layer(i), None, start, views[local[i]],
    )  # fmt: skip
    cache = cache and cache.updated(i, updated)  # pyright: ignore[reportArgumentType]  # of linen
  x = layers_lib.rms_norm(
    x, params['final_norm'], config.norm_eps, config.norm_offset
  )
  return x, cache
