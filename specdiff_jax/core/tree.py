"""Draft trees: chains, ancestors, attention masks, accepted paths."""

import jax
import jax.numpy as jnp
import numpy as np

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
  index = np.arange(token.shape[1])
  return _shaped(
    token, valid.at[:, 0].set(True), np.maximum(index - 1, 0), index, log_q
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
  slot = np.arange(drafts * gamma + 1)
  place = (slot - 1) % gamma  # in a slot's chain
  parent = np.where(place == 0, 0, slot - 1)

  def rooted(first: jax.Array, rest: jax.Array):
    return jnp.concatenate([first, rest.reshape(batch, -1)], axis=1)

  if log_q is not None:
    flat = log_q.reshape(batch, drafts * gamma, -1)
    log_q = jnp.pad(flat, ((0, 0), (1, 0), (0, 0)))
  return _shaped(
    rooted(root[:, None], token).astype(jnp.int32),
    rooted(jnp.ones((batch, 1), bool), valid),
    np.maximum(parent, 0),
    np.where(slot, place + 1, 0),
    log_q,
  )


def _shaped(
  token: jax.Array,
  valid: jax.Array,
  parent: np.ndarray,
  depth: np.ndarray,
  log_q: jax.Array | None,
) -> types.DraftTree:
  """Returns the tree whose rows all have one shape: constants of the program."""
  above = np.eye(parent.size, dtype=bool)
  for slot in range(1, parent.size):
    above[slot] |= above[parent[slot]]

  def rows(x: np.ndarray):
    return jnp.broadcast_to(jnp.asarray(x), token.shape[:1] + x.shape)

  return types.DraftTree(
    token, rows(parent), rows(depth), valid, log_q, rows(above)
  )


def ancestors(parent: jax.Array, max_depth: int | None = None) -> jax.Array:
  """Returns [B, M, M]: True where slot j is slot i or one of its ancestors.

  parent [0, 0, 1, 0] (a chain 0-1-2 and a second child 3 of the root) gives
  rows 1000, 1100, 1110, 1001. `max_depth`: of the deepest slot, if known.
  """
  slots = parent.shape[1]
  deepest = slots - 1 if max_depth is None else max_depth
  reach = jnp.maximum(jnp.eye(slots), jax.nn.one_hot(parent, slots))
  for _ in range(max(deepest - 1, 0).bit_length()):  # paths of 1, 2, 4, ..
    reach = jnp.minimum(reach @ reach, 1)
  return reach > 0


def lines(tree: types.DraftTree) -> jax.Array:
  """Returns the tree's `ancestors` [B, M, M]."""
  return ancestors(tree.parent) if tree.ancestors is None else tree.ancestors


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
    lines(tree),
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
  root = jnp.arange(tree.token.shape[1]) == 0
  wanted = jnp.take_along_axis(token, tree.parent, axis=1)
  match = (tree.valid & (tree.token == wanted)) | root
  on_path = ~jnp.any(lines(tree) & ~match[:, None], axis=2)
  deepest = jnp.argmax(jnp.where(on_path, tree.depth, -1), axis=1)
  bonus = jnp.take_along_axis(token, deepest[:, None], axis=1)[:, 0]
  return verdict(tree, deepest, bonus, max_depth)


def verdict(
  tree: types.DraftTree, deepest: jax.Array, bonus: jax.Array, max_depth: int
) -> types.Verdict:
  """Returns the verdict that keeps the path from the root to `deepest` [B]."""
  slot = jnp.arange(tree.token.shape[1])
  last = (slot == deepest[:, None])[..., None]
  line = jnp.any(last & lines(tree), axis=1)  # [B, M]
  at = line[:, None] & (
    tree.depth[:, None] == jnp.arange(max_depth + 1)[:, None]
  )
  path = jnp.sum(jnp.where(at, slot, 0), axis=2)
  return types.Verdict(path, line.sum(axis=1) - 1, bonus)
