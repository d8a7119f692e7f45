"""A batch on the device whose rows are filled and read while it runs.

Rows that are done make room for other requests while their neighbours go on,
and caches grow with the longest live row. All of it is a few compiled programs
of static shapes: the indices of rows are an argument.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class Look:
  """What the host sees of a state: one fetch."""

  tokens: np.ndarray  # [B, T]
  length: np.ndarray  # [B]
  done: np.ndarray  # [B]
  stats: types.Stats


def group_of(batch: int) -> int:
  """Returns how many rows of a batch are waited for, and filled together.

  Filling takes a prefill and a fetch, and a caller's write to disk: row by row
  a large batch would do that after every cycle. The rows that wait for others
  are some 3 % of it.
  """
  return max(1, batch // 16)


class Rows:
  """A running batch, whose rows are filled `group` at a time.

  rows = Rows(engine, params, drafter_params, batch=4)
  rows.fill([0], one)  # a row never filled is done
  look = rows.run(cycles=16, live=1)
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    params: types.Params,
    drafter_params: types.Params,
    batch: int,
  ):
    self._engine, self._batch, self.group = engine, batch, group_of(batch)
    self._params, self._drafter_params = params, drafter_params
    self._state: types.DecodeState | None = None
    self._longest = 0  # tokens of the longest live row that was seen last

  def fill(self, rows: Sequence[int], some: types.DecodeState) -> None:
    """Puts prefilled requests into rows; spare ones of `group` are dropped."""
    if self._batch == 1:
      self._state, self._longest = some, 0
      return
    if self._state is None:
      self._state = spread(some, self._batch)
    places = np.full(self.group, self._batch, np.int32)
    places[: len(rows)] = rows
    self._state = insert(self._state, some, places)

  def wait(self) -> None:
    """Returns once the rows are filled: for clocks."""
    jax.block_until_ready(self._state)

  def run(self, cycles: int, live: int) -> Look:
    """Runs until one more row and at least `group` are done, or so many cycles.

    `live` is how many rows are at work, as far as the host knows: rows that
    were done when they were filled count.
    """
    self._fit()
    self._state = self._engine.decode(
      self._params,
      self._drafter_params,
      self._engine.pinned(self._state),  # another sharding is a recompile
      np.int32(cycles),
      np.int32(max(self._batch - live + 1, self.group)),
    )
    s = self._state
    look = Look(*jax.device_get((s.tokens, s.length, s.done, s.stats)))
    self._longest = int(look.length[~look.done].max(initial=0))
    return look

  def stop(self, done: np.ndarray) -> None:
    """Marks as done the rows that `done` [B] says are."""
    self._state = self._state.replace(done=jnp.asarray(done))

  def warm_up(self, some: types.DecodeState) -> None:
    """Compiles what these rows may need, with caches of every size."""
    rows = range(self.group)
    self.fill(rows, some)
    seen = 0
    while seen < (seen := transformer.cache_slots(self._state.cache)):
      if self._batch > 1:
        self.fill(rows, some)
      self.run(0, self._batch)
      # A row whose next tree lacks one slot.
      self._longest = seen - self._engine.drafter.buckets[-1] + 2
      self._fit()

  def _fit(self) -> None:
    """Lets the caches grow if the longest row's next tree would not fit."""
    bucket = self._state.tokens.shape[1] - self._engine.max_new_tokens
    slots = self._engine.cache_slots(bucket, self._longest)
    if slots > transformer.cache_slots(self._state.cache):
      self._state = grow(
        self._engine, self._params, self._drafter_params, self._state, slots
      )


@functools.partial(jax.jit, static_argnums=1)
def spread(some: types.DecodeState, batch: int) -> types.DecodeState:
  """Returns a batch of rows that are done, each a copy of the first of some."""

  def put(axis, leaf):
    shape = list(leaf.shape)
    shape[axis] = batch
    return jnp.broadcast_to(lax.slice_in_dim(leaf, 0, 1, axis=axis), shape)

  state = _by_row(put, some)
  return state.replace(done=jnp.ones_like(state.done))


@functools.partial(jax.jit, donate_argnums=0)
def insert(
  state: types.DecodeState, some: types.DecodeState, rows: jax.Array
) -> types.DecodeState:
  """Replaces rows [K] by those of `some`; `state` is donated.

  Nothing of an old row is left, and no other row changes. A row past the batch
  is dropped. The caches of `some` may be the smaller ones.
  """

  def put(axis, old, new):
    shape = list(old.shape)
    shape[axis] = rows.size
    at = (slice(None),) * axis + (rows,)
    return old.at[at].set(_pad(new, shape), mode='drop')

  return _by_row(put, state, some)


@functools.partial(jax.jit, static_argnums=(0, 4))
def grow(
  engine: engine_lib.Engine,
  params: types.Params,
  drafter_params: types.Params,
  state: types.DecodeState,
  slots: int,
) -> types.DecodeState:
  """Returns the state with caches of `slots` slots, the new ones empty.

  The drafter's state gets the sizes that its `init` gives it beside such a
  cache. Nothing is donated: a larger buffer cannot take the place of a smaller.
  """

  def longer(leaf):
    shape = list(leaf.shape)
    shape[-2] = slots
    return _on_bits(_pad, leaf, shape)

  cache = jax.tree.map(longer, state.cache)
  context = types.Context(state.tokens, state.length, params, cache)
  batch, room = state.tokens.shape
  wanted = engine.drafter.features
  features = jax.ShapeDtypeStruct(
      (batch, room - engine.max_new_tokens, len(wanted),
       engine.model.config.width), jnp.float32,
  )  # fmt: skip
  like = jax.eval_shape(
    engine.drafter.init, drafter_params, context, features if wanted else None
  )
  drafter = jax.tree.map(
    lambda leaf, new: _on_bits(_pad, leaf, new.shape), state.drafter, like
  )
  return state.replace(cache=cache, drafter=drafter)


def _by_row(function, *states: types.DecodeState) -> types.DecodeState:
  """Maps function(axis of the rows, *leaves) over states."""

  def at(axis, *leaves):
    return _on_bits(functools.partial(function, axis), *leaves)

  def cache(*leaves):  # [B, Hkv, S, Dh], or stacked over layers
    return at(leaves[0].ndim - 4, *leaves)

  bare = [state.replace(cache=(), end_ids=()) for state in states]
  return jax.tree.map(functools.partial(at, 0), *bare).replace(
    cache=jax.tree.map(cache, *(state.cache for state in states)),
    end_ids=states[-1].end_ids,
  )


def _pad(leaf: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Pads with zeros at the end of each dimension."""
  if leaf.shape == tuple(shape):
    return leaf
  return jnp.pad(leaf, [(0, n - m) for m, n in zip(leaf.shape, shape)])


def _on_bits(function, *arguments):
  """Applies function to bf16 arrays as integers.

  XLA's CPU backend would update a bf16 array by converting all of it to
  float32 and back.
  """
  if arguments[0].dtype != jnp.bfloat16:
    return function(*arguments)
  bits = (
    lax.bitcast_convert_type(x, jnp.uint16) if isinstance(x, jax.Array) else x
    for x in arguments
  )
  return lax.bitcast_convert_type(function(*bits), jnp.bfloat16)
