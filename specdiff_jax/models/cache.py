"""The KV cache: the one owner of its layout.

Keys and values are [B, Hkv, S, Dh], a pair a layer; where layers are stacked
there is one pair, [L, B, Hkv, S, Dh]. Slot s of a row holds the keys of its
position s. All of it but `write` works on whole caches, or on any tree with
caches somewhere in it: the state of a drafter, of a decode loop.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.parallel import rules

Pair = tuple[jax.Array, jax.Array]  # keys and values of a layer

# How a cache is split over a mesh: rows over 'data', heads over 'model'.
SPLIT: tuple[rules.Rule, ...] = (
  (r'layers/\d+$', (None, rules.ROWS, 'model')),  # stacked
  (r'layers/\d+/\d+$', (rules.ROWS, 'model')),
)


@flax.struct.dataclass
class Cache:
  """Keys and values of the tokens that a network has read.

  Example:
    >>> import specdiff_jax as sd
    >>> import numpy as np
    >>> pair = np.zeros((2, 1, 8, 4)), np.zeros((2, 1, 8, 4))
    >>> sd.Cache((pair,)).slots
    8
  """

  layers: Any  # a Pair per layer; or one Pair, stacked over layers

  @property
  def stacked(self) -> bool:
    """Whether layers are stacked."""
    return not isinstance(self.layers[0], tuple)

  @property
  def slots(self) -> int:
    """S, how many tokens of each row there is room for."""
    return jax.tree.leaves(self.layers)[0].shape[-2]

  @property
  def dtype(self) -> Any:
    """The dtype of keys and values."""
    return jax.tree.leaves(self.layers)[0].dtype

  def first(self, count: int) -> 'Cache':
    """Returns the cache of the first layers, unrolled."""
    if self.stacked:
      layers = (jax.tree.map(lambda x: x[i], self.layers) for i in range(count))
      return Cache(tuple(layers))
    return Cache(self.layers[:count])

  def written(self, new: Sequence[Pair], start: jax.Array) -> 'Cache':
    """Returns the cache with new pairs of M tokens from slots `start` [B] on."""
    return Cache(
      tuple(
        write(old, pair, start)
        for old, pair in zip(self.layers, new, strict=True)
      )
    )

  def gathered(self, path: jax.Array, start: jax.Array) -> 'Cache':
    """Returns the cache with the pairs of a path where a chain has them.

    Args:
      path: [B, D+1] slots of the trees that were written at `start`, the root
        first.
      start: [B].
    """

    def one(array):  # [B, Hkv, S, Dh]
      take = jax.vmap(lambda row, path, offset: row[:, offset + path])
      return write_rows(array, take(array, path, start), start)

    return jax.tree.map(jax.vmap(one) if self.stacked else one, self)

  def window(self, first: jax.Array, size: int) -> 'Cache':
    """Returns `size` slots of each row, from slot `first` [B] on."""

    def cut(array):  # [B, Hkv, S, Dh]
      return jax.vmap(
        lambda row, at: lax.dynamic_slice_in_dim(row, at, size, axis=1)
      )(array, first)

    return jax.tree.map(cut, self)


def empty(config: Any, batch: int, slots: int, dtype: Any) -> Cache:
  """Returns a zeroed cache of `slots` for each of `batch` rows.

  Args:
    config: sizes of a network: layers, kv_heads, head_dim, scan_layers.
    batch: B.
    slots: S.
    dtype: of keys and values.
  """
  shape = (batch, config.kv_heads, slots, config.head_dim)
  if config.scan_layers:
    shape = (config.layers,) + shape
    return Cache((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)))
  return Cache(
    tuple(
      (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
      for _ in range(config.layers)
    )
  )


def write(pair: Pair, new: Pair, start: jax.Array) -> Pair:
  """Returns a layer's pair with new ones [B, Hkv, M, Dh] at start [B]."""
  return write_rows(pair[0], new[0], start), write_rows(pair[1], new[1], start)


def write_rows(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  """Writes new [B, Hkv, M, Dh] into cache [B, Hkv, S, Dh] at start [B].

  On a CPU a loop of slice updates works in place, where the scatter that `vmap`
  makes of them may not; on bits, since XLA would update a bf16 array by
  converting all of it to float32 and back. Elsewhere the scatter is one
  operation, and where rows are split over devices each writes its own.
  """
  new = new.astype(cache.dtype)
  one_by_one = functools.partial(on_bits, _write_one_by_one)
  if cache.shape[0] == 1:
    return one_by_one(cache, new, start)
  return lax.platform_dependent(
    cache, new, start, cpu=one_by_one, default=_write_all
  )


def _write_all(cache, new, start):
  def one(cache, new, start):
    return lax.dynamic_update_slice(cache, new, (0, start, 0))

  return jax.vmap(one)(cache, new, start)


def _write_one_by_one(cache, new, start):
  def one(row, cache):
    update = lax.dynamic_slice_in_dim(new, row, 1, axis=0)
    return lax.dynamic_update_slice(cache, update, (row, 0, start[row], 0))

  if cache.shape[0] == 1:
    alone = new.shape[2] == 1 and cache.shape[2] > 1
    return _write_slot(cache, new, start[0]) if alone else one(0, cache)
  return lax.fori_loop(0, cache.shape[0], one, cache)


def _write_slot(cache, new, start):
  """Writes new [1, Hkv, 1, Dh], and once more what stands beside it.

  XLA's CPU backend would do an update of a single slot twice, for the result and
  for the product that reads it, and so copy all of the cache four times.
  """
  first = jnp.minimum(start, cache.shape[2] - 2)
  old = lax.dynamic_slice_in_dim(cache, first, 2, axis=2)
  here = jnp.arange(2)[:, None] == start - first
  return lax.dynamic_update_slice_in_dim(
    cache, jnp.where(here, new, old), first, axis=2
  )


def grow(tree: Any, more: int) -> Any:
  """Returns a tree whose caches have `more` slots, the new ones empty."""

  def longer(leaf):
    room = [(0, 0)] * leaf.ndim
    room[-2] = (0, more)
    return on_bits(lambda x: jnp.pad(x, room), leaf)

  def one(node):
    return jax.tree.map(longer, node) if _is_cache(node) else node

  return jax.tree.map(one, tree, is_leaf=_is_cache)


def map_rows(function: Callable[..., jax.Array], *trees: Any) -> Any:
  """Maps function(axis of the rows, *leaves) over trees, some of it caches."""

  def at(axis, *leaves):
    return on_bits(functools.partial(function, axis), *leaves)

  def one(*nodes):
    if not _is_cache(nodes[0]):
      return at(0, *nodes)
    axis = int(nodes[0].stacked)
    return jax.tree.map(functools.partial(at, axis), *nodes)

  return jax.tree.map(one, *trees, is_leaf=_is_cache)


def _is_cache(node: Any) -> bool:
  return isinstance(node, Cache)


def on_bits(
  function: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
  """Applies function to bf16 arrays as integers; indices stay what they are.

  XLA's CPU backend would update a bf16 array by converting all of it to
  float32 and back.
  """
  if arrays[0].dtype != jnp.bfloat16:
    return function(*arrays)
  bits = (
    lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x
    for x in arrays
  )
  return lax.bitcast_convert_type(function(*bits), jnp.bfloat16)
