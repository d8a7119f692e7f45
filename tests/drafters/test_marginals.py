"""Trees from marginals against sets of prefixes, and their laws by counts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import prefix_trees
from specdiff_jax.drafters import strategies

merged = jax.jit(prefix_trees.merged, static_argnums=2)
best_first = jax.jit(prefix_trees.best_first, static_argnums=3)


def prefixes(tree, row):
  """Returns the prefix of each valid slot, after checks of the structure."""
  token, parent, depth, valid = (
    np.asarray(x)[row]
    for x in (tree.token, tree.parent, tree.depth, tree.valid)
  )
  found = {0: ()}
  assert valid[0] and parent[0] == depth[0] == 0
  assert (np.diff(valid.astype(int)) <= 0).all()  # what is left over is last
  for slot in range(1, valid.sum()):
    assert parent[slot] < slot  # a parent before its children
    found[slot] = found[int(parent[slot])] + (int(token[slot]),)
    assert depth[slot] == len(found[slot])
  for slot in range(valid.sum(), len(valid)):
    assert token[slot] == parent[slot] == depth[slot] == 0
  assert len(set(found.values())) == len(found)  # siblings differ
  return list(found.values())


@pytest.mark.parametrize(
  'drafts, gamma, vocab',
  [(1, 3, 3), (5, 3, 2), (3, 1, 4), (4, 3, 1)],
)
def test_merged_holds_every_beginning_once(drafts, gamma, vocab):
  rows, rng = 60, np.random.default_rng(drafts)
  token = rng.integers(0, vocab, (rows, drafts, gamma)).astype(np.int32)
  root = rng.integers(0, vocab, rows).astype(np.int32)
  room = drafts * gamma + 1
  for slots in sorted({room, room // 2 + 1}):
    tree = merged(token, root, slots)
    np.testing.assert_array_equal(tree.token[:, 0], root)
    for row in range(rows):
      got = prefixes(tree, row)
      # Breadth first, in the order in which chains bring them.
      wanted = [()]
      for depth, chain in itertools.product(
        range(1, gamma + 1), token[row].tolist()
      ):
        if tuple(chain[:depth]) not in wanted:
          wanted.append(tuple(chain[:depth]))
      assert got == wanted[:slots]


def probability(q, prefix):
  return float(np.prod([q[i, token] for i, token in enumerate(prefix)]))


@pytest.mark.parametrize(
  'gamma, width, slots',
  [
    (1, 4, 3),
    (2, 3, 6),
    (3, 3, 9),
    (3, 2, 12),
    (4, 3, 5),
    (2, 2, 12),
    (3, 5, 2),
  ],
)
def test_best_first_holds_the_most_probable_prefixes(gamma, width, slots):
  rows, rng = 40, np.random.default_rng(slots)
  q = rng.dirichlet(np.ones(width), size=(rows, gamma)).astype(np.float32)
  q[::4] = np.where(q[::4] < 0.3, 0.25, 0.5)  # ties, at any scale
  q[1::4, :, 0] = 0  # tokens that cannot be drafted
  q[5] = 0
  q[5, :, 0] = 1  # only one path has any chance
  ids = rng.permutation(50)[:width].astype(np.int32)
  root = rng.integers(0, 50, rows).astype(np.int32)
  with np.errstate(divide='ignore'):
    tree = best_first(np.log(q), ids, root, slots)
  np.testing.assert_array_equal(tree.token[:, 0], root)
  place = {int(token): i for i, token in enumerate(ids)}
  for row in range(rows):
    got = [
      probability(q[row], [place[token] for token in prefix])
      for prefix in prefixes(tree, row)[1:]
    ]
    every = [
      probability(q[row], prefix)
      for n in range(1, gamma + 1)
      for prefix in itertools.product(range(width), repeat=n)
    ]
    wanted = sorted((x for x in every if x > 0), reverse=True)[: slots - 1]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)  # and in that order


def test_best_first_is_conditioned_on_the_verifiers_noise():
  """At temperature 1 its best prefix is what the shared-noise chain drafts."""
  m = laws(rows=50)
  hot = setting(50, 1.0)
  noise = sampling_lib.request_noise(0, jnp.arange(50))
  shared = strategies.Chain(mode='shared_noise')
  tree = jax.jit(functools.partial(strategies.BestFirst(8), slots=8))(
    m, hot, noise
  )
  chain = jax.jit(functools.partial(shared, slots=3))(m, hot, noise)
  for row in range(50):
    first, second = np.asarray(chain.token)[row, 1:].tolist()
    found = prefixes(tree, row)
    assert found[1] == (first,)  # the likeliest of all
    assert (first, second) in found


# The laws of drafts, by counts.

ROWS = 20_000
IDS = np.array([4, 1, 3], np.int32)  # of 5 tokens
Q = np.array([[0.5, 0.3, 0.2], [0.2, 0.1, 0.7]])


def setting(rows, temperature, top_k=0, top_p=1.0):
  one = jnp.ones(rows)
  return types.Sampling(temperature * one, jnp.int32(top_k * one), top_p * one)


def laws(rows, q=Q):
  with np.errstate(divide='ignore'):
    logits = jnp.broadcast_to(jnp.log(q.astype(np.float32)), (rows, 2, 3))
  return marginals.Marginals(
    logits,
    jnp.asarray(IDS),
    jnp.zeros(rows, jnp.int32),
    jnp.full(rows, 5, jnp.int32),
    5,
  )


def drawn(strategy, slots, q=Q, **sampling):
  sampling = {'temperature': 1.0} | sampling
  noise = sampling_lib.request_noise(0, jnp.arange(ROWS))
  return jax.device_get(
    jax.jit(functools.partial(strategy, slots=slots))(
      laws(ROWS, q), setting(ROWS, **sampling), noise
    )
  )


def agree(token, law):
  """Returns the p-value of tokens [B, N] under a law {tokens: chance}."""
  seen, counts = np.unique(token, axis=0, return_counts=True)
  counts = dict(zip(map(tuple, seen.tolist()), counts.tolist()))
  law = {key: chance for key, chance in law.items() if chance > 0}
  assert set(counts) <= set(law)  # nothing that has no chance
  chance = np.array(list(law.values()))
  got = np.array([counts.get(key, 0) for key in law])
  return scipy.stats.chisquare(got, chance / chance.sum() * len(token)).pvalue


def product_law(q, repeat=1):
  """Returns {tokens: chance} of so many independent chains."""
  law = {}
  for tokens in itertools.product(range(3), repeat=2 * repeat):
    key = tuple(int(IDS[i]) for i in tokens)
    law[key] = np.prod([q[n % 2, i] for n, i in enumerate(tokens)])
  return law


def test_a_sampled_chain_has_the_law_that_it_records():
  tree = drawn(strategies.Chain(mode='sample', keep_q=True), 3)
  assert agree(tree.token[:, 1:], product_law(Q)) > 1e-4
  wrong = np.array([[0.5, 0.3, 0.2], [0.2, 0.15, 0.65]])
  assert agree(tree.token[:, 1:], product_law(wrong)) < 1e-4
  q = np.exp(tree.log_q[:, 1:])
  np.testing.assert_allclose(
    q[..., IDS], np.broadcast_to(Q, (ROWS, 2, 3)), 1e-5
  )
  assert not q[..., [0, 2]].any()  # tokens that cannot be drafted


def test_q_is_the_law_after_temperature_and_filters():
  """Of the drafter if it has a temperature of its own, else the verifier's."""
  sample = functools.partial(strategies.Chain, mode='sample', keep_q=True)
  for strategy, sampling, wanted in (
    (
      sample(),
      {'temperature': 0.5, 'top_k': 2},
      [[25 / 34, 9 / 34, 0], [4 / 53, 0, 49 / 53]],
    ),
    (sample(), {'top_p': 0.6}, [[0.625, 0.375, 0], [0, 0, 1]]),
    (
      sample(temperature=0.5),
      {'temperature': 1.3, 'top_p': 0.1},
      [[25 / 38, 9 / 38, 4 / 38], [4 / 54, 1 / 54, 49 / 54]],
    ),
    (sample(temperature=1.0, top_k=1), {}, [[1, 0, 0], [0, 0, 1]]),
  ):
    tree, wanted = drawn(strategy, 3, **sampling), np.array(wanted)
    q = np.exp(tree.log_q[:, 1:])[..., IDS]
    np.testing.assert_allclose(q, np.broadcast_to(wanted, q.shape), 1e-5)
    if wanted.max(1).min() == 1:
      assert (tree.token[:, 1:] == IDS[wanted.argmax(1)]).all()
    else:
      assert agree(tree.token[:, 1:], product_law(wanted)) > 1e-4


def test_chains_are_independent():
  tree = drawn(
    strategies.Drafts(drafts=2, arrangement='chains', keep_q=True), 5
  )
  assert agree(tree.token[:, 1:], product_law(Q, 2)) > 1e-4
  np.testing.assert_allclose(
    np.exp(tree.log_q[:, 1:])[..., IDS],
    np.broadcast_to(np.tile(Q, (2, 1)), (ROWS, 4, 3)),
    1e-5,
  )


def test_distinct_first_tokens_come_in_the_order_of_draws():
  tree = drawn(
    strategies.Drafts(drafts=2, arrangement='distinct', keep_q=True), 5
  )
  law = product_law(Q, 2)
  for key in law:
    first, _, second, _ = key
    left = 1 - Q[0, IDS.tolist().index(first)]
    law[key] = 0 if first == second else law[key] / left
  assert agree(tree.token[:, 1:], law) > 1e-4
  # Negative control: the same siblings in another order.
  other = tree.token[:, [3, 4, 1, 2]]
  assert agree(other, law) < 1e-4


def test_where_tokens_run_out_drafts_are_not_valid():
  q = np.array([[0.5, 0.5, 0.0], [0.2, 0.1, 0.7]])
  strategy = strategies.Drafts(drafts=3, arrangement='distinct', keep_q=True)
  tree = drawn(strategy, 7, q)
  np.testing.assert_array_equal(tree.valid, [[True] * 5 + [False] * 2] * ROWS)
  assert (tree.token[:, 1] != tree.token[:, 3]).all()


def test_merged_drafts_are_the_same_drafts():
  apart = drawn(strategies.Drafts(drafts=2, arrangement='chains'), 5)
  tree = drawn(strategies.Drafts(drafts=2), 5)
  for row in range(200):
    chains = apart.token[row, 1:].reshape(2, 2).tolist()
    wanted = {tuple(c[:n]) for c in chains for n in range(3)}
    assert set(prefixes(tree, row)) == wanted
