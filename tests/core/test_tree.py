"""Trees against brute force over random ones, and one golden tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types

ancestors = jax.jit(tree_lib.ancestors)
cache_mask = jax.jit(tree_lib.cache_mask, static_argnums=2)
matched_path = jax.jit(tree_lib.matched_path, static_argnums=2)


def random_tree(rng, rows, slots, vocab):
  """Returns trees whose parents, tokens and holes are all random."""
  parent = np.zeros((rows, slots), np.int32)
  depth = np.zeros((rows, slots), np.int32)
  for row in range(rows):
    for i in range(1, slots):
      parent[row, i] = rng.integers(0, i)
      depth[row, i] = depth[row, parent[row, i]] + 1
  token = rng.integers(0, vocab, (rows, slots)).astype(np.int32)
  valid = rng.random((rows, slots)) < 0.9
  valid[:, 0] = True
  return types.DraftTree(token, parent, depth, valid)


def line_of(parent, slot):
  """Returns a slot and its ancestors, the root first."""
  line = [slot]
  while line[-1]:
    line.append(int(parent[line[-1]]))
  return line[::-1]


def brute_walk(tree, row, token):
  """Returns path and bonus of the deepest line that matches all along."""
  best = [0]
  for slot in range(tree.token.shape[1]):
    line = line_of(tree.parent[row], slot)
    good = all(
      tree.valid[row, child] and tree.token[row, child] == token[row, above]
      for above, child in zip(line, line[1:])
    )
    if good and len(line) > len(best):
      best = line
  return best, token[row, best[-1]]


@pytest.mark.parametrize('slots', [1, 2, 3, 5, 9, 17])
def test_ancestors_are_those_of_brute_force(slots):
  tree = random_tree(np.random.default_rng(slots), 40, slots, 3)
  got = np.asarray(ancestors(tree.parent))
  for row in range(40):
    for i in range(slots):
      wanted = np.isin(np.arange(slots), line_of(tree.parent[row], i))
      np.testing.assert_array_equal(got[row, i], wanted)
  deepest = int(tree.depth.max())
  np.testing.assert_array_equal(tree_lib.ancestors(tree.parent, deepest), got)


@pytest.mark.parametrize('slots', [2, 8, 16, 17, 33])
def test_ancestors_of_the_longest_chain(slots):
  tree = tree_lib.chain(jnp.zeros((1, slots), int), jnp.ones((1, slots), bool))
  got = np.asarray(ancestors(tree.parent))[0]
  np.testing.assert_array_equal(got, np.tril(np.ones((slots, slots), bool)))
  np.testing.assert_array_equal(got, tree_lib.lines(tree)[0])


def test_chain():
  token = jnp.array([[7, 8, 9], [4, 5, 6]])
  valid = jnp.array([[False, True, False], [True, False, True]])
  tree = tree_lib.chain(token, valid)
  np.testing.assert_array_equal(tree.token, token)
  np.testing.assert_array_equal(tree.parent, [[0, 0, 1]] * 2)
  np.testing.assert_array_equal(tree.depth, [[0, 1, 2]] * 2)
  np.testing.assert_array_equal(tree.valid[:, 0], [True, True])
  np.testing.assert_array_equal(tree.valid[:, 1:], valid[:, 1:])


@pytest.mark.parametrize('drafts, gamma', [(1, 3), (3, 1), (3, 4)])
def test_chains(drafts, gamma):
  rows, vocab = 5, 7
  rng = np.random.default_rng(drafts)
  token = rng.integers(0, vocab, (rows, drafts, gamma))
  valid = rng.random(token.shape) < 0.7
  root = rng.integers(0, vocab, rows)
  log_q = rng.standard_normal(token.shape + (vocab,)).astype(np.float32)
  chains = jax.jit(tree_lib.chains)
  tree = jax.device_get(chains(token, valid, root, log_q))
  assert tree.token.shape == (rows, drafts * gamma + 1)
  for row in range(rows):
    assert tree.token[row, 0] == root[row] and tree.valid[row, 0]
    for k in range(drafts):
      line = line_of(tree.parent[row], (k + 1) * gamma)
      assert line == [0] + list(range(k * gamma + 1, (k + 1) * gamma + 1))
      own = line[1:]
      np.testing.assert_array_equal(tree.depth[row, line], range(gamma + 1))
      np.testing.assert_array_equal(tree.token[row, own], token[row, k])
      np.testing.assert_array_equal(tree.valid[row, own], valid[row, k])
      np.testing.assert_array_equal(tree.log_q[row, own], log_q[row, k])
  np.testing.assert_array_equal(tree.ancestors, ancestors(tree.parent))
  assert chains(token, valid, root).log_q is None


def test_cache_mask_is_that_of_brute_force():
  rows, slots, size = 12, 6, 20
  tree = random_tree(np.random.default_rng(0), rows, slots, 3)
  length = np.arange(1, rows + 1).astype(np.int32)
  got = cache_mask(tree, length, size)
  for row in range(rows):
    start = length[row] - 1
    for i in range(slots):
      line = line_of(tree.parent[row], i)
      seen = set(range(start)) | {start + slot for slot in line}
      wanted = np.isin(np.arange(size), list(seen))
      np.testing.assert_array_equal(np.asarray(got)[row, i], wanted)


@pytest.mark.parametrize('slots', [2, 5, 9])
@pytest.mark.parametrize('vocab', [1, 2, 3])
def test_matched_path_is_that_of_brute_force(slots, vocab):
  """Two or three tokens make many siblings that repeat one."""
  rows, rng = 200, np.random.default_rng(slots * 10 + vocab)
  tree = random_tree(rng, rows, slots, vocab)
  token = rng.integers(0, vocab, (rows, slots)).astype(np.int32)
  got = jax.device_get(matched_path(tree, token, slots - 1))
  for row in range(rows):
    path, bonus = brute_walk(tree, row, token)
    assert int(got.count[row]) == len(path) - 1
    slot = got.path[row]
    assert not slot[len(path) :].any()
    np.testing.assert_array_equal(slot[: len(path)], path)
    assert int(got.bonus[row]) == bonus


def test_matched_path_follows_every_sibling_that_repeats_a_token():
  #      0 -- 1(a) -- 3(b)         The verifier says a after 0, c after a.
  #        \- 2(a) -- 4(c)         Slot 1 matches and leads nowhere.
  a, b, c, end = 5, 6, 7, 8
  tree = types.DraftTree(
    token=jnp.array([[0, a, a, b, c]]),
    parent=jnp.array([[0, 0, 0, 1, 2]]),
    depth=jnp.array([[0, 1, 1, 2, 2]]),
    valid=jnp.ones((1, 5), bool),
  )
  got = matched_path(tree, jnp.array([[a, c, c, 0, end]]), 2)
  np.testing.assert_array_equal(got.path, [[0, 2, 4]])
  assert int(got.count[0]) == 2 and int(got.bonus[0]) == end


def test_golden_tree():
  """Numbers worked out by hand for the tree of `ancestors`' docstring."""
  tree = types.DraftTree(
    token=jnp.array([[10, 11, 12, 13]] * 4),
    parent=jnp.array([[0, 0, 1, 0]] * 4),
    depth=jnp.array([[0, 1, 2, 1]] * 4),
    valid=jnp.ones((4, 4), bool).at[3, 1].set(False),
  )
  np.testing.assert_array_equal(
    ancestors(tree.parent)[0],
    np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]], bool),
  )
  np.testing.assert_array_equal(
    cache_mask(tree, jnp.array([3, 1, 1, 1]), 8)[0],
    np.array(
      [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0],
      ],
      bool,
    ),
  )
  verifier = jnp.array(
    [
      [11, 12, 20, 21],  # the chain, then 20
      [13, 12, 20, 21],  # the other child, then 21
      [30, 12, 20, 21],  # nothing; 12 after 11 was never asked for
      [11, 12, 20, 21],  # slot 1 is not valid, so its child is not reached
    ]
  )
  got = matched_path(tree, verifier, 2)
  np.testing.assert_array_equal(
    got.path, [[0, 1, 2], [0, 3, 0], [0, 0, 0], [0, 0, 0]]
  )
  np.testing.assert_array_equal(got.count, [2, 1, 0, 0])
  np.testing.assert_array_equal(got.bonus, [20, 21, 30, 11])
