"""Laws of acceptance rules by summing every random outcome, in numpy.

Written apart from the package: dictionaries from tuples of tokens to
probabilities, recursion, float64. A `law` maps a prefix to p [V]; `drafts`
maps a prefix to a list of (probability, drafts), each draft a tuple of
tokens; a `cycle` maps a prefix to {emitted block: probability}.
"""

import collections
import functools
import itertools

import numpy as np


def random_law(rng, vocab, depth, sharpness=1.0):
  """Returns a path-dependent law: a random p for each prefix up to `depth`."""
  table = {
      prefix: rng.dirichlet(np.full(vocab, sharpness))
      for n in range(depth + 1)
      for prefix in itertools.product(range(vocab), repeat=n)
  }
  return table.__getitem__


def sequences(law, vocab, count, start=()):
  """Returns {sequence: probability} of plain sampling."""
  total = {}
  for sequence in itertools.product(range(vocab), repeat=count):
    weight = 1.0
    for i, token in enumerate(sequence):
      weight *= law(start + sequence[:i])[token]
    total[sequence] = weight
  return total


def marginal_drafts(marginals, branches):
  """Returns `drafts` of K independent chains from marginals [G, V]."""

  @functools.cache
  def drafts(prefix):
    q = marginals(prefix)
    chains = [
        (float(np.prod(q[np.arange(len(q)), chain])), chain)
        for chain in itertools.product(range(q.shape[1]), repeat=len(q))
    ]
    return [
        (np.prod([weight for weight, _ in chosen]), tuple(c for _, c in chosen))
        for chosen in itertools.product(chains, repeat=branches)
    ]

  return drafts


def merged(blocks):
  """Sums (probability, block) into {block: probability}."""
  total = collections.defaultdict(float)
  for weight, block in blocks:
    total[block] += weight
  return dict(total)


def match_cycle(law, drafts):
  """Rule M: one draw at each node; stop where no draft carries it."""

  def walk(prefix, emitted, alive):
    for token, weight in enumerate(law(prefix + emitted)):
      block = emitted + (token,)
      left = [d for d in alive if d[: len(block)] == block]
      if not left:
        yield weight, block
        continue
      for rest, longer in walk(prefix, block, left):
        yield weight * rest, longer

  return functools.cache(lambda prefix: merged(
      (weight * rest, block)
      for weight, chains in drafts(prefix)
      for rest, block in walk(prefix, (), chains)
  ))


def chain_cycle(law, drafts, verdict):
  """One chain, each token judged by `verdict`, then a bonus from p.

  verdict(p, depth, token, prefix) -> (probability of acceptance, law of the
  token that is emitted otherwise).
  """

  def walk(prefix, chain, depth):
    p = law(prefix + chain[:depth])
    if depth == len(chain):
      for token, weight in enumerate(p):
        yield weight, chain + (token,)
      return
    accept, other = verdict(p, depth, chain[depth], prefix)
    if accept > 0:
      for rest, block in walk(prefix, chain, depth + 1):
        yield accept * rest, block
    if accept < 1:
      for token, weight in enumerate(other):
        yield (1 - accept) * weight, chain[:depth] + (token,)

  return functools.cache(lambda prefix: merged(
      (weight * rest, block)
      for weight, chains in drafts(prefix)
      for rest, block in walk(prefix, chains[0], 0)
  ))


def rejection(marginals):
  """The rule min(1, p/q) with its residual max(p - q, 0)."""

  def verdict(p, depth, token, prefix):
    q = marginals(prefix)[depth]
    residual = np.maximum(p - q, 0)
    mass = residual.sum()
    return min(1.0, p[token] / q[token]), residual / mass if mass else p

  return verdict


def emitted(cycle, vocab, count):
  """Returns {first `count` tokens: probability} of cycles one after another."""

  @functools.cache
  def go(prefix, left):
    total = collections.defaultdict(float)
    if left == 0:
      return {(): 1.0}
    for block, weight in cycle(prefix).items():
      block = block[:left]
      for rest, more in go(prefix + block, left - len(block)).items():
        total[block + rest] += weight * more
    return dict(total)

  law = go((), count)
  return {
      sequence: law.get(sequence, 0.0)
      for sequence in itertools.product(range(vocab), repeat=count)
  }


def distance(first, second):
  """Returns the total variation of two laws over the same sequences."""
  assert first.keys() == second.keys()
  return 0.5 * sum(abs(first[s] - second[s]) for s in first)
