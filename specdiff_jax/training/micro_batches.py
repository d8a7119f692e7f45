"""Micro-batches: less of a batch is held at once, for the same gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_micro_batches(
  function: Callable[..., Any], count: int, recompute: bool = True
) -> Callable[..., Any]:
  """Returns a function of rows that takes them a micro-batch at a time.

  What is differentiated holds the results of all rows and what lies within
  one micro-batch: the rest is computed again on the way back. So gradients are
  accumulated, and whatever is made of the results, sums under any weights too,
  is that of the whole batch.

  Args:
    function: function of trees of arrays [B, ...], to such a tree; each row's
      result depends on that row alone.
    count: micro-batches, a divisor of B; each takes every so manyth row, so
      that rows which are split over devices stay where they are.
    recompute: False where nothing is differentiated.

  Example: over_micro_batches(lambda x: {'y': x['a'] ** 2}, 4)(batch)
  """
  if count == 1:
    return function
  body = jax.checkpoint(function) if recompute else function

  def mapped(*trees):
    found = jax.lax.map(lambda one: body(*one), _split(trees, count))
    return jax.tree.map(
      lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), found
    )

  return mapped


def _split(trees: Any, count: int) -> Any:
  """Returns [B, ...] as [count, B / count, ...].

  Micro-batch m has the rows m, m + count, m + 2 count and so on.
  """

  def split(x):
    grouped = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    return jnp.swapaxes(grouped, 0, 1)

  return jax.tree.map(split, trees)
