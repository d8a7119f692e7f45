"""Which pairs are refused, the score of Eq. 7, and a tree against one path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_distributions as laws

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding.rules import accept
from specdiff_jax.decoding.rules import block_verification
from specdiff_jax.decoding.rules import rejection


@functools.partial(jax.jit, static_argnums=2)
def best_path(tree, logits, max_depth):
  sampling = laws.setting(tree.token.shape[0])
  return accept.best_path(
    tree, accept.chances(tree, logits, sampling), max_depth
  )


ANY = set(protocols.PROPOSALS)
DRAWN = {'iid', 'autoregressive'}

# Rule: the proposals it is lossless for, and whether trees may be proposed.
RULES = {
  accept.SampleAndMatch(): (ANY, True),
  accept.SelfSelection(): (ANY, True),
  accept.SelfSelection(rejection.GreedyAcceptance()): (ANY, True),
  rejection.GreedyAcceptance(): (ANY, True),
  rejection.Rejection(): (DRAWN, True),
  rejection.RejectionWithoutReplacement(): ({'distinct'}, True),
  block_verification.BlockVerification(): (DRAWN, False),
}


class Drafter:
  """As much of a drafter as `check` looks at."""

  def __init__(self, proposal, chain):
    self.proposal, self.chain = proposal, chain


@pytest.mark.parametrize('chain', [True, False], ids=['chain', 'tree'])
@pytest.mark.parametrize('proposal', sorted(protocols.PROPOSALS))
@pytest.mark.parametrize('rule', RULES, ids=str)
def test_pairs(rule, proposal, chain):
  allowed, trees = RULES[rule]
  drafter = Drafter(proposal, chain)
  if proposal in allowed and (chain or trees):
    accept.check(drafter, rule)
    return
  with pytest.raises(errors.InputError) as refused:
    accept.check(drafter, rule)
  message = str(refused.value)
  assert type(rule).__name__ in message and 'Use' in message
  assert 'SampleAndMatch' in message  # what to use
  if proposal not in allowed:  # and why
    assert repr(proposal) in message
    assert protocols.PROPOSALS[proposal] in message
    assert all(repr(needed) in message for needed in allowed)
  else:
    assert 'chain' in message


@pytest.mark.parametrize('rule', [r for r in RULES if r.reads_q], ids=str)
def test_rules_that_read_q_do_not_follow_a_selection(rule):
  with pytest.raises(errors.InputError, match='selected') as refused:
    accept.SelfSelection(rule)
  assert type(rule).__name__ in str(refused.value)
  assert 'Use SampleAndMatch' in str(refused.value)


@pytest.mark.parametrize('rule', [r for r in RULES if r.reads_q], ids=str)
def test_rules_that_read_q_want_log_q(rule):
  tree = tree_lib.chain(jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool))
  with pytest.raises(errors.InputError, match='keep_q'):
    jax.eval_shape(
      lambda: rule(
        tree,
        jnp.zeros((1, 3, 4)),
        jnp.ones(1, jnp.int32),
        laws.setting(1),
        sampling_lib.request_noise(0, jnp.arange(1)),
        2,
      )
    )


def random_trees(rng, rows, slots, vocab):
  """Returns trees whose parents, tokens and holes are all random."""
  parent, depth = np.zeros((2, rows, slots), np.int32)
  for i in range(1, slots):
    parent[:, i] = rng.integers(0, i, rows)
    depth[:, i] = depth[np.arange(rows), parent[:, i]] + 1
  token = rng.integers(0, vocab, (rows, slots)).astype(np.int32)
  valid = rng.random((rows, slots)) < 0.9
  valid[:, 0] = True
  return types.DraftTree(token, parent, depth, valid)


def line_of(tree, row, slot):
  line = [slot]
  while line[-1]:
    line.append(int(tree.parent[row, line[-1]]))
  return line[::-1]


def brute_best(tree, p, row):
  """Returns the slots of the path with the largest S(x), Eq. 7."""
  best, found = 0.0, [0]
  for slot in range(tree.token.shape[1]):
    line = line_of(tree, row, slot)
    if not tree.valid[row, line].all():
      continue
    steps = [
      p[row, above, tree.token[row, below]]
      for above, below in zip(line, line[1:])
    ]
    score = sum(np.prod(steps[: m + 1]) for m in range(len(steps)))
    if score > best:
      best, found = score, line
  return found


@pytest.mark.parametrize('slots, vocab', [(2, 3), (7, 3), (12, 4), (12, 2)])
def test_best_path_is_that_of_brute_force(slots, vocab):
  rng, rows = np.random.default_rng(slots), 150
  tree = random_trees(rng, rows, slots, vocab)
  p = rng.dirichlet(np.ones(vocab), size=(rows, slots)).astype(np.float32)
  got = best_path(tree, np.log(p), slots - 1)
  for row in range(rows):
    wanted = np.isin(np.arange(slots), brute_best(tree, p, row))
    np.testing.assert_array_equal(got[row], wanted)


def test_best_path_by_hand():
  """A likely first token can lose to a path that is likely all along."""
  tree = types.DraftTree(
    token=jnp.array([[0, 1, 2, 1, 1, 2]] * 3),
    parent=jnp.array([[0, 0, 0, 2, 3, 1]] * 3),
    depth=jnp.array([[0, 1, 1, 2, 3, 2]] * 3),
    valid=jnp.ones((3, 6), bool).at[1, 4].set(False).at[2, 2].set(False),
  )
  p = np.full((3, 6, 3), 1e-9)
  p[:, 0, 1], p[:, 0, 2] = 0.55, 0.35  # .55 + .55 * .01
  p[:, 1, 2], p[:, 2, 1], p[:, 3, 1] = 0.01, 0.5, 0.4  # .35 + .175 + .07
  p[..., 0] = 1 - p[..., 1:].sum(-1)
  got = best_path(tree, np.log(p), 3)
  np.testing.assert_array_equal(
    got,
    [
      [True, False, True, True, True, False],
      [True, True, False, False, False, True],  # .525 without the third token
      [True, True, False, False, False, True],
    ],
  )


def test_a_tree_never_accepts_less_than_its_best_path():
  """From one state, with the same drafts and the same y: row by row."""
  rows, drafts, gamma, vocab = 600, 4, 3, 5
  rng = np.random.default_rng(0)
  token = rng.integers(0, vocab, (rows, drafts, gamma)).astype(np.int32)
  tree = jax.device_get(
    jax.jit(tree_lib.chains)(
      token, np.ones(token.shape, bool), np.zeros(rows, np.int32)
    )
  )
  node = laws.nodes(tree, vocab)
  table = np.log(laws.random_law(0, vocab, gamma + 1, 0.5)).astype(np.float32)
  noise = sampling_lib.request_noise(0, jnp.arange(rows))

  @jax.jit
  def both(tree, logits):
    given = (tree, logits, jnp.full(rows, 7), laws.setting(rows), noise, gamma)
    return accept.SampleAndMatch()(*given), accept.SelfSelection()(*given)

  whole, alone = jax.device_get(both(tree, jnp.asarray(table[node])))
  assert (alone.count <= whole.count).all()
  more = alone.count < whole.count
  assert 0.05 < more.mean() < 0.5
  # As far as the path goes both say the same.
  for row in range(rows):
    one, other = (
      tree.token[row, v.path[row, 1 : v.count[row] + 1]].tolist()
      + [int(v.bonus[row])]
      for v in (whole, alone)
    )
    assert one[: len(other)] == other


RULES_WITH_COINS = (
  rejection.GreedyAcceptance(),
  accept.SelfSelection(rejection.GreedyAcceptance()),
  rejection.Rejection(),
  rejection.RejectionWithoutReplacement(),
  block_verification.BlockVerification(),
)


@pytest.mark.parametrize('rule', RULES_WITH_COINS, ids=repr)
@pytest.mark.parametrize('drafted', [1, 2])
def test_a_coin_of_zero_accepts_nothing_that_the_verifier_cannot_draw(
  rule, drafted, monkeypatch
):
  """jax.random.uniform draws 0.0 once in 2**23 coins."""
  monkeypatch.setattr(
    rejection,
    'uniform',
    lambda noise, length, slots: jnp.zeros((length.size, slots)),
  )
  # Rows draft 1 and 1, then 2 and 1, after which the verifier gives 2.
  tree = tree_lib.chain(
    jnp.array([[0, 1, 1], [0, 2, 1]]),
    jnp.arange(3)[None] <= drafted * jnp.ones((2, 1)),
    jnp.log(jnp.broadcast_to(jnp.array([0.2, 0.4, 0.4]), (2, 3, 3))),
  )
  logits = jnp.broadcast_to(jnp.array([-jnp.inf, -jnp.inf, 0.0]), (2, 3, 3))
  verdict = rule(
    tree,
    logits,
    jnp.array([7, 7]),
    laws.setting(2),
    sampling_lib.request_noise(0, jnp.arange(2)),
    2,
  )
  assert verdict.count.tolist() == [0, 1]  # what has a chance is accepted
  assert verdict.bonus.tolist() == [2, 2]
