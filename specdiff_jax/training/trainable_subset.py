"""Training a part of the params: the rest is held, and costs no memory."""

import re
from typing import Any

import jax
import optax

from specdiff_jax.parallel import rules


def trained(params: Any, pattern: str) -> Any:
  """Returns a tree of bool: whose name the expression is found in.

  Names are those of the sharding rules, such as 'layer_0/query'.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: re.search(pattern, rules.name(path)) is not None, params
  )


def held(params: Any, pattern: str) -> Any:
  """Returns the params, of which only those that are trained have gradients."""
  return jax.tree.map(
    lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf),
    params,
    trained(params, pattern),
  )


def only(
  optimizer: optax.GradientTransformation, pattern: str
) -> optax.GradientTransformation:
  """Returns an optimizer of the params that are trained.

  The others stay as they are, bit for bit, and have no state; clipping and
  weight decay do not see them.
  """

  # Not by optax.selective_transform: its labels are other names in the state,
  # which checkpoints hold, and its mask has to be there before the params are.
  def labels(params):
    return jax.tree.map(
      lambda train: 'trained' if train else 'held', trained(params, pattern)
    )

  return optax.partition(
    {'trained': optimizer, 'held': optax.set_to_zero()}, labels
  )
