"""Properties over random trees: ancestors, paths, prefix trees, rejection.

hypothesis draws the trees and shrinks what fails. Shapes are fixed, so that a
thousand trees are one compilation.
"""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import prefix_trees

SLOTS, VOCAB, DRAFTS, GAMMA = 7, 4, 3, 3
ancestors = jax.jit(tree_lib.ancestors)
matched_path = jax.jit(tree_lib.matched_path, static_argnums=2)
merged = jax.jit(prefix_trees.merged, static_argnums=2)
best_first = jax.jit(prefix_trees.best_first, static_argnums=3)
walk = jax.jit(rejection.walk, static_argnums=3)

settings = hypothesis.settings(
  max_examples=100,
  deadline=None,
  derandomize=True,
  database=None,
  report_multiple_bugs=False,
)
token = st.integers(0, VOCAB - 1)
tokens = st.lists(token, min_size=SLOTS, max_size=SLOTS)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def trees(draw):
  """Draws a DraftTree of one row, its root valid."""
  parent = [0] + [draw(st.integers(0, i - 1)) for i in range(1, SLOTS)]
  depth = [0] * SLOTS
  for i in range(1, SLOTS):
    depth[i] = depth[parent[i]] + 1
  valid = [True] + [draw(st.booleans()) for _ in range(SLOTS - 1)]
  row = lambda values, dtype: np.asarray([values], dtype)
  return types.DraftTree(
    row(draw(tokens), np.int32),
    row(parent, np.int32),
    row(depth, np.int32),
    row(valid, bool),
  )


def line(tree, slot):
  """Returns a slot and its ancestors, the root first."""
  found = [slot]
  while found[-1]:
    found.append(int(tree.parent[0, found[-1]]))
  return found[::-1]


@settings
@hypothesis.given(trees())
def test_ancestors_are_the_lines_to_the_root(tree):
  got = np.asarray(ancestors(tree.parent))[0]
  for slot in range(SLOTS):
    assert np.flatnonzero(got[slot]).tolist() == sorted(line(tree, slot))
  # An order: reflexive, and no two slots above each other.
  assert (
    got.diagonal().all()
    and not (got & got.T & ~np.eye(SLOTS, dtype=bool)).any()
  )


@settings
@hypothesis.given(trees(), tokens)
def test_a_matched_path_is_a_line_of_matches_that_cannot_go_on(tree, target):
  target = np.asarray([target], np.int32)
  verdict = jax.tree.map(np.asarray, matched_path(tree, target, SLOTS - 1))
  count = int(verdict.count[0])
  path = verdict.path[0, : count + 1].tolist()
  matches = lambda slot: (
    tree.valid[0, slot]
    and tree.token[0, slot] == target[0, tree.parent[0, slot]]
  )
  assert path == line(tree, path[-1]) and all(map(matches, path[1:]))
  assert not verdict.path[0, count + 1 :].any()
  assert verdict.bonus[0] == target[0, path[-1]]
  good = [s for s in range(SLOTS) if all(map(matches, line(tree, s)[1:]))]
  assert count == max(int(tree.depth[0, slot]) for slot in good)


def prefixes(tree):
  """Returns the tokens on the line to each valid slot but the root."""
  return [
    tuple(int(tree.token[0, s]) for s in line(tree, slot)[1:])
    for slot in range(1, SLOTS)
    if tree.valid[0, slot]
  ]


@settings
@hypothesis.given(
  st.lists(
    st.lists(token, min_size=GAMMA, max_size=GAMMA),
    min_size=DRAFTS,
    max_size=DRAFTS,
  )
)
def test_a_merged_tree_holds_beginnings_once_and_shallow_first(chains):
  tree = merged(np.asarray([chains], np.int32), np.zeros(1, np.int32), SLOTS)
  tree = jax.tree.map(np.asarray, tree)
  np.testing.assert_array_equal(tree.ancestors, ancestors(tree.parent))
  found = prefixes(tree)
  every = {tuple(c[:n]) for c in chains for n in range(1, GAMMA + 1)}
  assert len(set(found)) == len(found) == min(len(every), SLOTS - 1)
  assert set(found) <= every
  left_out = every - set(found)
  assert not left_out or min(map(len, left_out)) >= max(map(len, found))


@settings
@hypothesis.given(seeds)
def test_best_first_prefixes_are_the_likeliest(seed):
  q = np.random.default_rng(seed).dirichlet(np.ones(VOCAB), (1, GAMMA))
  log_q = np.log(q).astype(np.float32)
  tree = best_first(log_q, np.arange(VOCAB), np.zeros(1, np.int32), SLOTS)
  np.testing.assert_array_equal(tree.ancestors, ancestors(tree.parent))
  found = prefixes(jax.tree.map(np.asarray, tree))
  chance = lambda p: float(sum(log_q[0, i, x] for i, x in enumerate(p)))
  every = [
    np.unravel_index(i, (VOCAB,) * n)
    for n in range(1, GAMMA + 1)
    for i in range(VOCAB**n)
  ]
  best = sorted(map(chance, every), reverse=True)[: SLOTS - 1]
  assert len(set(found)) == SLOTS - 1
  np.testing.assert_allclose(
    sorted(map(chance, found), reverse=True), best, rtol=1e-5
  )


@settings
@hypothesis.given(trees(), seeds)
def test_a_walk_accepts_a_line_and_leaves_a_distribution(tree, seed):
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(VOCAB), (1, SLOTS)).astype(np.float32)
  coins = rng.random((1, SLOTS)).astype(np.float32)
  for proposal in ('point', 'drawn', 'distinct'):
    log_q = np.log(rng.dirichlet(np.ones(VOCAB), (1, SLOTS)).astype(np.float32))
    found = walk(tree.replace(log_q=log_q), p, coins, proposal)
    path = line(tree, int(found.deepest[0]))
    assert all(tree.valid[0, slot] for slot in path)
    left = np.asarray(found[1])[0]
    assert (left >= 0).all() and abs(left.sum() - 1) < 1e-5
    if proposal == 'point':  # what was refused is not drawn
      refused = [
        int(tree.token[0, slot])
        for slot in range(1, SLOTS)
        if tree.parent[0, slot] == path[-1]
        and float(found.chance[0, slot]) >= 0
      ]
      assert not left[refused].any() or left[refused].max() < 1e-6


@settings
@hypothesis.given(trees(), seeds, st.floats(0, 0.99))
def test_lower_coins_accept_no_less_of_a_chain(tree, seed, share):
  """A property of chains alone: in trees a sibling may win over a deep line."""
  rng = np.random.default_rng(seed)
  index = np.arange(SLOTS)[None].astype(np.int32)
  chain = tree.replace(parent=np.maximum(index - 1, 0), depth=index)
  p = rng.dirichlet(np.ones(VOCAB), (1, SLOTS)).astype(np.float32)
  coins = rng.random((1, SLOTS)).astype(np.float32)
  high = int(walk(chain, p, coins, 'point').deepest[0])
  low = int(walk(chain, p, coins * np.float32(share), 'point').deepest[0])
  assert low >= high
  assert int(walk(chain, p, jnp.ones_like(coins), 'point').deepest[0]) <= high


def _one_more(verdict):
  return verdict.replace(count=verdict.count + 1)


def _bonus_from(p, found):
  return found._replace(bonus=p[:, int(found.deepest[0])])


# For each property a function that is wrong.
BROKEN = (
  (
    'ancestors',
    test_ancestors_are_the_lines_to_the_root,
    lambda parent, real=ancestors: real(jnp.zeros_like(parent)),
  ),
  (
    'matched_path',
    test_a_matched_path_is_a_line_of_matches_that_cannot_go_on,
    lambda *args, real=matched_path: _one_more(real(*args)),
  ),
  (
    'merged',
    test_a_merged_tree_holds_beginnings_once_and_shallow_first,
    lambda chains, root, slots, real=merged: real(
      chains[..., ::-1], root, slots
    ),
  ),
  (
    'best_first',
    test_best_first_prefixes_are_the_likeliest,
    lambda log_q, *rest, real=best_first: real(
      jnp.roll(log_q, 1, axis=-1), *rest
    ),
  ),
  (
    'walk',
    test_lower_coins_accept_no_less_of_a_chain,
    lambda tree, p, coins, kind, real=walk: real(tree, p, 1 - coins, kind),
  ),
  (
    'walk',
    test_a_walk_accepts_a_line_and_leaves_a_distribution,
    # The bonus from p itself: what was refused is drawn again.
    lambda tree, p, *rest, real=walk: _bonus_from(p, real(tree, p, *rest)),
  ),
)


@pytest.mark.parametrize(
  ('name', 'check', 'broken'),
  BROKEN,
  ids=[check.__name__ for _, check, _ in BROKEN],
)
def test_what_is_broken_is_noticed(name, check, broken, monkeypatch):
  """The negative controls."""
  monkeypatch.setitem(check.hypothesis.inner_test.__globals__, name, broken)
  with pytest.raises(AssertionError):
    check()
