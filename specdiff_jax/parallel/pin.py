"""Activations whose rows stay where they are, while weights come to them.

Weights that are split over 'data' (`rules.FSDP`) meet activations that are
split there by rows. Left alone, the compiler may move either, and activations
are the larger; pinned rows leave it the weights, a layer at a time.
"""

import contextlib
from typing import Any

import jax

from specdiff_jax.parallel import rules


def over(
  mesh: jax.sharding.Mesh | None,
) -> contextlib.AbstractContextManager[Any]:
  """Returns the context in which what is traced pins its rows over a mesh."""
  if mesh is None:
    return contextlib.nullcontext()
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def rows(x: jax.Array) -> jax.Array:
  """Returns activations [B, ...], split by rows alone if there is a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, rules.by_row(mesh))


def split() -> bool:
  """Returns whether rows are split over devices where this is traced."""
  mesh = jax.sharding.get_abstract_mesh()
  return any(size > 1 for axis, size in mesh.shape.items() if axis != 'model')
