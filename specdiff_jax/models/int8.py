"""Weights as int8, one scale for each output; activations as two int8 digits.

Decoding reads every weight once a step, so weights of half the bytes are what
it saves. Rounding the weights makes another model: **the int8 verifier is the
verifier**, whose distribution every system then reproduces exactly.

XLA's CPU backend would turn an int8 weight into a whole float32 one at each
call, which takes five times as long as bf16 weights do. A product of int8 with
int8 it runs fast, so each row of activations becomes 16-bit integers, and these
two rows of int8: 1000 = 4 * 256 - 24. That is finer than bf16 activations are,
and the integer sums are exact: a row's result does not depend on the others, or
on how many there are. GPUs run the same form about as fast as any other.
"""

from collections.abc import Collection
from typing import Any

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

# Names of weights that meet their input in `layers.dense`, or are looked up.
_MATRICES = frozenset((
    'embed', 'head', 'query', 'key', 'value', 'query_key_value', 'qkv',
    'output', 'gate', 'up', 'gate_up', 'down',
))  # fmt: skip
_MOST = 127
_BASE = 256  # of the digits


class Int8(flax.struct.PyTreeNode):
  """A weight [..., out, in], standing where params have an array."""

  values: jax.Array  # [..., out, in]; the first leaf: linen checks its shape
  scale: jax.Array  # [..., out] float32

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape


def is_int8(params: Any) -> bool:
  """Returns whether a verifier's params are rounded."""
  return isinstance(params['embed'], Int8)


def quantise(params: Any, more: Collection[str] = ()) -> Any:
  """Returns params whose matrices are `Int8`; those that are, stay.

  w is about scale * round(w / scale), where scale is max |w| / 127 over each
  output's weights. What is no matrix keeps its dtype. `more` are names of
  matrices that a drafter has besides those of a verifier.

  Example: quantise(checkpoint.params)
  """

  matrices = _MATRICES.union(more)

  def convert(path, leaf):
    last = path[-1]
    name = getattr(last, 'key', getattr(last, 'name', ''))
    if name not in matrices or isinstance(leaf, Int8):
      return leaf
    return _quantised(leaf)

  return jax.tree_util.tree_map_with_path(
    convert, params, is_leaf=lambda leaf: isinstance(leaf, Int8)
  )


def widen(params: Any) -> Any:
  """Returns params with arrays in place of `Int8`, of their rounded values.

  They have the dtype of `final_norm`.
  """

  def convert(leaf):
    if not isinstance(leaf, Int8):
      return leaf
    values = leaf.values * leaf.scale[..., None]
    return values.astype(params['final_norm'].dtype)

  return jax.tree.map(
    convert, params, is_leaf=lambda leaf: isinstance(leaf, Int8)
  )


@jax.jit
def _quantised(weight: jax.Array) -> Int8:
  weight = weight.astype(jnp.float32)
  scale = jnp.max(jnp.abs(weight), axis=-1) / _MOST
  scale = jnp.where(scale > 0, scale, 1.0)
  values = jnp.round(weight / scale[..., None])
  return Int8(values.astype(jnp.int8), scale)


def dense(x: jax.Array, weight: Int8) -> jax.Array:
  """Returns x @ weight.T, float32 [..., out]; see the module."""
  rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  count = rows.shape[0]
  # One pass: XLA's CPU backend would write down |x| first.
  top = lax.reduce(
    rows, jnp.float32(0), lambda a, b: lax.max(lax.abs(a), lax.abs(b)), (1,)
  )
  step = top[:, None] / (_MOST * _BASE)
  step = jnp.where(step > 0, step, 1.0)
  whole = jnp.round(rows / step).astype(jnp.int32)
  # floor(x / 256 + 1 / 2), and what is left: the lower byte. Chosen by a mask,
  # which runs as vectors do; a concatenation would branch at each element.
  first = jnp.arange(2)[:, None, None] == 0
  digits = jnp.where(first, (whole + _BASE // 2) >> 8, whole)
  sums = lax.dot_general(
    digits.astype(jnp.int8).reshape(2 * count, -1),
    weight.values,
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.int32,
  ).astype(jnp.float32)
  out = (sums[:count] * _BASE + sums[count:]) * step * weight.scale
  return out.reshape(x.shape[:-1] + (weight.shape[0],))


def lookup(table: Int8, ids: jax.Array) -> jax.Array:
  """Returns rows of a table [V, E] as float32 [..., E]."""
  return table.values[ids].astype(jnp.float32) * table.scale[ids][..., None]
