"""Every rule emits the verifier's law exactly, for the drafts that it allows.

Every draft, every coin and every draw is summed, in float64, over laws that
depend on the whole prefix. What the rules do not allow is in
`test_rules_controls.py`, judged by the same sums.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_distributions as laws

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import prefix_trees

POINT = rejection.GreedyAcceptance().walk
DRAWN = rejection.Rejection().walk
DISTINCT = rejection.RejectionWithoutReplacement().walk

# `verdict` mixes the widths of integers only where 64 bits are switched on.
pytestmark = pytest.mark.filterwarnings('ignore:scatter inputs')


@pytest.fixture(scope='module', autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


# Rules that need no q are lossless for each tree by itself.


def every_chain(vocab, gamma, drafts):
  """Returns the trees of all K chains, equal ones and all."""
  q = laws.random_law(0, vocab, gamma)
  return laws.drawn(q, gamma, drafts).tree()


def every_merged(vocab, gamma, drafts, slots=None):
  """Returns the prefix trees of all K chains, cut to a budget."""
  token = laws.drawn(laws.random_law(0, vocab, gamma), gamma, drafts).token
  return jax.jit(prefix_trees.merged, static_argnums=2)(
    token.astype(np.int32),
    np.zeros(len(token), np.int32),
    slots or drafts * gamma + 1,
  )


def best_first(vocab, gamma, slots):
  """Returns best-first trees of random marginals."""
  rng = np.random.default_rng(vocab)
  log_q = np.log(rng.dirichlet(np.ones(vocab), size=(20, gamma)))
  return jax.jit(prefix_trees.best_first, static_argnums=3)(
    log_q, np.arange(vocab, dtype=np.int32), np.zeros(20, np.int32), slots
  )


def anything(vocab, depth, slots, rows=40):
  """Returns random trees: any shape, repeated siblings, holes."""
  rng = np.random.default_rng((vocab, depth, slots))
  parent, deep = np.zeros((2, rows, slots), np.int32)
  for row in range(rows):
    for i in range(1, slots):
      parent[row, i] = rng.choice(np.flatnonzero(deep[row, :i] < depth))
      deep[row, i] = deep[row, parent[row, i]] + 1
  token = rng.integers(0, vocab, (rows, slots)).astype(np.int32)
  valid = rng.random((rows, slots)) < 0.85
  valid[:, 0] = True
  return types.DraftTree(token, parent, deep, valid)


# Name: the trees, and (vocabulary, deepest path).
TREES = {
  'chain': (functools.partial(every_chain, 3, 3, 1), 3, 3),
  'two_chains': (functools.partial(every_chain, 2, 3, 2), 2, 3),
  'three_chains': (functools.partial(every_chain, 2, 2, 3), 2, 2),
  'three_siblings': (functools.partial(every_chain, 3, 1, 3), 3, 1),
  'merged': (functools.partial(every_merged, 2, 2, 3), 2, 2),
  'merged_and_cut': (functools.partial(every_merged, 2, 3, 2, 5), 2, 3),
  'best_first': (functools.partial(best_first, 3, 2, 5), 3, 2),
  'anything': (functools.partial(anything, 3, 3, 6), 3, 3),
  'anything_of_two_tokens': (functools.partial(anything, 2, 3, 7), 2, 3),
}


@pytest.mark.parametrize('name', TREES)
def test_rules_without_q_are_lossless_for_each_tree(name):
  make, vocab, depth = TREES[name]
  tree, table = make(), laws.random_law(1, vocab, depth + 1)
  wanted = laws.sequences(table)
  assert wanted.max() < 0.9  # not a law of one sequence
  blocks = {
    'match': laws.by_tokens(laws.match, tree, table),
    'point': laws.by_coins(POINT, tree, table),
    'match, selected': laws.by_tokens(laws.selected(laws.match), tree, table),
    'point, selected': laws.by_coins(laws.selected(POINT), tree, table),
  }
  for rule, block in blocks.items():
    got = laws.emitted(block, table)
    assert laws.distance(got, wanted).max() < laws.EXACT, rule
  # Greedy acceptance is rule M in law, block by block.
  for kind in ('', ', selected'):
    np.testing.assert_allclose(
      blocks['match' + kind], blocks['point' + kind], atol=laws.EXACT
    )
  # A tree accepts as many as its distinct prefixes are probable; a selection
  # no more.
  whole = laws.accepted(blocks['match'])
  np.testing.assert_allclose(whole, prefix_mass(tree, table), atol=laws.EXACT)
  alone = laws.accepted(blocks['match, selected'])
  assert (alone <= whole + laws.EXACT).all()
  assert ((alone < whole - 1e-3).any()) == (not name.startswith('chain'))


def prefix_mass(tree, table):
  """Returns the sum of P(prefix) over the distinct prefixes of each tree."""
  vocab = table.shape[1]
  chance = np.ones(1)
  for n in range(laws.levels(table)):
    here = laws.level(vocab, n)
    chance = np.append(chance, chance[here, None] * table[here])
  valid = np.array(tree.valid)
  rows = np.arange(len(valid))
  for slot in range(1, valid.shape[1]):
    valid[:, slot] &= valid[rows, np.asarray(tree.parent)[:, slot]]
  node = laws.nodes(tree, vocab)
  return np.array(
    [
      sum(chance[n] for n in set(line[real]) - {0})
      for line, real in zip(node, valid)
    ]
  )


# Rules that read q are lossless over all drafts that have the law q.


def chain_law(kind, vocab, gamma):
  """Returns q: of the length alone, or of the whole drafted prefix."""
  if kind == 'iid':
    rng = np.random.default_rng((vocab, gamma))
    return laws.same_everywhere(rng.dirichlet(np.ones(vocab), size=gamma))
  return laws.random_law(2, vocab, gamma)


@pytest.mark.parametrize('vocab, gamma', [(2, 3), (3, 2), (3, 3), (4, 2)])
@pytest.mark.parametrize('kind', ['iid', 'autoregressive'])
def test_rules_of_one_chain(kind, vocab, gamma):
  q = chain_law(kind, vocab, gamma)
  table = laws.random_law(3, vocab, gamma + 1)
  drafts = laws.drawn(q, gamma)
  counts = {}
  for name, judge in {'rejection': DRAWN, 'block': laws.block}.items():
    blocks = laws.by_coins(judge, drafts.chain(), table)
    assert laws.error(drafts.weight, blocks, table) < laws.EXACT, name
    counts[name] = drafts.weight @ laws.accepted(blocks)
  # min(1, p / q) accepts the first token with chance 1 - TV, and the block
  # never fewer tokens than that.
  overlap = np.minimum(table[0], q[0]).sum()
  assert overlap < counts['rejection'] < counts['block'] < gamma


@pytest.mark.parametrize(
  'vocab, gamma, drafts', [(2, 2, 3), (2, 3, 2), (3, 1, 3), (3, 2, 2)]
)
@pytest.mark.parametrize('kind', ['iid', 'autoregressive'])
def test_rejection_with_replacement(kind, vocab, gamma, drafts):
  q = chain_law(kind, vocab, gamma)
  table = laws.random_law(4, vocab, gamma + 1)
  many = laws.drawn(q, gamma, drafts)
  blocks = laws.by_coins(DRAWN, many.tree(), table)
  assert laws.error(many.weight, blocks, table) < laws.EXACT
  one = laws.drawn(q, gamma)
  single = laws.by_coins(DRAWN, one.chain(), table)
  more = many.weight @ laws.accepted(blocks)
  assert more > one.weight @ laws.accepted(single)


@pytest.mark.parametrize(
  'vocab, gamma, drafts',
  [(2, 2, 2), (2, 3, 2), (3, 2, 2), (3, 1, 3), (4, 1, 3), (3, 2, 3)],
)
def test_rejection_without_replacement(vocab, gamma, drafts):
  if (vocab, gamma, drafts) == (3, 2, 3):
    q = laws.same_everywhere([[0.5, 0.5, 0.0], [0.3, 0.3, 0.4]])
    drafts = 2  # no third token can be drawn
  else:
    q = chain_law('iid', vocab, gamma)
  table = laws.random_law(5, vocab, gamma + 1)
  many = laws.drawn_distinct(q, gamma, drafts)
  blocks = laws.by_coins(DISTINCT, many.tree(), table)
  assert laws.error(many.weight, blocks, table) < laws.EXACT
  # Distinct candidates are worth more than independent ones.
  again = laws.drawn(q, gamma, drafts)
  others = laws.by_coins(DRAWN, again.tree(), table)
  more = many.weight @ laws.accepted(blocks)
  assert more > again.weight @ laws.accepted(others)


# Odd laws.


PAIRS = {
  'chain': (1, laws.drawn, DRAWN),
  'block': (1, laws.drawn, laws.block),
  'with_replacement': (2, laws.drawn, DRAWN),
  'without_replacement': (2, laws.drawn_distinct, DISTINCT),
}


def filtered(table, **setting):
  """Returns the law that temperature, top-k and top-p make of a table."""
  logits = jnp.log(jnp.asarray(table))[None]
  log_p = sampling_lib.log_probabilities(logits, laws.setting(1, **setting))
  return np.exp(np.asarray(log_p[0]))


def odd_laws(case):
  """Returns (p, q) over 3 tokens with gamma 2."""
  p, q = laws.random_law(6, 3, 3), chain_law('iid', 3, 2)
  if case == 'top_k':
    return filtered(p, top_k=2), filtered(q, top_k=2, temperature=0.7)
  if case == 'top_p':
    return filtered(p, top_p=0.8), filtered(q, top_p=0.8)
  if case == 'verifier_at_temperature_0':
    return filtered(p, temperature=0.0), q
  if case == 'both_at_temperature_0':
    return filtered(p, temperature=0.0), filtered(q, temperature=0.0)
  if case == 'q_lacks_a_token':
    return p, laws.same_everywhere([[0.7, 0.3, 0], [0, 0.4, 0.6]])
  if case == 'q_is_p':
    return p, p[: laws.level(3, 2).start]
  assert case == 'disjoint'
  return (
    laws.same_everywhere([[0, 0, 1], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]),
    laws.same_everywhere([[0.7, 0.3, 0], [0, 0.4, 0.6]]),
  )


@pytest.mark.parametrize('pair', PAIRS)
def test_odd_laws(pair):
  drafts, draw, judge = PAIRS[pair]
  for case in (
    'top_k',
    'top_p',
    'verifier_at_temperature_0',
    'both_at_temperature_0',
    'q_lacks_a_token',
    'q_is_p',
    'disjoint',
  ):
    p, q = odd_laws(case)
    if case == 'both_at_temperature_0' and draw is laws.drawn_distinct:
      continue  # there is no second token
    many = draw(q, 2, drafts)
    tree = many.chain() if drafts == 1 else many.tree()
    blocks = laws.by_coins(judge, tree, p)
    assert laws.error(many.weight, blocks, p) < laws.EXACT, case
    if case == 'q_is_p':  # all is accepted
      np.testing.assert_allclose(many.weight @ laws.accepted(blocks), 2)
    if case == 'verifier_at_temperature_0':  # what the argmax path begins with
      np.testing.assert_allclose(
        laws.accepted(blocks), common(many.token, p), atol=laws.EXACT
      )
    if case == 'disjoint':  # nothing is
      assert many.weight @ laws.accepted(blocks) == 0


def common(token, p):
  """Returns how far the best of K drafts [N, K, G] follows the argmax path."""
  node, right = 0, np.ones(token.shape[:2], bool)
  length = np.zeros(token.shape[:2], int)
  for j in range(token.shape[2]):
    best = int(p[node].argmax())
    right &= token[:, :, j] == best
    length += right
    node = node * p.shape[1] + 1 + best
  return length.max(1)


@pytest.mark.parametrize('pair', PAIRS)
def test_holes_that_do_not_depend_on_their_token(pair):
  """A chain may end early, and slots be left out, whatever is in them.

  But of siblings drawn without replacement only the last ones may be missing,
  as the others are part of the law of those after them.
  """
  drafts, draw, judge = PAIRS[pair]
  q, table = chain_law('iid', 3, 2), laws.random_law(7, 3, 3)
  many = draw(q, 2, drafts)
  whole = many.chain() if drafts == 1 else many.tree()
  for hole in range(1, whole.token.shape[1]):
    if pair == 'without_replacement' and hole == 1:
      continue
    tree = whole.replace(valid=whole.valid.at[:, hole].set(False))
    blocks = laws.by_coins(judge, tree, table)
    assert laws.error(many.weight, blocks, table) < laws.EXACT, hole


@pytest.mark.parametrize('pair', PAIRS)
def test_a_slot_without_a_law_is_not_accepted(pair):
  """log_q = -inf for all tokens, as of padding: the slot must do nothing."""
  drafts, draw, judge = PAIRS[pair]
  q, table = chain_law('iid', 3, 2), laws.random_law(8, 3, 3)
  many = draw(q, 2, drafts)
  whole = many.chain() if drafts == 1 else many.tree()
  for slot in range(1, whole.token.shape[1]):
    tree = whole.replace(log_q=whole.log_q.at[:, slot].set(-jnp.inf))
    blocks = laws.by_coins(judge, tree, table)
    assert laws.error(many.weight, blocks, table) < laws.EXACT, slot
