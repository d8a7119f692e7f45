"""A batch on the device whose rows are filled and read while it runs.

Rows that are done make room for other requests while their neighbours go on,
and caches grow with the longest live row. All of it is a few compiled programs
of static shapes: the indices of rows are an argument.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.models import cache as cache_lib


@dataclasses.dataclass(frozen=True)
class Look:
  """What the host sees of a state: one fetch."""

  tokens: np.ndarray  # [B, T]
  length: np.ndarray  # [B]
  done: np.ndarray  # [B]
  stats: types.Stats
  logprobs: np.ndarray | None  # [B, T]
  trace: np.ndarray | None  # [B, T, 2]


def group_of(batch: int) -> int:
  """Returns how many rows of a batch are waited for, and filled together.

  Filling takes a prefill and a fetch, and a caller's write to disk: row by row
  a large batch would do that after every cycle. The rows that wait for others
  are about 3 % of it.
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
    self.state: Any = None  # a `types.DecodeState` once it is filled
    self._longest = 0  # tokens of the longest live row that was seen last

  def fill(self, rows: Sequence[int], prefilled: types.DecodeState) -> None:
    """Puts prefilled requests into rows; spare ones of `group` are dropped."""
    if self._batch == 1:
      self.state, self._longest = prefilled, 0
      return
    if self.state is None:
      self.state = spread(prefilled, self._batch)
    places = np.full(self.group, self._batch, np.int32)
    places[: len(rows)] = rows
    self.state = insert(self.state, prefilled, places)

  def wait(self) -> None:
    """Returns once the rows are filled: for clocks."""
    jax.block_until_ready(self.state)

  def run(self, cycles: int, live: int) -> Look:
    """Runs until one more row and at least `group` are done, or so many cycles.

    `live` is how many rows are at work, as far as the host knows: rows that
    were done when they were filled count.
    """
    self._fit()
    self.state = self._engine.decode(
      self._params,
      self._drafter_params,
      self._engine.pinned(self.state),  # another sharding is a recompile
      np.int32(cycles),
      np.int32(max(self._batch - live + 1, self.group)),
    )
    s = self.state
    seen = (s.tokens, s.length, s.done, s.stats, s.logprobs, s.trace)
    look = Look(*jax.device_get(seen))
    self._longest = int(look.length[~look.done].max(initial=0))
    return look

  def stop(self, done: np.ndarray) -> None:
    """Marks as done the rows that `done` [B] says are."""
    self.state = self.state.replace(done=jnp.asarray(done))

  def warm_up(self, prefilled: types.DecodeState) -> None:
    """Compiles what these rows may need, with caches of every size."""
    rows = range(self.group)
    self.fill(rows, prefilled)
    seen = 0
    while seen < (seen := self.state.cache.slots):
      if self._batch > 1:
        self.fill(rows, prefilled)
      self.run(0, self._batch)
      # A row whose next tree lacks one slot.
      self._longest = seen - self._engine.drafter.buckets[-1] + 2
      self._fit()

  def _fit(self) -> None:
    """Lets the caches grow if the longest row's next tree would not fit."""
    bucket = self.state.tokens.shape[1] - self._engine.max_new_tokens
    slots = self._engine.cache_slots(bucket, self._longest)
    if slots > self.state.cache.slots:
      self.state = grow(self.state, slots)


@functools.partial(jax.jit, static_argnums=1)
def spread(state: types.DecodeState, batch: int) -> types.DecodeState:
  """Returns a batch of rows that are done, each a copy of the state's first."""

  def put(axis, leaf):
    shape = list(leaf.shape)
    shape[axis] = batch
    return jnp.broadcast_to(lax.slice_in_dim(leaf, 0, 1, axis=axis), shape)

  state = _by_row(put, state)
  return state.replace(done=jnp.ones_like(state.done))


@functools.partial(jax.jit, donate_argnums=0)
def insert(
  state: types.DecodeState, prefilled: types.DecodeState, rows: jax.Array
) -> types.DecodeState:
  """Replaces rows [K] by those of `prefilled`; `state` is donated.

  Nothing of an old row is left, and no other row changes. A row past the batch
  is dropped. The caches of `prefilled` may be the smaller ones.
  """

  def put(axis, old, new):
    shape = list(old.shape)
    shape[axis] = rows.size
    at = (slice(None),) * axis + (rows,)
    return old.at[at].set(_pad(new, shape), mode='drop')

  return _by_row(put, state, prefilled)


@functools.partial(jax.jit, static_argnums=1)
def grow(state: types.DecodeState, slots: int) -> types.DecodeState:
  """Returns the state with caches of `slots` slots, the new ones empty.

  Those of the drafter grow by as many. Nothing is donated: a larger buffer
  cannot take the place of a smaller.
  """
  return cache_lib.grow(state, slots - state.cache.slots)


def _by_row(function, *states: types.DecodeState) -> types.DecodeState:
  """Maps function(axis of the rows, *leaves) over states."""
  bare = (state.replace(end_ids=()) for state in states)
  return cache_lib.map_rows(function, *bare).replace(end_ids=states[-1].end_ids)


def _pad(leaf: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Pads with zeros at the end of each dimension."""
  if leaf.shape == tuple(shape):
    return leaf
  return jnp.pad(leaf, [(0, n - m) for m, n in zip(leaf.shape, shape)])
