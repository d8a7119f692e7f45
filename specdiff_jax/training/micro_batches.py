"""A batch in parts, one after the other, so that less of it is held at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def by_parts(
  function: Callable[..., Any], parts: int, again: bool = True
) -> Callable[..., Any]:
  """Returns a function of rows that takes them a part at a time.

  What is differentiated holds the results of all parts and what lies within
  one: the rest is computed `again` on the way back. So gradients are summed
  over the parts, and whatever is made of the results, sums under any weights
  too, is that of the whole batch.

  Args:
    function: of trees of arrays [B, ...], to such a tree; each row's result
      depends on that row alone.
    parts: a divisor of B; each takes every so manyth row, so that rows which
      are split over devices stay where they are.
    again: False where nothing is differentiated.

  Example: by_parts(lambda x: {'y': x['a'] ** 2}, 4)(batch)
  """
  if parts == 1:
    return function
  body = jax.checkpoint(function) if again else function

  def mapped(*trees):
    found = jax.lax.map(lambda one: body(*one), _split(trees, parts))
    return jax.tree.map(
      lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), found
    )

  return mapped


def _split(trees: Any, parts: int) -> Any:
  """Returns [B, ...] as [parts, B / parts, ...].

  Part m has the rows m, m + parts, m + 2 parts and so on.
  """

  def split(x):
    grouped = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return jnp.swapaxes(grouped, 0, 1)

  return jax.tree.map(split, trees)
