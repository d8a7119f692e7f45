"""Trees of a lattice against a heap, against marginals, and under noise."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.drafters import prefix_trees

lattice = jax.jit(prefix_trees.lattice, static_argnums=(4, 5))
best_first = jax.jit(prefix_trees.best_first, static_argnums=3)


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def drawn(rows, depth, choices, seed=0):
  """Returns start and trans of random lattices, whose rows sum to 1."""
  rng = np.random.default_rng(seed)
  start = rng.normal(0, 2, (rows, choices))
  trans = rng.normal(0, 2, (rows, depth - 1, choices, choices))
  return tuple(log_softmax(x).astype(np.float32) for x in (start, trans))


def tokens(rows, depth, choices):
  """Returns [B, D, K] candidates: each its own index."""
  shape = rows, depth, choices
  return np.broadcast_to(np.arange(choices, dtype=np.int32), shape)


def built(start, trans, slots, frontier=None):
  rows, choices = start.shape
  depth = trans.shape[1] + 1
  return lattice(
    start,
    trans,
    tokens(rows, depth, choices),
    np.full(rows, 99, np.int32),
    slots,
    frontier or slots - 1,
  )


def prefixes(tree, row):
  """Returns the prefixes of a row's valid slots, in their order."""
  token, parent, valid = (
    np.asarray(x)[row] for x in (tree.token, tree.parent, tree.valid)
  )
  found = {0: ()}
  for slot in range(1, valid.sum()):
    assert parent[slot] < slot  # what a tree has, its beginnings are in too
    found[slot] = found[int(parent[slot])] + (int(token[slot]),)
  return [found[slot] for slot in range(1, valid.sum())]


def score(start, trans, prefix):
  """Returns the log-probability of a prefix in one lattice, in float32."""
  total = start[prefix[0]]
  for step, pair in zip(trans, zip(prefix, prefix[1:])):
    total = total + step[pair]
  return total


def heap(start, trans, count, frontier=None):
  """Returns the best prefixes of one lattice, one after the other.

  With `frontier`, only so many prefixes of each depth are continued.
  """
  depth, follow = len(trans) + 1, None
  if frontier is not None:
    follow, level = set(), [()]
    for d in range(depth):
      above = sorted(level, key=lambda p: -score(start, trans, p) if p else 0)
      follow |= set(above[:frontier])
      level = [p + (c,) for p in above[:frontier] for c in range(len(start))]
    follow -= {()}
  queue = [(-start[c], 1, (c,)) for c in range(len(start))]
  heapq.heapify(queue)
  best = []
  while queue and len(best) < count:
    cost, size, prefix = heapq.heappop(queue)
    best.append(prefix)
    if size < depth and (follow is None or prefix in follow):
      for c, step in enumerate(trans[size - 1][prefix[-1]]):
        heapq.heappush(queue, (cost - step, size + 1, prefix + (c,)))
  return best


@pytest.mark.parametrize('slots', [16, 32, 64])
def test_the_lattice_holds_what_an_exact_heap_finds(slots):
  start, trans = drawn(60, 7, 8, seed=slots)
  tree = built(start, trans, slots)
  for row in range(60):
    wanted = heap(start[row], trans[row], slots - 1)
    assert prefixes(tree, row) == wanted  # and in that order


@pytest.mark.parametrize('frontier', [1, 3])
def test_a_frontier_bounds_what_is_continued(frontier):
  start, trans = drawn(20, 4, 5)
  tree, whole = built(start, trans, 24, frontier), built(start, trans, 24)
  for row in range(20):
    wanted = heap(start[row], trans[row], 23, frontier)
    assert prefixes(tree, row) == wanted
  assert any(prefixes(whole, r) != prefixes(tree, r) for r in range(20))


def test_constant_rows_are_the_best_first_tree():
  rng = np.random.default_rng(0)
  log_q = np.log(rng.dirichlet(np.ones(8), (40, 5))).astype(np.float32)
  log_q[::3] = np.log(1 / 8)  # ties everywhere
  ids = rng.permutation(50)[:8].astype(np.int32)
  root = np.zeros(40, np.int32)
  wanted = best_first(log_q, ids, root, 20)
  value, index = jax.jit(jax.lax.top_k, static_argnums=1)(log_q, 8)
  rows = np.broadcast_to(value[:, 1:, None], (40, 4, 8, 8))
  found = lattice(value[:, 0], rows, ids[index], root, 20, 19)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_row_is_the_same_alone():
  start, trans = drawn(7, 5, 6)
  whole = built(start, trans, 18, 4)
  for row in range(7):
    alone = built(start[row : row + 1], trans[row : row + 1], 18, 4)
    one = jax.tree.map(lambda x, row=row: x[row : row + 1], whole)
    jax.tree.map(np.testing.assert_array_equal, alone, one)


def expected(tree, start, trans):
  """Returns the mean of the accepted tokens, of drafts that the law is of."""
  return np.mean(
    [
      sum(np.exp(score(start[row], trans[row], p)) for p in prefixes(tree, row))
      for row in range(len(start))
    ]
  )


def test_knowing_the_parent_accepts_more_than_marginals_do():
  """Both trees of one first-order law, of 32 slots beside the root."""
  start, trans = drawn(60, 7, 8)
  marginal = [np.exp(start)]
  for step in range(6):
    marginal.append(
      np.einsum('bp,bpc->bc', marginal[-1], np.exp(trans[:, step]))
    )
  log_q = np.log(np.stack(marginal, axis=1))
  root = np.zeros(60, np.int32)
  by_marginals = best_first(log_q, np.arange(8), root, 33)
  by_parents = built(start, trans, 33)
  found = [expected(x, start, trans) for x in (by_marginals, by_parents)]
  np.testing.assert_allclose(found, [2.44, 3.00], atol=0.15)
  assert found[1] > 1.2 * found[0]


def closed(tree):
  """Returns, for each row, whether every slot's beginnings are in its tree."""
  above = np.take_along_axis(np.asarray(tree.depth), np.asarray(tree.parent), 1)
  fits = ~np.asarray(tree.valid) | (np.asarray(tree.depth) == above + 1)
  return fits[:, 1:].all(axis=1)


def test_trees_under_noise_are_closed_where_rows_are_renormalised():
  rng = np.random.default_rng(0)
  start, trans = drawn(200, 7, 8)
  g = rng.gumbel(size=(200, 7, 8)).astype(np.float32)  # one for all parents
  noisy = start + g[:, 0], trans + g[:, 1:, None]
  assert closed(built(*map(log_softmax, noisy), 32)).all()
  # Negative control: the noise as it is, with which scores rise.
  assert not closed(built(*noisy, 32)).any()


def walked(tree, start, trans, seed=0):
  """Returns what paths drawn from the law accept of a tree."""
  rows, depth = len(start), trans.shape[1] + 1
  rng = np.random.default_rng(seed)
  path = np.zeros((rows, depth), np.int32)
  for row in range(rows):
    p = start[row]
    for d in range(depth):
      path[row, d] = rng.choice(len(p), p=np.exp(p) / np.exp(p).sum())
      p = trans[row, d, path[row, d]] if d < depth - 1 else p
  # The verifier's token after each slot, if the path there is the drawn one.
  following = np.pad(path, ((0, 0), (0, 1)))
  token = np.take_along_axis(following, np.asarray(tree.depth), axis=1)
  return np.asarray(tree_lib.matched_path(tree, token, depth).count)


def spine(tree):
  """Returns the tree of its greedy path alone: each slot's first child."""
  parent, valid = np.asarray(tree.parent), np.asarray(tree.valid).copy()
  for row in range(len(parent)):
    at, kept = 0, {0}
    while children := [
      i
      for i in range(1, len(parent[row]))
      if valid[row, i] and parent[row, i] == at
    ]:
      at = children[0]  # slots lie in the order of their scores
      kept.add(at)
    valid[row] = [i in kept for i in range(len(parent[row]))]
  return tree.replace(valid=jnp.asarray(valid))


def test_a_tree_accepts_at_least_its_own_greedy_path():
  start, trans = drawn(200, 7, 8)
  tree = built(start, trans, 32, 8)
  whole, path = (walked(x, start, trans) for x in (tree, spine(tree)))
  assert (whole >= path).all() and (whole > path).any()
