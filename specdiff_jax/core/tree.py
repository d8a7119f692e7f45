"""Draft trees: chains, ancestors, attention masks, accepted paths."""

import jax
import jax.numpy as jnp

from specdiff_jax.core import types


def chain(
  token: jax.Array, valid: jax.Array, log_q: jax.Array | None = None
) -> types.DraftTree:
  """Returns the tree in which slot i is the child of slot i - 1.

  Args:
    token: [B, M] int32, the last committed token first.
    valid: [B, M] bool.
    log_q: [B, M, V] or None.
  """
  index = jnp.broadcast_to(jnp.arange(token.shape[1]), token.shape)
  return types.DraftTree(
    token=token,
    parent=jnp.maximum(index - 1, 0),
    depth=index,
    valid=valid.at[:, 0].set(True),
    log_q=log_q,
  )


def chains(
  token: jax.Array,
  valid: jax.Array,
  root: jax.Array,
  log_q: jax.Array | None = None,
) -> types.DraftTree:
  """Returns the tree of K chains that share only their root.

  Chain k takes slots k G + 1 to k G + G. Chains that begin alike repeat each
  other's tokens: nothing is merged.

  Args:
    token: [B, K, G] int32.
    valid: [B, K, G] bool.
    root: [B] the last committed token.
    log_q: [B, K, G, V] or None.
  """
  batch, drafts, gamma = token.shape
  slot = jnp.arange(1, drafts * gamma + 1)
  first = (slot - 1) % gamma == 0
  zero = jnp.zeros(1, jnp.int32)
  parent = jnp.concatenate([zero, jnp.where(first, 0, slot - 1)])
  depth = jnp.concatenate([zero, (slot - 1) % gamma + 1])
  shape = (batch, slot.size + 1)

  def rooted(first: jax.Array, rest: jax.Array):
    return jnp.concatenate([first, rest.reshape(batch, slot.size)], axis=1)

  if log_q is not None:
    flat = log_q.reshape(batch, slot.size, -1)
    log_q = jnp.pad(flat, ((0, 0), (1, 0), (0, 0)))
  return types.DraftTree(
    token=rooted(root[:, None], token).astype(jnp.int32),
    parent=jnp.broadcast_to(parent, shape),
    depth=jnp.broadcast_to(depth, shape),
    valid=rooted(jnp.ones((batch, 1), bool), valid),
    log_q=log_q,
  )


def ancestors(parent: jax.Array) -> jax.Array:
  """Returns [B, M, M]: True where slot j is slot i or one of its ancestors.

  parent [0, 0, 1, 0] (a chain 0-1-2 and a second child 3 of the root) gives
  rows 1000, 1100, 1110, 1001.
  """
  slots = parent.shape[1]
  reach = jnp.eye(slots, dtype=bool) | jax.nn.one_hot(parent, slots, dtype=bool)
  for _ in range(max(slots - 1, 1).bit_length()):  # paths of length 1, 2, 4, ..
    reach = jnp.einsum('bij,bjk->bik', reach, reach) > 0
  return reach


def cache_mask(
  tree: types.DraftTree, length: jax.Array, slots: int
) -> jax.Array:
  """Returns [B, M, S]: the committed prefix and a slot's own ancestors.

  Slot i of the tree lies in cache slot `length - 1 + i`.
  """
  index = jnp.arange(slots)[None, None, :]
  start = (length - 1)[:, None, None]
  offset = jnp.clip(index - start, 0, tree.parent.shape[1] - 1)
  ancestor = jnp.take_along_axis(
    ancestors(tree.parent),
    jnp.broadcast_to(offset, tree.parent.shape + (slots,)),
    axis=2,
  )
  inside = (index >= start) & (index < start + tree.parent.shape[1])
  return (index < start) | (inside & ancestor)


def matched_path(
  tree: types.DraftTree, token: jax.Array, max_depth: int
) -> types.Verdict:
  """Follows the slots that carry the verifier's token at their parent.

  Args:
    tree: the draft.
    token: [B, M] the verifier's next token after each slot.
    max_depth: D.

  Returns:
    The deepest path; where siblings repeat a token all are followed.
  """
  batch, slots = tree.token.shape
  here = jnp.arange(slots)
  wanted = jnp.take_along_axis(token, tree.parent, axis=1)
  match = tree.valid & (tree.token == wanted) & (here > 0)[None]
  on_path = jnp.broadcast_to(here == 0, (batch, slots))
  for _ in range(max_depth):
    on_path |= match & jnp.take_along_axis(on_path, tree.parent, axis=1)
  deepest = jnp.argmax(jnp.where(on_path, tree.depth, -1), axis=1)
  return verdict(tree, deepest, token[jnp.arange(batch), deepest], max_depth)


def verdict(
  tree: types.DraftTree, deepest: jax.Array, bonus: jax.Array, max_depth: int
) -> types.Verdict:
  """Returns the verdict that keeps the path from the root to `deepest` [B]."""
  rows = jnp.arange(deepest.shape[0])
  path = jnp.zeros((rows.size, max_depth + 1), jnp.int32)
  slot = deepest
  for _ in range(max_depth):  # from the deepest slot back to the root
    path = path.at[rows, tree.depth[rows, slot]].set(slot)
    slot = tree.parent[rows, slot]
  return types.Verdict(path, tree.depth[rows, deepest], bonus)
