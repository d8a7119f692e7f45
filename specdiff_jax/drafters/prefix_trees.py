"""Prefix trees: of K chains, and of the most probable prefixes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import sampling as sampling_lib
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

  tree = _tree(
    placed(token),
    placed(parent),
    placed(depth),
    jnp.any(here, axis=1),
    root,
    gamma,
  )
  return tree.replace(candidates=jnp.swapaxes(token, 1, 2).astype(jnp.int32))


def best_first(
  log_q: jax.Array, ids: jax.Array, root: jax.Array, slots: int
) -> types.DraftTree:
  """Returns the most probable prefixes under marginals [B, G, W].

  The lattice of constant rows: of each slot's tokens only the N = slots - 1
  likeliest can matter, and of each depth's prefixes too.
  """
  width = slots - 1
  value, index = sampling_lib.top_k(log_q, min(width, log_q.shape[-1]))
  return lattice(
    value[:, 0], value[:, 1:, None], ids[index], root, slots, width
  )


def lattice(
  start: jax.Array,
  trans: jax.Array,
  token: jax.Array,
  root: jax.Array,
  slots: int,
  frontier: int,
) -> types.DraftTree:
  """Returns the N = slots - 1 best prefixes of a lattice of candidates.

  The score of a prefix is a sum of log-probabilities, the last one's given the
  token before it:

    score(c_1 .. c_d) = start[c_1] + sum_{j=2..d} trans[j - 2, c_{j-1}, c_j]

  Best are those of the largest score, then the shallower, then those of the
  better parent. No log-probability is above 0, hence each prefix comes after
  its own beginnings. With `frontier` = N these are the N best of all;
  a smaller one follows only so many prefixes of each depth further.

  Args:
    start: [B, K] log-probabilities of the first slot's candidates.
    trans: [B, D - 1, K, K] of each later slot's, by the candidate before. Or
      [B, D - 1, 1, K], where they are the same after all; then those of each
      slot, `start` too, have to fall.
    token: [B, D, K] the candidates.
    root: [B] the last committed token.
    slots: of the tree, its root included.
    frontier: F, prefixes of each depth that are continued.
  """
  (batch, choices), gamma, width = start.shape, token.shape[1], slots - 1
  chex.assert_shape(token, (batch, gamma, choices))
  alike = trans.shape[2] == 1
  score, scores, pairs, table = jnp.zeros((batch, 1)), [], [], []
  edges = start[:, None]  # [B, 1, K]
  begin = -1  # of the prefixes above, in the pool of all depths; -1: the root
  for depth in range(gamma):
    above, following = np.indices((score.shape[1], choices)).reshape(2, -1)
    if alike:
      # The (i, j) best prefix and token have (i + 1)(j + 1) - 1 pairs that are
      # no worse, so that few can be among the N best.
      few = (above + 1) * (following + 1) <= width
      above, following = above[few], following[few]
    total = score[:, above] + edges[:, 0 if alike else above, following]
    known = sum(one.shape[1] for one in table)
    table.append(np.stack(np.broadcast_arrays(depth, begin + above, following)))
    begin = begin + scores[-1].shape[1] if scores else 0
    best, chosen = sampling_lib.top_k(total, min(width, total.shape[1]))
    scores.append(best)
    pairs.append(known + chosen)
    score = best[:, :frontier]
    if depth + 1 < gamma:
      edges = trans[:, depth]
      if not alike:
        rank = jnp.asarray(following)[chosen[:, :frontier]]
        edges = jnp.take_along_axis(edges, rank[..., None], axis=1)
  # Ties go to the lower index, hence to the shallower prefix.
  pool = jnp.concatenate(scores, axis=1)
  best, chosen = sampling_lib.top_k(pool, min(width, pool.shape[1]))
  pair = jnp.take_along_axis(jnp.concatenate(pairs, axis=1), chosen, axis=1)
  depth, parent, rank = jnp.asarray(np.concatenate(table, axis=1))[:, pair]
  chosen_token = token[jnp.arange(batch)[:, None], depth, rank]
  tree = of_pool(
    best, chosen, chosen_token, parent, depth + 1, root, slots, gamma
  )
  return tree.replace(candidates=token.astype(jnp.int32))


def of_pool(
  best: jax.Array,
  chosen: jax.Array,
  token: jax.Array,
  parent: jax.Array,
  depth: jax.Array,
  root: jax.Array,
  slots: int,
  max_depth: int,
) -> types.DraftTree:
  """Returns the tree of prefixes that were chosen of a pool, parents first.

  Args:
    best: [B, N] their scores; -inf for none.
    chosen: [B, N] their places in the pool.
    token: [B, N] the last token of each.
    parent: [B, N] the places of their parents in the pool; -1 for the root.
    depth: [B, N].
    root: [B] the last committed token.
    slots: of the tree, its root included: N + 1 or more.
    max_depth: of the deepest prefix.
  """
  valid = best > -jnp.inf
  here = parent[..., None] == chosen[:, None]  # [B, N, N]

  def slot(values: jax.Array):
    values = jnp.where(valid, values, 0)
    return jnp.pad(values, ((0, 0), (1, slots - 1 - chosen.shape[1])))

  return _tree(
    slot(token),
    slot(jnp.sum(jnp.where(here, jnp.arange(chosen.shape[1]) + 1, 0), axis=2)),
    slot(depth),
    slot(valid) > 0,
    root,
    max_depth,
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
