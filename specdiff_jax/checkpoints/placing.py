"""Tensors from their files straight to where they belong, one at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import stored


def default(tree: Any) -> Any:
  """Returns the shardings of what jax puts where it likes: None for each."""
  return jax.tree.map(lambda _: None, tree)


def place(
  tensor: stored.Tensor, dtype: Any, sharding: jax.sharding.Sharding | None
) -> jax.Array:
  """Returns a tensor, cast, as an array that is split as `sharding` says.

  Of the file only those rows are read that devices of this process hold. The
  host needs room for the slices of this one tensor, each once however many
  devices hold it, and for a block of the file.
  """
  if sharding is None:
    return jnp.asarray(stored.read(tensor, dtype)).block_until_ready()
  shape = tuple(tensor.shape)
  wanted = {
    device: _bounds(index, shape)
    for device, index in sharding.addressable_devices_indices_map(shape).items()
  }
  pieces = {
    bounds: np.empty([last - first for first, last in bounds], dtype)
    for bounds in wanted.values()
  }
  _fill(tensor, pieces)
  shards = [
    # Waited for, so that a copy never outlives what it is made of.
    jax.device_put(pieces[bounds], device).block_until_ready()
    for device, bounds in wanted.items()
  ]
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _bounds(index, shape) -> tuple[tuple[int, int], ...]:
  """Returns (first, last) of each dimension; slices cannot be keys."""
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _fill(tensor: stored.Tensor, pieces: dict) -> None:
  """Reads the rows that some piece holds, once, into all pieces."""
  for first, last in _joined({bounds[0] for bounds in pieces}):
    for row, block in tensor.blocks(first, last):
      end = row + len(block)
      for (rows, *columns), piece in pieces.items():
        low, high = max(row, rows[0]), min(end, rows[1])
        if low < high:
          inner = tuple(slice(*bounds) for bounds in columns)
          piece[low - rows[0] : high - rows[0]] = block[
            (slice(low - row, high - row), *inner)
          ]


def _joined(ranges: set[tuple[int, int]]) -> list[tuple[int, int]]:
  """Returns ranges in order, those that touch as one: {0-2, 2-4} is 0-4."""
  joined = []
  for first, last in sorted(ranges):
    if joined and first <= joined[-1][1]:
      joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
    else:
      joined.append((first, last))
  return joined
