"""The KV cache: the one owner of its layout.

Keys and values are [B, Hkv, S, Dh], a pair a layer; where layers are stacked
there is one pair, [L, B, Hkv, S, Dh]. Slot s of a row holds the keys of its
position s. Everything but `write_rows` takes whole caches, or any tree that
holds caches: the state of a drafter, of a decode loop.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
from jax import lax
from jax.experimental import layout
import jax.numpy as jnp

from specdiff_jax.parallel import pin
from specdiff_jax.parallel import rules

CHUNK = 1024  # slots that attention reads at once, where not all
TILE = 128  # of which accelerators want whole ones

Pair = tuple[jax.Array, jax.Array]  # keys and values of a layer


class Layer(NamedTuple):
  """What a layer sees of a cache: its own arrays, or its part of stacked ones.

  Of stacked arrays it reads and writes in place: a layer's slice of them would
  be a copy.
  """

  keys: jax.Array  # [B, Hkv, S, Dh]; stacked [L, B, Hkv, S, Dh]
  values: jax.Array
  index: jax.Array | None = None  # [] int32 which layer of stacked ones

  @property
  def slots(self) -> int:
    """S."""
    return self.keys.shape[-2]

  @property
  def kv_heads(self) -> int:
    """Hkv."""
    return self.keys.shape[-3]

  @property
  def pair(self) -> Pair:
    """The arrays."""
    return self.keys, self.values

  def whole(self) -> Pair:
    """Returns its keys and values [B, Hkv, S, Dh]."""
    return self.part(0, self.slots)

  def part(
    self,
    start: jax.Array | int,
    size: int,
    row: jax.Array | int = 0,
    rows: int = 0,
  ) -> Pair:
    """Returns `size` slots from one on, of `rows` rows from one on (0: all).

    Each is [rows, Hkv, size, Dh].
    """
    rows = rows or self.keys.shape[-4]

    def one(array):
      if self.index is None and (rows, size) == (array.shape[0], self.slots):
        return array
      *layers, _, heads, _, head_dim = array.shape
      at = *([] if self.index is None else [self.index]), row, 0, start, 0
      shape = *(1 for _ in layers), rows, heads, size, head_dim
      found = lax.dynamic_slice(array, at, shape)
      return found if self.index is None else found[0]

    return one(self.keys), one(self.values)

  def written(self, new: Pair, start: jax.Array) -> 'Layer':
    """Returns it with new pairs [B, Hkv, M, Dh] at start [B]."""
    keys, values = (
      write_rows(old, one, start, self.index)
      for old, one in zip(self.pair, new)
    )
    return Layer(keys, values, self.index)


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

  def layer(self, index: int) -> Layer:
    """Returns what a layer sees of it."""
    if self.stacked:
      return Layer(*self.layers, index=jnp.int32(index))
    return Layer(*self.layers[index])

  def updated(self, index: int, layer: Layer) -> 'Cache':
    """Returns the cache after a layer has written into it."""
    if self.stacked:
      return Cache(layer.pair)
    before, behind = self.layers[:index], self.layers[index + 1 :]
    return Cache((*before, layer.pair, *behind))

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
        Layer(*old).written(pair, start).pair
        for old, pair in zip(self.layers, new, strict=True)
      )
    )

  def gathered(self, path: jax.Array, start: jax.Array, slots: int) -> 'Cache':
    """Returns the cache with the pairs of a path where a chain has them.

    Args:
      path: [B, D+1] slots of the trees that were written at `start`, the root
        first.
      start: [B].
      slots: M, of the trees.
    """
    by_row = functools.partial(_move_by_row, slots=slots)

    def one(array):  # [B, Hkv, S, Dh], stacked or not
      return lax.platform_dependent(
        array, path, start,
        cpu=_move_at_once, cuda=_move_at_once, rocm=_move_at_once,
        default=_move_at_once if pin.split() else by_row,
      )  # fmt: skip

    return jax.tree.map(one, self)

  def window(self, first: jax.Array, size: int) -> 'Cache':
    """Returns `size` slots of each row, from slot `first` [B] on."""

    def cut(array):  # [B, Hkv, S, Dh]
      return jax.vmap(
        lambda row, at: lax.dynamic_slice_in_dim(row, at, size, axis=1)
      )(array, first)

    return jax.tree.map(cut, self)


def empty(
  config: Any, batch: int, slots: int, dtype: Any, stacked: bool = False
) -> Cache:
  """Returns a zeroed cache of `slots` for each of `batch` rows.

  Args:
    config: sizes of a network: layers, kv_heads, head_dim, scan_layers.
    batch: B.
    slots: S.
    dtype: of keys and values.
    stacked: whether layers share a pair, as scanned ones do.
  """
  shape = (batch, config.kv_heads, slots, config.head_dim)
  if stacked or config.scan_layers:
    shape = (config.layers,) + shape
    return Cache((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)))
  return Cache(
    tuple(
      (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
      for _ in range(config.layers)
    )
  )


def rounded(slots: int, most: int) -> int:
  """Returns a number of slots of whole tiles, at most as many as `most` takes.

  Below that, of whole chunks if it is more than one: so a chunk has the same
  slots in every cache that a row grows through, and a row the same result to the
  bit. The largest cache need not be read for more than it may hold.
  """
  unit = TILE if slots <= CHUNK else CHUNK
  return min(-(-slots // unit) * unit, -(-most // TILE) * TILE)


def write_rows(
  cache: jax.Array,
  new: jax.Array,
  start: jax.Array,
  index: jax.Array | None = None,
) -> jax.Array:
  """Writes new [B, Hkv, M, Dh] into cache [B, Hkv, S, Dh] at start [B].

  Where a cache is stacked over layers, `index` tells the layer, or there are
  new ones of all layers, [L, B, Hkv, M, Dh].

  A loop of slice updates works in place, where the scatter that `vmap` makes of
  them may not; on a CPU on bits, since XLA would update a bf16 array by
  converting all of it to float32 and back. On a GPU, which waits for the host at
  each turn of a loop, and where rows are split over devices, it is a scatter.
  """
  new = new.astype(cache.dtype)
  if index is not None:
    new = new[None]
  by_row = functools.partial(_write_one_by_one, index=index)
  scatter = functools.partial(_write_all, index=index)
  alone = cache.shape[-4] == 1
  return lax.platform_dependent(
    cache, new, start,
    cpu=functools.partial(on_bits, by_row),
    cuda=by_row if alone else scatter,
    rocm=by_row if alone else scatter,
    default=scatter if pin.split() else by_row,
  )  # fmt: skip


def _write_one_by_one(cache, new, start, index):
  first = () if cache.ndim == 4 else (0 if index is None else index,)

  def one(row, cache):
    update = lax.dynamic_slice_in_dim(new, row, 1, axis=-4)
    return lax.dynamic_update_slice(
      cache, update, (*first, row, 0, start[row], 0)
    )

  if cache.shape[-4] == 1:
    alone = cache.ndim == 4 and new.shape[2] == 1 and cache.shape[2] > 1
    return _write_slot(cache, new, start[0]) if alone else one(0, cache)
  return lax.fori_loop(0, cache.shape[-4], one, cache)


def _write_all(cache, new, start, index):
  """Writes by one scatter, whose batch dimension rows are."""
  stacked = cache.ndim == 5
  where = start[:, None]
  if stacked:
    layer = jnp.zeros_like(where) if index is None else index
    where = jnp.concatenate([jnp.broadcast_to(layer, where.shape), where], 1)
  rows, slot = int(stacked), int(stacked) + 2
  window = tuple(i for i in range(cache.ndim) if i != rows)
  numbers = lax.ScatterDimensionNumbers(
    update_window_dims=window,
    inserted_window_dims=(),
    scatter_dims_to_operand_dims=(0, slot) if stacked else (slot,),
    operand_batching_dims=(rows,),
    scatter_indices_batching_dims=(0,),
  )
  return lax.scatter(
    cache, where, new, numbers,
    indices_are_sorted=True, unique_indices=True,
    mode=lax.GatherScatterMode.CLIP,
  )  # fmt: skip


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


def _move_at_once(cache, path, start):
  """Returns a cache with a path of slots behind `start` [B] moved there."""
  rows = cache.ndim - 4
  take = jax.vmap(
    lambda row, path, first: jnp.take(row, first + path, axis=-2, mode='clip'),
    (rows, 0, 0),
    rows,
  )
  return write_rows(cache, take(cache, path, start), start)


def _move_by_row(cache, path, start, slots):
  """Moves slots as `_move_at_once` does, row by row.

  Used where a gather over the whole of a cache would copy it.

  Left to choose, the compiler lays out the caches of the whole loop as a row's
  few slots are gathered best; so these are told to lie as the cache does.
  """
  *layers, _, heads, _, head_dim = cache.shape
  order = layout.Layout(major_to_minor=tuple(range(cache.ndim)))

  def one(row, cache):
    at = *(0 for _ in layers), row, 0, start[row], 0
    tree = lax.dynamic_slice(cache, at, (*layers, 1, heads, slots, head_dim))
    tree = layout.with_layout_constraint(tree, order)
    moved = jnp.take(tree, path[row], axis=-2, mode='clip')
    moved = layout.with_layout_constraint(moved, order)
    return lax.dynamic_update_slice(cache, moved, at)

  return lax.fori_loop(0, cache.shape[-4], one, cache)


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
