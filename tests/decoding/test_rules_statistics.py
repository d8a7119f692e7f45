"""The rules as the engine calls them, with real strategies, by their counts.

Requests in the tens of thousands decode three tokens from a law that depends
on the whole prefix, in as many cycles as that takes: drafts, coins and bonus
are all drawn by the package's own code.
"""

import functools
from typing import NamedTuple
from unittest import mock

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_distributions as laws
import scipy.stats

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.decoding.rules import block_verification
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import strategies

ROWS, VOCAB, GAMMA, COUNT, START = 20_000, 3, 2, 3, 5
SURE, RARE = 1e-9, 1e-3  # p-values: of what is lossy, and of what is not

SAMPLE = strategies.Chain(mode='sample', keep_q=True)
CHAINS = strategies.Drafts(drafts=2, arrangement='chains', keep_q=True)
PAIRS = {
  'sample, rejection': (SAMPLE, rejection.Rejection()),
  'sample, block': (SAMPLE, block_verification.BlockVerification()),
  'chains, rejection': (CHAINS, rejection.Rejection()),
  'chains, selected': (
    CHAINS,
    accept.SelfSelection(rejection.GreedyAcceptance()),
  ),
  'distinct, rejection': (
    strategies.Drafts(drafts=2, arrangement='distinct', keep_q=True),
    rejection.RejectionWithoutReplacement(),
  ),
  'merged, greedy acceptance': (
    strategies.Drafts(drafts=2),
    rejection.GreedyAcceptance(),
  ),
}


class Faults(NamedTuple):
  """What to break, given as arrays so that nothing compiles again."""

  purposes: tuple[int, ...] = (0, 1, 2, 3)  # of draft, coins, bonus, distinct
  step: int = 1  # 0 draws the same in all cycles

  def patched(self):
    """Returns the context in which `fresh` has the faults."""
    fresh = sampling_lib.fresh
    return mock.patch.object(
      sampling_lib,
      'fresh',
      lambda noise, purpose, length: fresh(
        noise, self.purposes[purpose], self.step * length
      ),
    )


def decoder(strategy, rule):
  """Returns (p, q, sampling, requests, faults) -> texts [B, 3].

  p [P, V] and q [P, G, V] hold logits for each prefix.
  """
  slots = strategy.slots(GAMMA)

  def decode(p, q, sampling, requests, faults):
    rows = jnp.arange(requests.shape[0])
    noise = sampling_lib.request_noise(0, requests)
    vocab = p.shape[1]

    def cycle(_, carry):
      text, count, node = carry
      length = START + count
      with faults.patched():
        tree = strategy(
          marginals.Marginals(
            q[node], jnp.arange(vocab), jnp.zeros_like(node), length, vocab
          ),
          sampling,
          noise,
          slots,
        )
        nodes = jnp.zeros_like(tree.token).at[:, 0].set(node)
        for slot in range(1, slots):
          above = nodes[rows, tree.parent[:, slot]]
          nodes = nodes.at[:, slot].set(above * vocab + 1 + tree.token[:, slot])
        verdict = rule(tree, p[nodes], length, sampling, noise, GAMMA)
      for d in range(GAMMA + 1):
        drafted = tree.token[rows, verdict.path[:, min(d + 1, GAMMA)]]
        token = jnp.where(d < verdict.count, drafted, verdict.bonus)
        emit = (d <= verdict.count) & (count < COUNT)
        text = text.at[rows, jnp.where(emit, count, COUNT)].set(
          token, mode='drop'
        )
        node = jnp.where(emit, node * vocab + 1 + token, node)
        count += emit
      return text, count, node

    zero = jnp.zeros_like(rows)
    text = jnp.full((rows.size, COUNT), -1)
    return lax.fori_loop(0, COUNT, cycle, (text, zero, zero))[0]

  return jax.jit(decode)


cached = functools.cache(lambda pair: decoder(*PAIRS[pair]))


def decode(pair, p, q, setting=None, requests=np.arange(ROWS), faults=Faults()):
  """Returns the texts [B, 3] of laws p [P, V] and q [P, G, V]."""
  return np.asarray(
    cached(pair)(
      logits(p),
      logits(q),
      laws.setting(ROWS, **(setting or {})),
      requests,
      faults,
    )
  )


def logits(law):
  with np.errstate(divide='ignore'):
    return np.log(law).astype(np.float32)


def tables(case, vocab=VOCAB):
  """Returns p [P, V] and q [P, G, V]."""
  p = laws.random_law(11, vocab, COUNT + GAMMA)
  rng = np.random.default_rng(12)
  q = rng.dirichlet(np.ones(vocab), size=(len(p), GAMMA))
  if case == 'filtered':  # at one slot the first, at one the second
    q *= 1 - np.eye(vocab)[:GAMMA]
    q /= q.sum(-1, keepdims=True)
  return p, q


CASES = {
  'plain': {},
  # Filters, and a drafter that lacks tokens.
  'filtered': {'temperature': 0.8, 'top_k': 2, 'top_p': 0.9},
}


def p_value(text, law):
  """Returns the p-value of texts [B, 3] under a law [P, V]."""
  vocab = law.shape[1]
  cell = np.ravel_multi_index(np.asarray(text).T, (vocab,) * COUNT)
  counts = np.bincount(cell, minlength=vocab**COUNT)
  chance = laws.sequences(law[: laws.level(vocab, COUNT).start])
  assert not counts[chance == 0].any()
  some = chance > 0
  wanted = chance[some] / chance[some].sum() * len(text)
  return scipy.stats.chisquare(counts[some], wanted).pvalue


def filtered(p, setting):
  got = sampling_lib.log_probabilities(
    jnp.asarray(logits(p))[None], laws.setting(1, **setting)
  )
  return np.exp(np.asarray(got[0], np.float64))


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('pair', PAIRS)
def test_texts_have_the_law(pair, case):
  (p, q), setting = tables(case), CASES[case]
  text = decode(pair, p, q, setting)
  assert p_value(text, filtered(p, setting)) > RARE
  if case == 'plain':  # negative control: a law that is slightly another
    assert p_value(text, filtered(p, {'temperature': 0.9})) < SURE


@pytest.mark.parametrize('pair', PAIRS)
def test_temperature_zero_emits_the_argmax_path(pair):
  p, q = tables('filtered')
  node, wanted = 0, []
  for _ in range(COUNT):
    wanted.append(int(p[node].argmax()))
    node = node * VOCAB + 1 + wanted[-1]
  text = decode(pair, p, q, {'temperature': 0.0})
  assert (text == wanted).all()


@pytest.mark.parametrize('pair', ['sample, block', 'chains, rejection'])
def test_a_text_is_its_requests_not_its_rows(pair):
  p, q = tables('plain')
  requests = np.arange(ROWS)
  text = decode(pair, p, q)
  again = decode(pair, p, q, requests=requests[::-1].copy())
  np.testing.assert_array_equal(text, again[::-1])
  assert (text != again).any()


# Negative controls. That an argmax draft with its q is lossy, and the like,
# is told without sampling in `test_rules_controls.py`.


@pytest.mark.parametrize('purposes', [(0, 0, 2, 3), (0, 1, 0, 3), (0, 1, 1, 3)])
def test_draws_that_share_noise_are_noticed(purposes):
  """Coins or bonus from the noise of the draft, or bonus from the coins'."""
  p = laws.same_everywhere([[0.1, 0.64, 0.26]] * (COUNT + GAMMA))
  q = np.tile([0.6, 0.39, 0.01], (len(p), GAMMA, 1))
  right = decode('sample, rejection', p, q)
  assert p_value(right, p) > RARE
  wrong = decode('sample, rejection', p, q, faults=Faults(purposes))
  assert p_value(wrong, p) < SURE


@pytest.mark.parametrize('pair', PAIRS)
def test_draws_that_are_the_same_in_all_cycles_are_noticed(pair):
  p, q = tables('plain')
  wrong = decode(pair, p, q, faults=Faults(step=0))
  assert p_value(wrong, p) < SURE


# The rule is its walk, with the coins of `uniform` and the bonus of `draw`.


def by_hand(rule, tree, p, length, noise):
  coins = rejection.uniform(noise, length, tree.token.shape[1])
  if isinstance(rule, accept.SelfSelection):
    sampling = laws.setting(tree.token.shape[0])
    chance = accept.chances(tree, jnp.log(p), sampling)
    kept = accept.best_path(tree, chance, GAMMA)
    tree, rule = tree.replace(valid=tree.valid & kept), rule.rule
  deepest, law, _ = rule.walk(tree, p, coins)
  return deepest, law, rejection.draw(law, noise, length)


@pytest.mark.parametrize(
  'pair',
  [
    'sample, block',
    'chains, rejection',
    'chains, selected',
  ],
)
def test_a_rule_is_its_walk(pair):
  rows, (strategy, rule) = 300, PAIRS[pair]
  drafts = laws.drawn(
    tables('plain')[1][:4, 0], GAMMA, 2 if strategy is CHAINS else 1
  )
  pick = np.random.default_rng(0).integers(0, len(drafts.weight), rows)
  drafts = laws.Drafts(
    drafts.weight[pick],
    drafts.token[pick],
    drafts.log_q[pick].astype(np.float32),
  )
  tree = drafts.tree() if strategy is CHAINS else drafts.chain()
  p = tables('plain')[0].astype(np.float32)[laws.nodes(tree, VOCAB)]
  length = jnp.arange(rows) % 7 + 3
  noise = sampling_lib.request_noise(0, jnp.arange(rows))

  @jax.jit
  def both(tree, p):
    setting = laws.setting(rows)
    verdict = rule(tree, jnp.log(p), length, setting, noise, GAMMA)
    return verdict, by_hand(rule, tree, p, length, noise)

  verdict, (deepest, law, bonus) = jax.device_get(both(tree, p))
  line = tree_lib.verdict(tree, deepest, bonus, GAMMA)
  for one, other in zip(jax.tree.leaves(verdict), jax.tree.leaves(line)):
    np.testing.assert_array_equal(one, other)
  assert set(verdict.count) == {0, 1, 2}
  np.testing.assert_allclose(law.sum(1), 1, rtol=1e-5)
  assert (law[np.arange(rows), bonus] > 0).all()


# The coins.


def test_draws_are_fresh_for_each_request_cycle_and_purpose():
  requests, lengths = np.divmod(np.arange(24), 6)
  noise = sampling_lib.request_noise(0, jnp.asarray(requests))
  s = sampling_lib
  purposes = (s.DRAFT, s.ACCEPT, s.RESIDUAL, s.DISTINCT)
  keys = np.concatenate(
    [
      jax.random.key_data(sampling_lib.fresh(noise, purpose, lengths))
      for purpose in purposes
    ]
  )
  # Nor are they the keys of the noise that is keyed by position.
  positions = jax.vmap(jax.random.fold_in)(noise.key, lengths)
  keys = np.concatenate([keys, jax.random.key_data(positions)])
  assert len(np.unique(keys, axis=0)) == 5 * 24
  coins = np.asarray(rejection.uniform(noise, jnp.asarray(lengths), 8))
  assert len(np.unique(coins)) == coins.size
  assert ((0 <= coins) & (coins < 1)).all()
  # The row plays no part.
  order = np.random.default_rng(0).permutation(24)
  again = rejection.uniform(
    sampling_lib.request_noise(0, jnp.asarray(requests[order])),
    jnp.asarray(lengths[order]),
    8,
  )
  np.testing.assert_array_equal(again, coins[order])


def test_coins_are_uniform_and_independent_of_drafts():
  noise = sampling_lib.request_noise(0, jnp.arange(ROWS))
  length = jnp.full(ROWS, START)
  coins = np.asarray(rejection.uniform(noise, length, 3))
  own = np.asarray(marginals.own_noise(noise, length, (3, 4))).reshape(ROWS, -1)
  after = np.asarray(rejection.uniform(noise, length + 1, 3))
  g = sampling_lib.gumbel(noise, length[:, None], 3)[:, 0]
  for column in coins.T:
    assert scipy.stats.kstest(column, 'uniform').pvalue > RARE
  every = np.concatenate([coins, own, after, np.asarray(g)], axis=1)
  correlation = np.corrcoef(every.T) - np.eye(every.shape[1])
  assert np.abs(correlation).max() < 4.5 / np.sqrt(ROWS)


# Residuals of nothing.


def test_an_empty_residual_falls_back_to_p():
  p = jnp.array([0.1, 0.2, 0.7])
  np.testing.assert_array_equal(rejection.residual(p, p + 1e-6, p), p)
  # q rounded up: the largest coin rejects, and max(p - q, 0) is 0 everywhere.
  tree = tree_lib.chain(
    jnp.array([[0, 2, 2]]),
    jnp.ones((1, 3), bool),
    jnp.broadcast_to(jnp.log(p) + 2e-6, (1, 3, 3)),
  )
  laws_of_p = jnp.broadcast_to(p, (1, 3, 3))
  coins = jnp.full((1, 3), np.float32(1) - np.float32(2**-24))
  found = jax.jit(rejection.Rejection().walk)(tree, laws_of_p, coins)
  assert found.deepest.tolist() == [0] and found.chance[0, 1] < 1
  np.testing.assert_array_equal(found.bonus[0], p)
  block = block_verification.BlockVerification()
  count, law, _ = jax.jit(block.walk)(tree, laws_of_p, coins)
  assert count.tolist() == [0]
  np.testing.assert_array_equal(law[0], p)
