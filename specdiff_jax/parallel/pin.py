"""Activations whose rows stay where they are, while weights come to them.

Weights that are split over 'data' (`rules.FSDP`) meet activations that are
split there by rows. Left alone, the compiler may move either, and activations
are the larger; pinned rows leave it the weights, a layer at a time.
"""

import contextlib
import math
from typing import Any

import jax

from specdiff_jax.parallel import rules


def over(
  mesh: jax.sharding.Mesh | None, rows: int = 0
) -> contextlib.AbstractContextManager[Any]:
  """Returns the context in which what is traced pins its rows over a mesh.

  Where the mesh does not divide `rows`, if it is given, they stay whole.
  """
  if mesh is None or rows % _ways(mesh):
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
  return _ways(jax.sharding.get_abstract_mesh()) > 1


def _ways(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
  return math.prod(n for axis, n in mesh.shape.items() if axis != 'model')
