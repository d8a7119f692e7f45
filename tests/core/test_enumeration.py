"""Rule M emits the verifier's law exactly; rules that do not are told apart.

First the rule in the abstract, every random outcome summed by the reference
beside this file; then our `matched_path` on every tree and every draw of the
verifier; then `choose`, which draws, by its statistics.
"""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types

import rule_reference as reference

EXACT, LOSSY = 1e-12, 0.04


def random_marginals(rng, vocab, gamma):
  """Returns marginals [G, V] that are other ones for every prefix."""
  seed = int(rng.integers(1 << 30))

  @functools.cache
  def marginals(prefix):
    own = np.random.default_rng((seed, len(prefix)) + prefix)
    return own.dirichlet(np.ones(vocab), size=gamma)

  return marginals


def setup(vocab, gamma, branches, count, seed=0):
  rng = np.random.default_rng((seed, vocab, gamma, branches))
  law = reference.random_law(rng, vocab, count + gamma + 1)
  marginals = random_marginals(rng, vocab, gamma)
  drafts = reference.marginal_drafts(marginals, branches)
  return law, marginals, drafts, reference.sequences(law, vocab, count)


@pytest.mark.parametrize(
    'vocab, gamma, branches, count',
    [(2, 3, 3, 4), (3, 3, 2, 3), (3, 2, 3, 3), (4, 3, 1, 3), (4, 2, 2, 3)],
)
def test_rule_m_is_lossless(vocab, gamma, branches, count):
  law, _, drafts, wanted = setup(vocab, gamma, branches, count)
  got = reference.emitted(reference.match_cycle(law, drafts), vocab, count)
  assert reference.distance(got, wanted) < EXACT
  assert max(wanted.values()) < 0.9  # not a law of one sequence


def test_rule_m_is_lossless_for_selected_drafts():
  """The most probable of K drafts under the verifier: a peek at P is fine."""
  law, _, drafts, wanted = setup(3, 2, 3, 3)

  def score(prefix, chain):
    steps = [law(prefix + chain[:i])[t] for i, t in enumerate(chain)]
    return np.cumprod(steps).sum()

  def selected(prefix):
    for weight, chains in drafts(prefix):
      yield weight, (max(chains, key=lambda c: score(prefix, c)),)

  got = reference.emitted(reference.match_cycle(law, selected), 3, 3)
  assert reference.distance(got, wanted) < EXACT


def test_the_enumeration_accepts_rejection_sampling():
  """min(1, p/q) on a draft that was drawn from q is lossless."""
  law, marginals, drafts, wanted = setup(3, 2, 1, 3)
  cycle = reference.chain_cycle(law, drafts, reference.rejection(marginals))
  got = reference.emitted(cycle, 3, 3)
  assert reference.distance(got, wanted) < EXACT


# Negative controls: what must not pass.


def test_min_p_over_q_of_an_argmax_draft_is_lossy():
  law, marginals, _, wanted = setup(3, 2, 1, 3)

  def argmax(prefix):
    return [(1.0, (tuple(map(int, marginals(prefix).argmax(1))),))]

  cycle = reference.chain_cycle(law, argmax, reference.rejection(marginals))
  assert reference.distance(reference.emitted(cycle, 3, 3), wanted) > LOSSY


def test_min_p_over_q_of_a_selected_draft_is_lossy():
  """p = .6/.4, q = .5/.5, the better of two: emits .8 instead of .6."""
  p, q = np.array([0.6, 0.4]), np.array([[0.5, 0.5]])
  law, marginals = (lambda prefix: p), (lambda prefix: q)
  both = reference.marginal_drafts(marginals, 2)

  def selected(prefix):
    for weight, chains in both(prefix):
      yield weight, (max(chains, key=lambda chain: p[chain[0]]),)

  cycle = reference.chain_cycle(law, selected, reference.rejection(marginals))
  got = reference.emitted(cycle, 2, 1)
  assert got[(0,)] == pytest.approx(0.8)
  wanted = reference.sequences(law, 2, 1)
  assert reference.distance(got, wanted) > LOSSY


def test_accepting_the_argmax_and_else_sampling_is_lossy():
  law, _, drafts, wanted = setup(3, 2, 1, 3)

  def verdict(p, depth, token, prefix):
    return float(token == p.argmax()), p

  cycle = reference.chain_cycle(law, drafts, verdict)
  assert reference.distance(reference.emitted(cycle, 3, 3), wanted) > LOSSY


def peeking(p, redrawn):
  """A draft that knows y_2 and proposes the right y_1 only if y_2 is 0.

  If it is rejected the second token comes of the next cycle: of the same
  noise where that is keyed by position, of new noise where it is redrawn.
  """
  total = collections.defaultdict(float)
  for first, second, again in itertools.product((0, 1), repeat=3):
    accepted = second == 0
    kept = second if accepted or not redrawn else again
    total[first, kept] += p[first] * p[second] * p[again]
  return dict(total)


def test_peeking_at_noise_that_is_redrawn_is_lossy():
  p = np.array([0.5, 0.5])
  wanted = reference.sequences(lambda prefix: p, 2, 2)
  assert reference.distance(peeking(p, redrawn=True), wanted) > LOSSY
  assert reference.distance(peeking(p, redrawn=False), wanted) < EXACT


# Our walk gives the verdict of the rule on every tree and every draw.


def chains_tree(chains):
  """Returns the tree of K chains [N, K, G] that share only their root.

  So equal beginnings become siblings that repeat a token.
  """
  rows, branches, gamma = chains.shape
  slot = np.arange(branches * gamma)
  depth = np.concatenate([[0], slot % gamma + 1])
  parent = np.concatenate([[0], np.where(slot % gamma == 0, 0, slot)])
  token = np.concatenate(
      [np.zeros((rows, 1), int), chains.reshape(rows, -1)], axis=1
  )
  return types.DraftTree(
      token=token.astype(np.int32),
      parent=np.tile(parent, (rows, 1)).astype(np.int32),
      depth=np.tile(depth, (rows, 1)).astype(np.int32),
      valid=np.ones(token.shape, bool),
  )


def every_draw(vocab, gamma, branches):
  """Yields (chains, nodes, y): all drafts, all draws at distinct prefixes."""
  words = list(itertools.product(range(vocab), repeat=gamma))
  for chains in itertools.product(words, repeat=branches):
    nodes = sorted({c[:n] for c in chains for n in range(gamma + 1)})
    for draw in itertools.product(range(vocab), repeat=len(nodes)):
      yield chains, nodes, dict(zip(nodes, draw))


def blocks(tree, token, verdict):
  """Returns what each row emits, as tuples."""
  found = []
  for row, count in enumerate(np.asarray(verdict.count)):
    path = np.asarray(verdict.path)[row, 1 : count + 1]
    found.append(
        tuple(tree.token[row, path].tolist()) + (int(verdict.bonus[row]),)
    )
  return found


@pytest.mark.parametrize(
    'vocab, gamma, branches',
    [(2, 3, 2), (2, 2, 3), (3, 2, 1), (4, 2, 1), (3, 1, 3), (3, 3, 1)],
)
def test_matched_path_emits_the_law(vocab, gamma, branches):
  law, marginals, drafts, _ = setup(vocab, gamma, branches, 0)
  outcomes = list(every_draw(vocab, gamma, branches))
  tree = chains_tree(np.array([chains for chains, _, _ in outcomes]))
  token = np.zeros(tree.token.shape, np.int32)
  for row, (chains, _, y) in enumerate(outcomes):
    lines = [()] + [c[: n + 1] for c in chains for n in range(gamma)]
    token[row] = [y[line] for line in lines]
  verdict = jax.device_get(
      jax.jit(tree_lib.matched_path, static_argnums=2)(tree, token, gamma)
  )
  weight_of = {chains: weight for weight, chains in drafts(())}
  got = collections.defaultdict(float)
  for (chains, nodes, y), block in zip(outcomes, blocks(tree, token, verdict)):
    # One verdict: the draws along the longest beginning that a draft has.
    wanted = ()
    while any(c[: len(wanted)] == wanted for c in chains):
      wanted += (y[wanted],)
      if len(wanted) > gamma:
        break
    assert block == wanted
    weight = weight_of[chains] * np.prod([law(n)[y[n]] for n in nodes])
    # A block's continuation is plain sampling, by induction over cycles.
    rest = reference.sequences(law, vocab, gamma + 1 - len(block), block)
    for more, factor in rest.items():
      got[block + more] += weight * factor
  wanted = reference.sequences(law, vocab, gamma + 1)
  assert reference.distance(dict(got), wanted) < EXACT


# The draw itself.

DRAWS = 12000
LIMIT = {5: 26.0, 24: 60.0}  # chi-square above this: less than 1e-4 by chance


def draws(logits, temperature, top_k=0, top_p=1.0, seed=0):
  """Returns tokens [DRAWS, N] of as many requests at N positions."""
  positions = jnp.broadcast_to(jnp.arange(3, 5), (DRAWS, 2))
  one = jnp.ones(DRAWS)
  return np.asarray(jax.jit(sampling_lib.choose)(
      jnp.broadcast_to(jnp.asarray(logits), (DRAWS, 2, len(logits))),
      positions,
      types.Sampling(
          one * temperature, jnp.int32(one * top_k), one * top_p
      ),
      sampling_lib.request_noise(seed, jnp.arange(DRAWS)),
  ))


def chi_square(counts, law):
  wanted = law * counts.sum()
  return ((counts - wanted)[law > 0] ** 2 / wanted[law > 0]).sum()


def softmax(x):
  e = np.exp(x - np.max(x))
  return e / e.sum()


LOGITS = np.array([0.3, -0.5, 1.1, 0.0, -1.2, 0.6], np.float32)


def test_choose_has_the_law():
  token = draws(LOGITS, 0.8)
  for i in range(2):
    counts = np.bincount(token[:, i], minlength=6)
    assert chi_square(counts, softmax(LOGITS / 0.8)) < LIMIT[5]
    # Negative controls: another temperature, another filter.
    assert chi_square(counts, softmax(LOGITS / 0.9)) > LIMIT[5]


def test_choose_has_the_filtered_law():
  token = draws(LOGITS, 1.0, top_k=4, top_p=0.8)
  counts = np.bincount(token[:, 0], minlength=6)
  law = np.zeros(6)
  law[[2, 5, 0]] = softmax(LOGITS[[2, 5, 0]])  # 0 crosses the threshold
  assert not counts[law == 0].any()
  assert chi_square(counts, law) < LIMIT[5]
  law[[2, 5, 0, 3]] = softmax(LOGITS[[2, 5, 0, 3]])
  assert chi_square(counts, law) > LIMIT[5]


def test_positions_and_seeds_are_independent():
  token = draws(LOGITS[:5], 1.0)
  p = softmax(LOGITS[:5])
  pairs = np.bincount(token[:, 0] * 5 + token[:, 1], minlength=25)
  assert chi_square(pairs, np.outer(p, p).ravel()) < LIMIT[24]
  other = draws(LOGITS[:5], 1.0, seed=1)
  pairs = np.bincount(token[:, 0] * 5 + other[:, 0], minlength=25)
  assert chi_square(pairs, np.outer(p, p).ravel()) < LIMIT[24]
  # Negative control: the same noise again.
  same = draws(LOGITS[:5], 1.0)
  pairs = np.bincount(token[:, 0] * 5 + same[:, 0], minlength=25)
  assert chi_square(pairs, np.outer(p, p).ravel()) > LIMIT[24]
