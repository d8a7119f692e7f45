"""Prefix trees: of K chains, and of the most probable prefixes."""

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import types


def merged(token: jax.Array, root: jax.Array, slots: int) -> types.DraftTree:
  """Returns the prefix tree of K chains [B, K, G], breadth first.

  Chains a b and a c give slots root, a, b, c; what does not fit is left out.
  """
  batch, drafts, gamma = token.shape
  alike = token[:, :, None] == token[:, None]  # [B, K, K, G]
  alike = jnp.cumprod(alike, axis=-1) > 0
  # The first chain with the same beginning owns the slot.
  owner = jnp.argmax(alike, axis=2)  # [B, K, G]
  first = owner == jnp.arange(drafts)[None, :, None]

  def by_depth(x):
    return jnp.swapaxes(x, 1, 2).reshape(batch, gamma * drafts)

  new = by_depth(first)
  place = jnp.where(new, jnp.cumsum(new, axis=1), slots)
  of_owner = jnp.swapaxes(place.reshape(batch, gamma, drafts), 1, 2)
  owner_above = jnp.pad(owner[..., :-1], ((0, 0), (0, 0), (1, 0)))
  above = jnp.pad(of_owner[..., :-1], ((0, 0), (0, 0), (1, 0)))
  parent = jnp.take_along_axis(above, owner_above, axis=1)
  depth = jnp.broadcast_to(jnp.arange(1, gamma + 1), token.shape)
  return _placed(
    place, by_depth(token), by_depth(parent), by_depth(depth), root, slots
  )


def best_first(
  log_q: jax.Array, ids: jax.Array, root: jax.Array, slots: int
) -> types.DraftTree:
  """Returns the most probable prefixes under marginals [B, G, W].

  A beam of N = slots - 1 holds, for each depth, all prefixes that can be among
  the N best: a prefix is never likelier than its own beginnings, and of each
  slot's tokens only the N likeliest can matter.
  """
  batch, gamma, size = log_q.shape
  width = slots - 1
  choices = min(width, size)
  value, index = lax.top_k(log_q, choices)
  token = ids[index]  # [B, G, C]
  score = jnp.zeros((batch, 1))
  scores, tokens, parents = [], [], []
  for depth in range(gamma):
    paths = score.shape[1]
    total = (score[..., None] + value[:, depth, None]).reshape(batch, -1)
    score, chosen = lax.top_k(total, min(width, total.shape[1]))
    tokens.append(
      jnp.take_along_axis(token[:, depth], chosen % choices, axis=1)
    )
    # Index in the pool of all depths; the root lies before it, at -1.
    offset = sum(s.shape[1] for s in scores) - paths if scores else -1
    parents.append(offset + chosen // choices)
    scores.append(score)
  pool = jnp.concatenate(scores, axis=1)
  depth = jnp.concatenate(
    [jnp.full(s.shape[1], d + 1) for d, s in enumerate(scores)]
  )
  # Ties go to the lower index, hence to the shallower prefix.
  best, chosen = lax.top_k(pool, min(width, pool.shape[1]))
  rows = jnp.arange(batch)[:, None]
  place = (
    jnp.full(pool.shape, slots)
    .at[rows, chosen]
    .set(jnp.where(best > -jnp.inf, 1 + jnp.arange(chosen.shape[1]), slots))
  )
  parent = jnp.concatenate(parents, axis=1)
  above = jnp.take_along_axis(place, jnp.maximum(parent, 0), axis=1)
  return _placed(
    place,
    jnp.concatenate(tokens, axis=1),
    jnp.where(parent < 0, 0, above),
    jnp.broadcast_to(depth, pool.shape),
    root,
    slots,
  )


def _placed(place, token, parent, depth, root, slots) -> types.DraftTree:
  """Returns the tree with node i in slot place[i]; from `slots` on: nowhere."""
  batch = place.shape[0]
  rows = jnp.arange(batch)[:, None]

  def scatter(first, values):
    empty = jnp.zeros((batch, slots), values.dtype).at[:, 0].set(first)
    return empty.at[rows, place].set(values, mode='drop')

  return types.DraftTree(
    token=scatter(root, token.astype(jnp.int32)),
    parent=scatter(0, parent.astype(jnp.int32)),
    depth=scatter(0, depth.astype(jnp.int32)),
    valid=scatter(True, jnp.ones(token.shape, bool)),
  )
