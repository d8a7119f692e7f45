"""Features of plain cycles, kept until a draft wants them read.

A diffusion drafter turns the verifier's features of each token into keys and
values. In a plain cycle that is work for nobody, 7 % of the cycle on two cores;
many tokens at once cost hardly more than one.
"""

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import protocols
from specdiff_jax.core import types


def keep(buffer: jax.Array, features: jax.Array, count: jax.Array) -> jax.Array:
  """Adds features [B, F, E] of one token behind `count` [B] unread ones.

  Slot 0 of the buffer holds those of the last token that was read, slot i those
  of the i-th token after it.
  """
  slot = jnp.minimum(count + 1, buffer.shape[1] - 1)
  return buffer.at[jnp.arange(slot.shape[0]), slot].set(features)


def read(
  drafter: protocols.Drafter,
  params: types.Params,
  state: types.State,
  context: protocols.Context,
  buffer: jax.Array,
  count: jax.Array,
  size: int,
) -> types.State:
  """Returns the drafter's state after it has read the buffered features.

  Rows with fewer unread tokens than others read some of theirs again, which
  changes nothing; so does every row with the last token that was read.

  Args:
    drafter: whose state depends on `context.length`, the accepted count and
      features alone.
    params: the drafter's.
    state: the drafter's.
    context: of the draft to come.
    buffer: [B, room, F, E].
    count: [B] unread tokens.
    size: tokens of one call, at most the slots of the largest tree and `room`.
  """
  count = jnp.minimum(count, buffer.shape[1] - 1)
  path = jnp.broadcast_to(jnp.arange(size), (count.size, size))

  def chunk(number, state):
    first = jnp.clip(number * size, 0, jnp.maximum(count + 1 - size, 0))
    part = jax.vmap(
      lambda row, at: lax.dynamic_slice_in_dim(row, at, size, axis=0)
    )(buffer, first)
    accepted = jnp.minimum(count - first, size - 1)
    verdict = types.Verdict(path, accepted, jnp.zeros_like(accepted))
    then = context.replace(length=context.length - 1 - count + first)
    return drafter.observe(params, state, then, verdict, part, size)

  most = jnp.max(count)
  calls = jnp.where(most > 0, most // size + 1, 0)
  return lax.fori_loop(0, calls, chunk, state)
