"""Shardings by regular expressions over parameter names."""

from collections.abc import Sequence
import re
from typing import Any

import jax

from specdiff_jax.core import errors

# Stands in a rule for the mesh axes that rows of a batch go over.
ROWS = 'rows'

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

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
)

# What TRANSFORMER leaves whole of a matrix is split over 'data' too, whose
# devices hold the same otherwise: weights are gathered where they are used,
# and each keeps its part of the gradients (FSDP, ZeRO-3). Not over 'replica':
# the network between slices is slow.
FSDP_LAYERS: tuple[Rule, ...] = (
  (r'layers/.*(query|key|value|gate|up)$', (None, 'model', 'data')),
  (r'layers/.*(output|down)$', (None, 'data', 'model')),
  (r'(query|key|value|gate|up)$', ('model', 'data')),
  (r'(output|down)$', ('data', 'model')),
  *TRANSFORMER,
)

# Of what is trained, embedding and head too: it is gathered before the loss
# (`training.step`). Not of what is frozen: with tables split both ways the
# partitioner of XLA made wrong gradients on (2, 2, 2), which test_meshes saw.
FSDP: tuple[Rule, ...] = (
  (r'(embed|head)$', ('model', 'data')),
  *FSDP_LAYERS,
)


def dense(
  by_output: Sequence[str], by_input: Sequence[str], over_data: bool = False
) -> tuple[Rule, ...]:
  """Returns rules of a drafter's dense layers, which go behind a table.

  Args:
    by_output: names of matrices [out, in] that are split over 'model' by `out`.
    by_input: names of those that are split by `in`.
    over_data: what 'model' leaves whole is split over 'data', as in FSDP.

  Example: dense(['up'], []) == ((r'(up)$', ('model', None)),)
  """
  data = 'data' if over_data else None
  groups = (by_output, ('model', data)), (by_input, (data, 'model'))
  return tuple(
    (rf'({"|".join(names)})$', axes) for names, axes in groups if names
  )


def name(path: Sequence[Any]) -> str:
  """Returns the '/'-joined name of a leaf, as in 'params/layer_0/query'."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def named(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their names, in its order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {name(path): leaf for path, leaf in leaves}


def shardings(tree: Any, rules: Sequence[Rule], mesh: Mesh) -> Any:
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
  compiled = _compiled(rules, mesh)

  def choose(path, leaf):
    axes = _first_match(name(path), leaf.shape, compiled)
    spec = (
      axis if dim % _size(axis, mesh) == 0 else None
      for axis, dim in zip(axes, leaf.shape, strict=False)
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(choose, tree)


def placed(tree: Any, rules: Sequence[Rule], mesh: Mesh) -> Any:
  """Returns a tree of shapes with the shardings that the rules give them."""
  return at(tree, shardings(tree, rules, mesh))


def at(tree: Any, where: Any) -> Any:
  """Returns a tree of shapes with their shardings, or one for all leaves."""

  def one(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  if isinstance(where, jax.sharding.Sharding):
    return jax.tree.map(lambda x: one(x, where), tree)
  return jax.tree.map(one, tree, where)


def not_split(tree: Any, rules: Sequence[Rule], mesh: Mesh) -> list[str]:
  """Returns, in words, the dimensions that their mesh axes do not divide.

  Every device holds these whole. Arguments as of `shardings`.
  """
  compiled, told = _compiled(rules, mesh), []
  for called, leaf in named(tree).items():
    axes = _first_match(called, leaf.shape, compiled)
    for place, axis in enumerate(axes):
      ways = _size(axis, mesh)
      if leaf.shape[place] % ways:
        told.append(
          f'{called}: dimension {place} of {tuple(leaf.shape)} does not '
          f'divide over {"x".join(_parts(axis))}={ways}'
        )
  return told


def replicated(mesh: Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def by_row(mesh: Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of a batch: rows over 'replica' and 'data'."""
  spec = jax.sharding.PartitionSpec(_rows(mesh))
  return jax.sharding.NamedSharding(mesh, spec)


def row_ways(mesh: Mesh) -> int:
  """Returns over how many devices the rows of a batch go."""
  return _size(_rows(mesh), mesh)


def _rows(mesh: Mesh) -> str | tuple[str, ...] | None:
  axes = tuple(axis for axis in ('replica', 'data') if axis in mesh.shape)
  return axes if len(axes) > 1 else next(iter(axes), None)


def _compiled(rules: Sequence[Rule], mesh: Mesh):
  """Returns rules with their expressions compiled, checked for the mesh."""
  result = []
  for pattern, axes in rules:
    axes = tuple(_rows(mesh) if axis == ROWS else axis for axis in axes)
    for part in (part for axis in axes for part in _parts(axis)):
      if part not in mesh.shape:
        raise errors.InputError(
          f'sharding rule {pattern!r} names the axis {part!r}, but the mesh '
          f'has {tuple(mesh.shape)}. Use one of these, or None.'
        )
    result.append((re.compile(pattern), axes))
  return result


def _first_match(leaf_name, shape, rules) -> tuple[Any, ...]:
  """Returns the axes of a leaf's first rule; () for scalars and no match."""
  if not shape:
    return ()
  # Of a matrix as int8 (`models.int8`): its values, and a scale of each output.
  matrix, _, part = leaf_name.rpartition('/')
  if part == 'values':
    return _first_match(matrix, shape, rules)
  if part == 'scale':
    return _first_match(matrix, (*shape, 1), rules)[: len(shape)]
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
    return axes
  return ()


def _size(axis: str | tuple[str, ...] | None, mesh: Mesh) -> int:
  size = 1
  for part in _parts(axis):
    size *= mesh.shape[part]
  return size


def _parts(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if axis is None:
    return ()
  return (axis,) if isinstance(axis, str) else tuple(axis)
