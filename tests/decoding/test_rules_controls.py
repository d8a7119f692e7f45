"""Negative controls: what is lossy is found to be, by the sums that pass rules.

Every pair of drafts and rule that the project calls lossy is built by hand,
on an instance chosen for it, and differs from the verifier's law by a total
variation of at least 0.04. Where it is cheap the same construction with its
error mended follows, and passes: so it is the error that is seen.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_distributions as laws

from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import prefix_trees

POINT = rejection.GreedyAcceptance().walk
DRAWN = rejection.Rejection().walk
DISTINCT = rejection.RejectionWithoutReplacement().walk

pytestmark = pytest.mark.filterwarnings('ignore:scatter inputs')


@pytest.fixture(scope='module', autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def tell():
  """Asserts that an error is seen; `pytest -rA` shows how large it is."""

  def check(tv):
    print(f'total variation {tv:.3f}')
    assert tv >= laws.LOSSY

  return check


def error(judge, drafts, tree, table):
  """Returns the total variation from plain sampling."""
  return laws.error(drafts.weight, laws.by_coins(judge, tree, table), table)


# Selected drafts.


def test_a_selected_draft_under_min_p_over_q(tell):
  """p = .6/.4, q = .5/.5, the better of two by Eq. 7: emits .8, not .6."""
  p = laws.same_everywhere([[0.6, 0.4]] * 2)
  q = laws.same_everywhere([[0.5, 0.5]])
  both = laws.drawn(q, 1, 2)
  blocks = laws.by_coins(laws.selected(DRAWN), both.tree(), p)
  first = (both.weight @ laws.emitted(blocks, p)).reshape(2, 2).sum(1)
  np.testing.assert_allclose(first, [0.8, 0.2])
  tell(error(laws.selected(DRAWN), both, both.tree(), p))
  # Nor is it refused by accident: it is lossless under the rules that it has.
  assert error(laws.selected(POINT), both, both.tree(), p) < laws.EXACT


@pytest.mark.parametrize('judge', [DRAWN, laws.block], ids=['each', 'block'])
def test_a_draft_selected_by_q_under_min_p_over_q(tell, judge):
  q, table = laws.random_law(0, 3, 2), laws.random_law(1, 3, 3)
  both = laws.drawn(q, 2, 2)
  score = np.take_along_axis(both.log_q, both.token[..., None], 3).sum((2, 3))
  best = both.keep(score.argmax(1)[:, None])
  tell(error(judge, best, best.chain(), table))
  first = both.keep(np.zeros_like(best.token[:, :1, 0]))
  assert error(judge, first, first.chain(), table) < laws.EXACT


# Siblings that were not drawn as the rule believes.


def siblings_laws():
  return (
    laws.same_everywhere([[0.1, 0.5, 0.4]] * 2),
    laws.same_everywhere([[0.6, 0.3, 0.1]]),
  )


def test_merged_duplicates_under_the_rule_with_replacement(tell):
  p, q = siblings_laws()
  both = laws.drawn(q, 1, 2)
  tree = jax.jit(prefix_trees.merged, static_argnums=2)(
    both.token.astype(np.int32), np.zeros(9, np.int32), 3
  )
  tree = tree.replace(log_q=both.tree().log_q)
  tell(error(DRAWN, both, tree, p))
  assert error(DRAWN, both, both.tree(), p) < laws.EXACT
  assert error(POINT, both, tree, p) < laws.EXACT


def test_duplicates_kept_under_the_rule_without_replacement(tell):
  p, q = siblings_laws()
  both = laws.drawn(q, 1, 2)
  tell(error(DISTINCT, both, both.tree(), p))
  both = laws.drawn_distinct(q, 1, 2)
  assert error(DISTINCT, both, both.tree(), p) < laws.EXACT


@pytest.mark.parametrize('judge', [DRAWN, DISTINCT], ids=['with', 'without'])
def test_siblings_sorted_by_q(tell, judge):
  p = laws.same_everywhere([[0.2, 0.3, 0.5]] * 2)
  q = laws.same_everywhere([[0.6, 0.3, 0.1]])
  draw = laws.drawn if judge is DRAWN else laws.drawn_distinct
  both = draw(q, 1, 2)
  order = np.argsort(-q[0][both.token[..., 0]], axis=1, kind='stable')
  tell(error(judge, both, both.keep(order).tree(), p))
  assert error(judge, both, both.tree(), p) < laws.EXACT


# Drafts whose law is not the recorded one.


@pytest.mark.parametrize('judge', [DRAWN, laws.block], ids=['each', 'block'])
@pytest.mark.parametrize('draft', ['argmax', 'beam'])
def test_a_searched_draft_with_its_marginal_q(tell, draft, judge):
  rng = np.random.default_rng(2)
  q = laws.same_everywhere(rng.dirichlet(np.ones(3), size=2))
  table = laws.random_law(1, 3, 3)
  every = laws.drawn(q, 2)
  if draft == 'argmax':
    score = every.weight
  else:  # DiffuSpec's path: half marginals, half a causal model's
    other = laws.random_law(3, 3, 2)
    score = every.weight * laws.drawn(other, 2).weight
  found = laws.Drafts(
    (np.arange(len(score)) == score.argmax()) * 1.0, every.token, every.log_q
  )
  tell(error(judge, found, found.chain(), table))
  assert error(POINT, found, found.chain(), table) < laws.EXACT


@pytest.mark.parametrize('judge', [DRAWN, laws.block], ids=['each', 'block'])
def test_an_any_order_draft_with_recorded_q(tell, judge):
  """The second slot is revealed first, and the first given the second."""
  q = {
    'first': np.array([[0.9, 0.1], [0.1, 0.9]]),  # given the second
    'second': np.array([0.5, 0.5]),
  }
  every = laws.drawn(laws.same_everywhere([[0.5, 0.5]] * 2), 2)
  first, second = every.token[:, 0].T
  weight = q['second'][second] * q['first'][second, first]
  law = np.stack(
    [q['first'][second], np.broadcast_to(q['second'], (4, 2))], axis=1
  )
  drafts = laws.Drafts(weight, every.token, np.log(law)[:, None])
  table = laws.same_everywhere([[0.5, 0.5]] * 3)
  tell(error(judge, drafts, drafts.chain(), table))
  # With the law of each token given the ones before it there is no error.
  joint = weight.reshape(2, 2)
  law = np.stack(
    [np.broadcast_to(joint.sum(1), (4, 2)), joint[first] * 2], axis=1
  )
  mended = laws.Drafts(weight, every.token, np.log(law)[:, None])
  assert error(judge, mended, mended.chain(), table) < laws.EXACT


def test_a_draft_of_another_temperature_than_its_q(tell):
  q, table = laws.random_law(0, 3, 2), laws.random_law(1, 3, 3)
  sharp = q**3 / (q**3).sum(1, keepdims=True)
  drafts = laws.Drafts(
    laws.drawn(sharp, 2).weight,
    laws.drawn(q, 2).token,
    laws.drawn(q, 2).log_q,
  )
  tell(error(DRAWN, drafts, drafts.chain(), table))


# Rule M with other noise than its own.


def test_one_noise_for_each_chain_and_the_longest_wins(tell):
  """Two chains, each matched with draws of its own."""
  p, q = laws.random_law(0, 2, 3), laws.random_law(3, 2, 2)
  drafts = laws.drawn(q, 2, 2)
  y = np.array(list(itertools.product((0, 1), repeat=6))).reshape(-1, 2, 3)
  draft, draw = np.divmod(np.arange(len(drafts.weight) * len(y)), len(y))
  token = np.pad(drafts.token[draft], ((0, 0), (0, 0), (1, 0)))
  rows = token.reshape(-1, 3).astype(np.int32)
  tree = laws.chain(rows, np.ones(rows.shape, bool))
  node = laws.nodes(tree, 2)
  said = y[draw].reshape(-1, 3)
  found = laws.judged(laws.match, tree, p[node], said.astype(np.int32))
  weight = p[node, said].prod(1).reshape(-1, 2).prod(1)
  longest = 2 * np.arange(len(draft)) + found.deepest.reshape(-1, 2).argmax(1)
  blocks = laws.total(
    jax.tree.map(lambda x: x[longest], found), node[longest], weight, draft, p
  )
  tell(laws.error(drafts.weight, blocks, p))
  # One draw for each prefix of both chains is rule M.
  assert (
    laws.error(drafts.weight, laws.by_tokens(laws.match, drafts.tree(), p), p)
    < laws.EXACT
  )


def test_a_draft_that_peeks_at_noise_that_is_redrawn(tell):
  """It knows y_1 and y_2, and proposes the right y_1 only if y_2 is 0."""
  p = laws.same_everywhere([[0.5, 0.5]] * 2)
  y = np.array(list(itertools.product((0, 1), repeat=2)), np.int32)
  token = np.stack([np.zeros(4), y[:, 0] ^ y[:, 1]], axis=1).astype(np.int32)
  tree = laws.chain(token, np.ones(token.shape, bool))
  found = laws.judged(laws.match, tree, p[laws.nodes(tree, 2)], y)
  np.testing.assert_array_equal(found.deepest, y[:, 1] == 0)
  weight = p[0, y[:, 0]] * p[1 + y[:, 0], y[:, 1]]
  # A block of one token is followed by a new draw ..
  blocks = laws.total(found, laws.nodes(tree, 2), weight, np.zeros(4, int), p)
  tell(laws.error(np.ones(1), blocks, p))
  # .. but if the noise is keyed by position, by y_2 after all.
  np.testing.assert_array_equal(
    found.bonus.argmax(1), np.where(y[:, 1] == 0, y[:, 1], y[:, 0])
  )
  np.testing.assert_allclose(weight, laws.sequences(p))


# Other ways to judge one chain.


def chain_judge(verdict):
  """Returns the judge of chains that asks `verdict` for each token.

  verdict(p, q, token) -> (chance of acceptance, law of the token that is
  emitted otherwise), over any leading axes.
  """

  def judge(tree, p, coins):
    q = jnp.exp(tree.log_q[:, 1:])
    chance, other = verdict(p[:, :-1], q, tree.token[:, 1:, None])
    chance = jnp.where(tree.valid[:, 1:], chance[..., 0], 0)
    count = jnp.cumprod(coins[:, 1:] < chance, axis=1).sum(1)
    # After the last token, which padding follows, the bonus is drawn from p.
    ended = ~jnp.pad(tree.valid[:, 1:], ((0, 0), (0, 1)))
    other = jnp.where(
      ended[..., None], p, jnp.pad(other, ((0, 0), (0, 1), (0, 0)))
    )
    chance = jnp.where(tree.valid[:, 1:], chance, -1)
    return rejection.Walk(
      count,
      other[jnp.arange(len(count)), count],
      jnp.pad(chance, ((0, 0), (1, 0)), constant_values=-1),
    )

  return judge


def at(law, token):
  return jnp.take_along_axis(law, token, axis=-1)


def argmax_match(p, q, token):
  return p.argmax(-1, keepdims=True) == token, p


def replaced_from_p(p, q, token):
  return jnp.minimum(1, at(p, token) / at(q, token)), p


def typical(p, q, token):
  """Medusa's: p(x) > min(epsilon, delta exp(-H(p)))."""
  entropy = -(p * jnp.log(p)).sum(-1, keepdims=True)
  return at(p, token) > jnp.minimum(0.3, 0.55 * jnp.exp(-entropy)), p


def standard(p, q, token):
  chance = jnp.minimum(1, at(p, token) / at(q, token))
  return chance, rejection.residual(p, q, p)


@pytest.mark.parametrize('verdict', [argmax_match, replaced_from_p, typical])
def test_other_ways_to_judge(tell, verdict):
  drafts = laws.drawn(laws.random_law(0, 3, 2), 2)
  table = laws.random_law(1, 3, 3)
  tell(error(chain_judge(verdict), drafts, drafts.chain(), table))


def test_the_same_judge_with_the_standard_verdict():
  drafts = laws.drawn(laws.random_law(0, 3, 2), 2)
  table = laws.random_law(1, 3, 3)
  judge = chain_judge(standard)
  assert error(judge, drafts, drafts.chain(), table) < laws.EXACT


# Noise that should have been drawn afresh.


def two_cycles(p, q, reuse):
  """Returns the law [V^2] of two tokens under block verification.

  Where the draft's noise is keyed by position a first cycle that drafts x_1
  and x_2 and rejects x_1 is followed by one that drafts x_2 again.

  Args:
    p: the law of the verifier, of four tokens.
    q: [V] the law of each drafted token.
    reuse: whether x_2 is drafted again, or anew.
  """
  vocab = len(q)
  drafts = laws.drawn(laws.same_everywhere([q] * 2), 2)
  blocks = laws.by_coins(laws.block, drafts.chain(), p)
  cycles = []  # law [N, V] of the second token, after each first one
  for first in range(vocab):
    under = laws.below(p, first)
    cycle = laws.by_coins(laws.block, drafts.chain(), under)
    cycle = laws.emitted(cycle, under)
    cycles.append(cycle.reshape(len(cycle), vocab, -1).sum(2))
  law = 0
  for row, (_, second) in enumerate(drafts.token[:, 0]):
    again = drafts.token[:, 0, 0] == second if reuse else slice(None)
    weight = drafts.weight[again] / drafts.weight[again].sum()
    after = p.copy()
    after[laws.level(vocab, 1)] = [weight @ cycle[again] for cycle in cycles]
    law = law + drafts.weight[row] * laws.emitted(blocks[row], after)
  return law.reshape(vocab**2, -1).sum(1)


def test_block_verification_with_noise_that_is_reused(tell):
  p, q = laws.random_law(67, 2, 4), np.array([0.73, 0.27])
  wanted = laws.sequences(p).reshape(4, -1).sum(1)
  tell(laws.distance(two_cycles(p, q, reuse=True), wanted))
  assert laws.distance(two_cycles(p, q, reuse=False), wanted) < laws.EXACT


def test_a_residual_drawn_from_the_noise_of_the_draft(tell):
  """x = argmax(log q + g) is rejected, then y = argmax(log residual + g).

  Here only x = 0 can be rejected. In terms of exponential waiting times of
  rates q, given that 0 came first at time s those of 1 and 2 are s plus fresh
  ones, and they race with rates r instead: 1 wins with the chance below.
  """
  p, q = np.array([0.1, 0.64, 0.26]), np.array([0.6, 0.39, 0.01])
  drafts = laws.drawn(laws.same_everywhere([q]), 1)
  table = laws.same_everywhere([p, p])
  blocks = laws.by_coins(DRAWN, drafts.chain(), table)
  assert laws.error(drafts.weight, blocks, table) < laws.EXACT
  lost = blocks[0, 0].sum()  # of the draft x = 0
  r = blocks[0, 0] / lost
  np.testing.assert_allclose(r, [0, 0.5, 0.5])
  lag = q[1] / r[1] - q[2] / r[2]
  wins = r[1] / (1 + r[2] * lag)
  # The same by a hundred thousand draws.
  g = np.random.default_rng(0).gumbel(size=(100_000, 3))
  with np.errstate(divide='ignore'):
    x, y = (np.log(q) + g).argmax(1), (np.log(r) + g).argmax(1)
  np.testing.assert_allclose((y[x == 0] == 1).mean(), wins, atol=0.01)
  blocks[0, 0] = lost * np.array([0, wins, 1 - wins])
  tell(laws.error(drafts.weight, blocks, table))
