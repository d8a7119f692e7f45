"""Tabulates acceptance rules on instances of which every outcome is summed.

  python benchmarks/acceptance.py [--instances=40]

The verifier's p depends on the whole prefix, over 3 tokens; the drafter's q on
the slot alone, as of one denoising pass, for 2 slots. Every draft, coin and draw
of the package's own rules is summed, as in tests/decoding/test_rules_*.py. For
each rule: the mean number of accepted tokens and its variance on four pairs of p
and q, the largest total variation between the three tokens that are emitted and
plain sampling's, over these and random pairs, and the least mean over
rejection's. The last line is JSON.
"""

import argparse
import functools
import json
import pathlib
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'support'))

import rule_distributions as outcomes  # noqa: E402

from specdiff_jax.decoding.rules import rejection  # noqa: E402
from specdiff_jax.drafters import prefix_trees  # noqa: E402

VOCAB, GAMMA, DRAFTS = 3, 2, 2
SLOTS = DRAFTS * GAMMA + 1
POINT = rejection.GreedyAcceptance().walk
DRAWN = rejection.Rejection().walk
DISTINCT = rejection.RejectionWithoutReplacement().walk
REFERENCE = ('rejection', 'drawn')  # what the others' means are divided by

_merged = jax.jit(prefix_trees.merged, static_argnums=2)
_best_first = jax.jit(prefix_trees.best_first, static_argnums=3)


# Pairs of p, a table [P, V] over prefixes, and q, one over slots [G, V].


def marginals(p):
  """Returns q [G, V]: the verifier's own marginals, the best of one pass."""
  chance, rows = np.ones(1), []
  for n in range(GAMMA):
    joint = chance[:, None] * p[outcomes.level(VOCAB, n)]
    rows.append(joint.sum(0))
    chance = joint.reshape(-1)
  return np.array(rows)


def sharpened(q, power):
  return q**power / (q**power).sum(-1, keepdims=True)


def pairs(instances):
  """Returns the pairs by name: four to look at, and random ones."""
  p = outcomes.random_law(0, VOCAB, GAMMA + 1)
  own = marginals(p)
  uniform = np.full((GAMMA, VOCAB), 1 / VOCAB)
  found = {
    'own marginals': (p, own),
    'sharpened': (p, sharpened(own, 3)),
    'turned away': (p, sharpened(own, -1)),
    'both uniform': (
      outcomes.same_everywhere(np.full((GAMMA + 1, VOCAB), 1 / VOCAB)),
      uniform,
    ),
  }
  for seed in range(instances):
    rng = np.random.default_rng(seed)
    sharpness = 10 ** rng.uniform(-0.7, 0.7)  # from peaked to flat
    p = outcomes.random_law(100 + seed, VOCAB, GAMMA + 1, sharpness)
    q = rng.dirichlet(np.full(VOCAB, 10 ** rng.uniform(-0.5, 0.7)), GAMMA)
    q = np.maximum(q, 1e-6)
    found[f'random {seed}'] = p, q / q.sum(-1, keepdims=True)
  return found


# Rules with drafts: (p, q) -> chances [N] of drafts and their blocks [N, P, V].


def drawn(q, drafts=1, draw=outcomes.drawn):
  return draw(outcomes.same_everywhere(q), GAMMA, drafts)


def argmax(q):
  every = drawn(q)
  best = slice(every.weight.argmax(), every.weight.argmax() + 1)
  return outcomes.Drafts(np.ones(1), every.token[best], every.log_q[best])


def one(summed, judge, draft):
  def found(p, q):
    drafts = draft(q)
    return drafts.weight, summed(judge, drafts.chain(), p)

  return found


def several(summed, judge, draw=outcomes.drawn):
  def found(p, q):
    drafts = drawn(q, DRAFTS, draw)
    return drafts.weight, summed(judge, drafts.tree(), p)

  return found


def tree(p, q):
  """Two drafts, merged: what the system `tree` verifies."""
  drafts = drawn(q, DRAFTS)
  roots = np.zeros(len(drafts.weight), np.int32)
  merged = _merged(drafts.token.astype(np.int32), roots, SLOTS)
  return drafts.weight, outcomes.by_tokens(outcomes.match, merged, p)


def best_first(p, q):
  """As many slots, those of the likeliest prefixes."""
  ids, root = np.arange(VOCAB, dtype=np.int32), np.zeros(1, np.int32)
  made = _best_first(np.log(q)[None], ids, root, SLOTS)
  return np.ones(1), outcomes.by_tokens(outcomes.match, made, p)


def shared_noise(p, q):
  """x = argmax(log q + g) and y = argmax(log p + g) of the same g.

  Both are v with chance 1 / sum_u max(p_u / p_v, q_u / q_v), and noise of other
  positions is independent. What is emitted is y, plain sampling's own token.
  """
  blocks, chance = np.zeros_like(p), np.ones(1)
  for n in range(GAMMA + 1):
    here = outcomes.level(VOCAB, n)
    blocks[here] = chance[:, None] * p[here]
    if n < GAMMA:
      ratio = np.maximum(
        p[here][:, None] / p[here][..., None], q[n] / q[n][:, None]
      )
      both = chance[:, None] / ratio.sum(-1)
      blocks[here] -= both
      chance = both.reshape(-1)
  return np.ones(1), blocks[None]


COINS, TOKENS = outcomes.by_coins, outcomes.by_tokens
RULES = {
  ('match', 'argmax'): one(TOKENS, outcomes.match, argmax),
  ('match', 'drawn'): one(TOKENS, outcomes.match, drawn),
  ('match', 'shared noise'): shared_noise,
  ('greedy', 'drawn'): one(COINS, POINT, drawn),
  REFERENCE: one(COINS, DRAWN, drawn),
  ('block', 'drawn'): one(COINS, outcomes.block, drawn),
  ('match', '2 drawn, merged'): tree,
  ('match', 'the 4 likeliest prefixes'): best_first,
  ('match', '2 drawn, one selected'): several(
    TOKENS, outcomes.selected(outcomes.match)
  ),
  ('greedy', '2 drawn, one selected'): several(COINS, outcomes.selected(POINT)),
  ('rejection', '2 drawn'): several(COINS, DRAWN),
  ('without_replacement', '2 distinct'): several(
    COINS, DISTINCT, outcomes.drawn_distinct
  ),
  # Lossy: such systems cannot be built.
  ('rejection', 'argmax'): one(COINS, DRAWN, argmax),
  ('rejection', '2 drawn, one selected'): several(
    COINS, outcomes.selected(DRAWN)
  ),
}
REFUSED = tuple(RULES)[-2:]


def measured(weight, blocks, p):
  """Returns total variation, mean and variance of the accepted tokens."""
  length = np.array(
    [
      weight @ blocks[:, outcomes.level(VOCAB, n)].sum((1, 2))
      for n in range(GAMMA + 1)
    ]
  )
  mean = length @ np.arange(GAMMA + 1)
  square = length @ np.arange(GAMMA + 1) ** 2
  return outcomes.error(weight, blocks, p), mean, abs(square - mean**2)


@functools.cache
def table(instances):
  """Returns, for each rule, what was measured on each pair."""
  with jax.enable_x64(True):
    return {
      rule: {
        name: measured(*found(p, q), p)
        for name, (p, q) in pairs(instances).items()
      }
      for rule, found in RULES.items()
    }


def lines(instances):
  """Returns the lines of the table, as Markdown."""
  found = table(instances)
  named = list(pairs(0))
  head = ['rule', 'drafts', *named, 'TV', 'worst']
  yield '| ' + ' | '.join(head) + ' |'
  yield '|---' * len(head) + '|'
  for rule, by_pair in found.items():
    cells = [f'{by_pair[n][1]:.3f} ({by_pair[n][2]:.2f})' for n in named]
    far = max(tv for tv, _, _ in by_pair.values())
    least = min(
      mean / found[REFERENCE][name][1] for name, (_, mean, _) in by_pair.items()
    )
    tv = '0' if far < outcomes.EXACT else f'{far:.2f}'
    name = rule[0] + (', refused' if rule in REFUSED else '')
    yield '| ' + ' | '.join([name, rule[1], *cells, tv, f'{least:.2f}']) + ' |'


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--instances', type=int, default=40, help='random pairs')
  instances = parser.parse_args(argv).instances
  print('\n'.join(lines(instances)))
  told = {
    ', '.join(rule): {
      'total_variation': max(tv for tv, _, _ in by_pair.values()),
      **{name: by_pair[name][1:] for name in pairs(0)},
    }
    for rule, by_pair in table(instances).items()
  }
  print(json.dumps(told))


if __name__ == '__main__':
  main()
