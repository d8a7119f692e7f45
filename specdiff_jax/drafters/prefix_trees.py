"""Prefix trees: of K chains, and of the most probable prefixes."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types


def merged(token: jax.Array, root: jax.Array, slots: int) -> types.DraftTree:
  """Returns the prefix tree of K chains [B, K, G], breadth first.

  Chains a b and a c give slots root, a, b, c; what does not fit is left out.
  """
  batch, drafts, gamma = token.shape
  differ = token[:, :, None] != token[:, None]  # [B, K, K, G]
  so_far = np.tri(gamma, dtype=bool)
  alike = ~jnp.any(differ[..., None, :] & so_far, axis=-1)
  # The first chain with the same beginning owns the slot.
  owner = jnp.argmax(alike, axis=2)  # [B, K, G]
  first = owner == jnp.arange(drafts)[None, :, None]

  def by_depth(x):
    return jnp.swapaxes(x, 1, 2).reshape(batch, gamma * drafts)

  new = by_depth(first)
  count = jnp.sum(new[:, None] & np.tri(gamma * drafts, dtype=bool), axis=2)
  place = jnp.where(new, count, slots)
  of_owner = jnp.swapaxes(place.reshape(batch, gamma, drafts), 1, 2)
  owner_above = jnp.pad(owner[..., :-1], ((0, 0), (0, 0), (1, 0)))
  above = jnp.pad(of_owner[..., :-1], ((0, 0), (0, 0), (1, 0)))
  parent = jnp.take_along_axis(above, owner_above, axis=1)
  depth = jnp.broadcast_to(jnp.arange(1, gamma + 1), token.shape)
  slot = jnp.arange(slots)
  here = place[..., None] == slot  # [B, G K, M]

  def placed(values: jax.Array):
    return jnp.sum(jnp.where(here, by_depth(values)[..., None], 0), axis=1)

  return _tree(
    placed(token),
    placed(parent),
    placed(depth),
    jnp.any(here, axis=1),
    root,
    gamma,
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
  score = jnp.zeros((batch, 1))
  scores, pairs, table = [], [], []
  begin = -1  # of the prefixes above, in the pool of all depths; -1: the root
  for depth in range(gamma):
    # The (i, j) best prefix and token have (i + 1)(j + 1) - 1 pairs that are no
    # worse, so that few can be among the N best.
    ranks = np.outer(1 + np.arange(score.shape[1]), 1 + np.arange(choices))
    above, following = np.nonzero(ranks <= width)
    total = score[:, above] + value[:, depth, following]
    known = sum(one.shape[1] for one in table)
    table.append(np.stack(np.broadcast_arrays(depth, begin + above, following)))
    begin += score.shape[1]
    score, chosen = lax.top_k(total, min(width, total.shape[1]))
    scores.append(score)
    pairs.append(known + chosen)
  # Ties go to the lower index, hence to the shallower prefix.
  pool = jnp.concatenate(scores, axis=1)
  best, chosen = lax.top_k(pool, min(width, pool.shape[1]))
  valid = best > -jnp.inf
  pair = jnp.take_along_axis(jnp.concatenate(pairs, axis=1), chosen, axis=1)
  depth, parent, rank = jnp.asarray(np.concatenate(table, axis=1))[:, pair]
  token = ids[index[jnp.arange(batch)[:, None], depth, rank]]
  here = parent[..., None] == chosen[:, None]  # [B, N, N]

  def slot(values: jax.Array):
    values = jnp.where(valid, values, 0)
    return jnp.pad(values, ((0, 0), (1, width - chosen.shape[1])))

  return _tree(
    slot(token),
    slot(jnp.sum(jnp.where(here, jnp.arange(chosen.shape[1]) + 1, 0), axis=2)),
    slot(depth + 1),
    slot(valid) > 0,
    root,
    gamma,
  )


def _tree(token, parent, depth, valid, root, max_depth) -> types.DraftTree:
  """Returns the tree of slots [B, M], of which slot 0 is still empty."""
  return types.DraftTree(
    token=token.at[:, 0].set(root).astype(jnp.int32),
    parent=parent,
    depth=depth,
    valid=valid.at[:, 0].set(True),
    ancestors=tree_lib.ancestors(parent, max_depth),
  )
