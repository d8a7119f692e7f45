"""Scores over a large vocabulary, block by block.

Logits of all windows at once, [.., V] in float32, are by far the largest array
of a training step. Only sums over them are wanted: here they are folded over
blocks of the head's rows, and the backward pass makes each block again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.models import layers


def rows(params: Any) -> Any:
  """Returns the head [V, E] of a verifier: if it is tied, the embedding."""
  return params.get('head', params['embed'])


def log_z(
  states: jax.Array,
  head: jax.Array,
  block: int = 0,
  temperature: jax.Array | float = 1.0,
) -> jax.Array:
  """Returns logsumexp_v(states . head_v / temperature) [...], float32.

  Args:
    states: [..., E].
    head: [V, E].
    block: rows of the head at once; 0 for all.
    temperature: of the distribution.
  """

  def take(carry, logits, first):
    del first
    return jnp.logaddexp(carry, jax.nn.logsumexp(logits / temperature, axis=-1))

  start = jnp.full(states.shape[:-1], -jnp.inf)
  return _fold(states, head, block, take, start)


def targets(
  states: jax.Array, head: jax.Array, index: jax.Array, block: int = 0
) -> tuple[jax.Array, jax.Array]:
  """Returns (log_q, match) [...] of each target.

  log_q is -inf where there is no target; match says where the argmax is the
  target. Ties go to the lowest index.

  Args:
    states: [..., E].
    head: [V, E].
    index: [...] int32 rows of the head, -1 where the target has none.
    block: rows of the head at once; 0 for all.
  """

  def take(carry, logits, first):
    z, picked, best, at = carry
    local = index - first
    inside = (local >= 0) & (local < logits.shape[-1])
    place = jnp.clip(local, 0, logits.shape[-1] - 1)
    here = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    return (
      jnp.logaddexp(z, jax.nn.logsumexp(logits, axis=-1)),
      jnp.where(inside, here, picked),
      jnp.maximum(best, top),
      jnp.where(top > best, first + jnp.argmax(logits, axis=-1), at),
    )

  low = jnp.full(index.shape, -jnp.inf)
  start = (low, jnp.zeros(index.shape), low, jnp.zeros(index.shape, jnp.int32))
  z, picked, _, at = _fold(states, head, block, take, start)
  return jnp.where(index >= 0, picked - z, -jnp.inf), at == index


def _fold(
  states: jax.Array,
  head: jax.Array,
  block: int,
  take: Callable[[Any, jax.Array, Any], Any],
  carry: Any,
) -> Any:
  """Folds `take(carry, logits [..., block], first)` over the head's rows."""
  size = head.shape[0]
  if not block or block >= size:
    return take(carry, layers.dense(states, head), 0)

  @jax.checkpoint
  def step(carry, rows, first):
    return take(carry, layers.dense(states, rows), first)

  def scanned(carry, first):
    rows = jax.lax.dynamic_slice_in_dim(head, first, block)
    return step(carry, rows, first), None

  whole = size // block
  firsts = block * jnp.arange(whole, dtype=jnp.int32)
  carry, _ = jax.lax.scan(scanned, carry, firsts)
  last = whole * block
  return step(carry, head[last:], last) if last < size else carry
