"""Checksums of a checkpoint: what must be equal after a restore."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules


def of(state: Any, iterator: Any) -> dict[str, Any]:
  """Returns checksums of both, the same on every mesh; all must ask together.

  A sum over the bits of each leaf, in which each value counts by an odd number
  of its place, modulo 2^32: no flipped bit and hardly any exchange goes
  unnoticed, and no process needs the values of another. And the place of the
  iterator, which is that of every process.
  """
  sums = rules.named(jax.tree.map(int, _sums(state)))
  return {'sums': sums, 'iterator': position(iterator)}


def position(iterator: Any) -> dict[str, Any]:
  """Returns the place of a grain iterator as JSON would give it back."""
  return json.loads(json.dumps(iterator.get_state()))


def digest(tree: Any) -> str:
  """Returns the sha256 of a tree's names, shapes, dtypes and values.

  All processes must ask together.
  """
  result = hashlib.sha256()
  for name, leaf in rules.named(tree).items():
    array = np.ascontiguousarray(processes.whole(leaf))
    result.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    result.update(array.reshape(-1).view(np.uint8).data)
  return result.hexdigest()


@jax.jit
def _sums(tree: Any) -> Any:
  return jax.tree.map(_sum, tree)


def _sum(x: jax.Array) -> jax.Array:
  size = x.dtype.itemsize
  if x.dtype == bool:
    bits = x.astype(jnp.uint32)
  else:
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
  place, stride = jnp.ones(x.shape, jnp.uint32), 2
  for axis in reversed(range(x.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place += index * jnp.uint32(stride % 2**32)
    stride *= x.shape[axis]
  return jnp.sum(bits * place, dtype=jnp.uint32)
