"""Shardings by regular expressions over parameter names."""

from collections.abc import Sequence
import re
from typing import Any

import jax

from specdiff_jax.core import errors

# A regular expression, and the mesh axis (or axes, or None) of each dimension.
Rule = tuple[str, Sequence[str | tuple[str, ...] | None]]

# Weights are [out, in]. Attention and the MLP are split by heads and by
# hidden units (their first matmul's `out`, their second's `in`), so that one
# all-reduce a block is enough; embedding and head by vocabulary. Names with
# `layers/` are of layers that are stacked.
TRANSFORMER: tuple[Rule, ...] = (
    (r'layers/.*(query|key|value|gate|up)$', (None, 'model', None)),
    (r'layers/.*(query|key|value)_bias$', (None, 'model')),
    (r'layers/.*(output|down)$', (None, None, 'model')),
    (r'(query|key|value|gate|up)$', ('model', None)),
    (r'(query|key|value)_bias$', ('model',)),
    (r'(output|down)$', (None, 'model')),
    (r'(embed|head)$', ('model', None)),
    # What a drafter has besides: the MLP that starts its slots, and the maps
    # of the verifier's features and of its lookup hints.
    (r'(trunk|fuse|hint)$', ('model', None)),
    (r'slot_(shift|scale)$', (None, 'model')),
    (r'expand$', (None, 'model')),
)

# Of a DecodeState: rows over 'data', keys and values by heads over 'model'.
# Those of stacked layers, [L, B, Hkv, S, Dh], are a pair; others a pair a layer.
DECODING: tuple[Rule, ...] = (
    (r'^end_ids$', ()),
    (r'(cache|context)/\d+$', (None, 'data', 'model')),
    (r'(cache|context)/\d+/\d+$', ('data', 'model')),
    (r'', ('data',)),
)


def name(path: Sequence[Any]) -> str:
  """Returns the '/'-joined name of a leaf, as in 'params/layer_0/query'."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def shardings(tree: Any, rules: Sequence[Rule], mesh: jax.sharding.Mesh) -> Any:
  """Returns a tree of NamedSharding for a tree of shapes.

  The first rule whose expression is found in a leaf's name (`re.search`)
  decides; a leaf that none matches, and every scalar, is replicated. A
  dimension that its mesh axes do not divide is replicated too. Optimizer
  states repeat the parameters' names and so are split as they are.

  Args:
    tree: Anything with `shape`s at its leaves: `jax.eval_shape(init)`.
    rules: Pairs of expression and partition.
    mesh: The mesh that the partitions name axes of.

  Raises:
    InputError: If a rule names an axis that the mesh lacks, or partitions
      more dimensions than a leaf that it matches has.

  Example:
    shapes = jax.eval_shape(init)
    params = jax.jit(init, out_shardings=shardings(shapes, RULES, mesh))()
  """
  compiled = [(re.compile(pattern), tuple(axes)) for pattern, axes in rules]
  for pattern, axes in compiled:
    _check_axes(pattern.pattern, axes, mesh)

  def choose(path, leaf):
    spec = ()
    if leaf.shape:
      spec = _first_match(name(path), leaf.shape, compiled, mesh)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(choose, tree)


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def by_row(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of a batch: its first dimension over 'data'."""
  axis = 'data' if 'data' in mesh.shape else None
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))


def _first_match(leaf_name, shape, rules, mesh) -> tuple[Any, ...]:
  for pattern, axes in rules:
    if not pattern.search(leaf_name):
      continue
    if len(axes) > len(shape):
      raise errors.InputError(
          f'sharding rule {pattern.pattern!r} partitions {len(axes)} '
          f'dimensions {axes}, but matches {leaf_name!r} of shape '
          f'{tuple(shape)}. Make the expression narrower, or put a rule for '
          'this leaf before it.'
      )
    return tuple(
        axis if dim % _size(axis, mesh) == 0 else None
        for axis, dim in zip(axes, shape, strict=False)
    )
  return ()


def _size(axis: str | tuple[str, ...] | None, mesh: jax.sharding.Mesh) -> int:
  size = 1
  for part in _parts(axis):
    size *= mesh.shape[part]
  return size


def _parts(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if axis is None:
    return ()
  return (axis,) if isinstance(axis, str) else tuple(axis)


def _check_axes(pattern: str, axes, mesh: jax.sharding.Mesh) -> None:
  for part in (part for axis in axes for part in _parts(axis)):
    if part not in mesh.shape:
      raise errors.InputError(
          f'sharding rule {pattern!r} names the axis {part!r}, but the mesh '
          f'has {tuple(mesh.shape)}. Use one of these, or None.'
      )
