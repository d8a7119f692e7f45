"""Laws of acceptance rules, by summing every random outcome of our code.

A law is a table [P, V]: the next-token law after each prefix, numbered so that
the children of prefix c are c V + 1 to c V + V (`()` is 0). One cycle is
enough: after its block the next token is drawn from the law itself, which is
what the cycles after it do if the rule is right, by induction.

A `judge` is (tree, p [B, M, V], draws [B, M]) -> rejection.Walk, where draws
are coins or, under rule M, the verifier's tokens.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding.rules import accept
from specdiff_jax.decoding.rules import block_verification
from specdiff_jax.decoding.rules import rejection

EXACT, LOSSY = 1e-12, 0.04
REJECT = 1 - 2.0**-53  # the largest coin
ROWS, SLOTS = 2048, 7  # of a call: one size, so that few programs compile

chain = jax.jit(tree_lib.chain)
_chains = jax.jit(tree_lib.chains)


# Laws.


def level(vocab, length):
  """Returns the slice of the prefixes of a length."""
  start = (vocab**length - 1) // (vocab - 1)
  return slice(start, start + vocab**length)


def levels(table):
  """Returns the number of lengths, from 0 on, that a table [P, V] covers."""
  size, vocab = table.shape
  return next(n for n in itertools.count() if level(vocab, n).start == size)


def random_law(seed, vocab, lengths, sharpness=1.0):
  """Returns a random p for each prefix shorter than `lengths`."""
  rng = np.random.default_rng((seed, vocab, lengths))
  return rng.dirichlet(
    np.full(vocab, sharpness), size=level(vocab, lengths).start
  )


def same_everywhere(rows):
  """Returns the table of laws [N, V] that depend on the length alone."""
  rows = np.asarray(rows, float)
  vocab = rows.shape[1]
  return np.concatenate(
    [np.tile(row, (vocab**n, 1)) for n, row in enumerate(rows)]
  )


def below(table, first):
  """Returns the law after a first token."""
  vocab, lengths = table.shape[1], levels(table)
  return np.concatenate(
    [
      table[level(vocab, n + 1)].reshape(vocab, vocab**n, vocab)[first]
      for n in range(lengths - 1)
    ]
  )


def sequences(table):
  """Returns [V^N], the law of N tokens drawn one after another."""
  return emitted(np.zeros_like(table), table, start=1.0)


def emitted(blocks, table, start=0.0):
  """Returns [..., V^N] of a block and then plain sampling.

  Args:
    blocks: [..., P, V] the chance of the block `prefix` + one token.
    table: the law.
    start: the chance of an empty block.
  """
  vocab = table.shape[1]
  done = np.full(blocks.shape[:-2] + (1,), start)
  for length in range(levels(table)):
    here = level(vocab, length)
    done = blocks[..., here, :] + done[..., None] * table[here]
    done = done.reshape(done.shape[:-2] + (-1,))
  return done


def distance(first, second):
  """Returns the total variation, over the last axis."""
  return 0.5 * np.abs(first - second).sum(-1)


def accepted(blocks):
  """Returns the expected number of accepted tokens."""
  table = blocks[0] if blocks.ndim == 3 else blocks
  return sum(
    n * blocks[..., level(table.shape[1], n), :].sum((-2, -1))
    for n in range(levels(table))
  )


# Drafts, all of them, each with its chance.


@dataclasses.dataclass(frozen=True)
class Drafts:
  """Every outcome [N] of drawing K chains of G tokens."""

  weight: np.ndarray  # [N]
  token: np.ndarray  # [N, K, G]
  log_q: np.ndarray  # [N, K, G, V] the law that each token was drawn from

  def keep(self, chosen):
    """Returns the drafts with chain `chosen` [N, K'] in place of 0, 1, .."""
    rows = np.arange(len(self.weight))[:, None]
    return Drafts(
      self.weight, self.token[rows, chosen], self.log_q[rows, chosen]
    )

  def chain(self):
    """Returns the tree of a single chain."""
    token = np.pad(self.token[:, 0], ((0, 0), (1, 0))).astype(np.int32)
    log_q = np.pad(self.log_q[:, 0], ((0, 0), (1, 0), (0, 0)))
    return chain(token, np.ones(token.shape, bool), log_q)

  def tree(self):
    """Returns the tree of K chains."""
    return _chains(
      self.token.astype(np.int32),
      np.ones(self.token.shape, bool),
      np.zeros(len(self.weight), np.int32),
      self.log_q,
    )


def drawn(q, gamma, drafts=1):
  """Returns K chains drawn independently, token by token, from the law q."""
  vocab = q.shape[1]
  word = np.array(list(itertools.product(range(vocab), repeat=gamma)))
  law = q[chain_nodes(word, vocab)]  # [W, G, V]
  weight = np.take_along_axis(law, word[..., None], axis=2)[..., 0].prod(1)
  pick = np.array(list(itertools.product(range(len(word)), repeat=drafts)))
  with np.errstate(divide='ignore'):
    return Drafts(weight[pick].prod(1), word[pick], np.log(law)[pick])


def drawn_distinct(q, gamma, drafts):
  """Returns K chains whose first tokens are drawn without replacement."""
  every = drawn(q, gamma, drafts)
  first = every.token[:, :, 0]
  left = np.ones(len(first))
  weight = every.weight
  for k in range(drafts):
    repeated = (first[:, :k] == first[:, k : k + 1]).any(1)
    weight = np.where(repeated, 0, weight / left)
    left = np.maximum(left - q[0][first[:, k]], 1e-300)
  some = weight > 0
  return Drafts(weight[some], every.token[some], every.log_q[some])


def chain_nodes(word, vocab):
  """Returns the prefix [W, G] before each token of words [W, G]."""
  node = np.zeros(word.shape, int)
  for j in range(1, word.shape[1]):
    node[:, j] = node[:, j - 1] * vocab + 1 + word[:, j - 1]
  return node


def nodes(tree, vocab):
  """Returns the prefix [B, M] that ends in each slot."""
  token, parent = np.asarray(tree.token), np.asarray(tree.parent)
  rows = np.arange(len(token))
  node = np.zeros(token.shape, int)
  for slot in range(1, token.shape[1]):
    node[:, slot] = node[rows, parent[:, slot]] * vocab + 1 + token[:, slot]
  return node


# Judges.


def match(tree, p, token):
  """Rule M, with the verifier's token [B, M] after each slot given."""
  verdict = tree_lib.matched_path(tree, token, tree.token.shape[1] - 1)
  rows = jnp.arange(token.shape[0])
  deepest = verdict.path[rows, verdict.count]
  law = jax.nn.one_hot(verdict.bonus, p.shape[-1], dtype=p.dtype)
  return rejection.Walk(deepest, law, -jnp.ones(token.shape))


def block(tree, p, coins):
  """Block verification: count i passes with chance h_i."""
  return block_verification.BlockVerification().walk(tree, p, coins)


@dataclasses.dataclass(frozen=True)
class Given:
  """A rule whose draws are given, in the place of the noise."""

  judge: Any
  reads_q: bool = False

  def __call__(self, tree, logits, length, sampling, noise, max_depth):
    p = jnp.exp(sampling_lib.log_probabilities(logits, sampling))
    return self.judge(tree, p, noise)


@functools.cache
def selected(judge):
  """Returns `SelfSelection` before a judge."""

  def both(tree, p, draws):
    rule = accept.SelfSelection(Given(judge))
    return rule(tree, jnp.log(p), None, setting(len(p)), draws, p.shape[1] - 1)

  return both


def setting(rows, temperature=1.0, top_k=0, top_p=1.0):
  """Returns the same parameters of sampling for all rows."""
  return types.Sampling(
    jnp.full(rows, temperature, jnp.float32),
    jnp.full(rows, top_k, jnp.int32),
    jnp.full(rows, top_p, jnp.float32),
  )


# What they emit.


def by_coins(judge, tree, table):
  """Returns the law [N, P, V] of the block that each of N trees gives.

  Every pattern of coins is judged: 0 is accepted unless the chance is 0, and
  the largest coin is not unless it is 1. A slot that was not tried has no
  coin: of the patterns that differ in it alone one counts.
  """
  slots = tree.token.shape[1]
  heads = np.array(list(itertools.product((True, False), repeat=slots - 1)))
  heads = np.pad(heads, ((0, 0), (1, 0)), constant_values=True)
  rows = tree.token.shape[0]
  tree = jax.tree.map(lambda x: np.repeat(np.asarray(x), len(heads), 0), tree)
  heads = np.tile(heads, (rows, 1))
  node = nodes(tree, table.shape[1])
  found = judged(judge, tree, table[node], np.where(heads, 0.0, REJECT))
  of_coin = np.where(heads, found.chance, 1 - found.chance)
  weight = np.where(found.chance < 0, heads, of_coin).prod(1)
  group = np.repeat(np.arange(rows), len(weight) // rows)
  return total(found, node, weight, group, table)


def by_tokens(judge, tree, table):
  """Returns the law [N, P, V] of the block under every draw of the verifier.

  Slots with the same prefix share a draw.
  """
  vocab = table.shape[1]
  group, token, weight = [], [], []
  for row, node in enumerate(nodes(tree, vocab)):
    prefix, place = np.unique(node, return_inverse=True)
    y = np.array(list(itertools.product(range(vocab), repeat=len(prefix))))
    group.append(np.full(len(y), row))
    token.append(y[:, place])
    weight.append(table[prefix, y].prod(1))
  group, token = np.concatenate(group), np.concatenate(token)
  tree = jax.tree.map(lambda x: np.asarray(x)[group], tree)
  node = nodes(tree, vocab)
  found = judged(judge, tree, table[node], token.astype(np.int32))
  return total(found, node, np.concatenate(weight), group, table)


_jitted = functools.cache(jax.jit)  # a judge is compiled once


def judged(judge, tree, p, draws):
  """Returns what a judge says, called with ROWS rows of SLOTS slots a time."""
  rows, slots = draws.shape
  tree = tree.replace(ancestors=None)  # of other slots than after padding

  def padded(x, start):
    x = x[start : start + ROWS]
    width = [(0, ROWS - len(x)), (0, max(SLOTS - slots, 0))]
    return np.pad(x, width + [(0, 0)] * (x.ndim - 2))

  given = jax.tree.map(np.asarray, (tree, p, draws))
  found = [
    jax.device_get(
      _jitted(judge)(*jax.tree.map(lambda x: padded(x, start), given))
    )
    for start in range(0, rows, ROWS)
  ]
  found = jax.tree.map(lambda *x: np.concatenate(x)[:rows], *found)
  return found._replace(chance=found.chance[:, :slots])


def total(found, node, weight, group, table):
  """Returns [N, P, V], the blocks of outcomes summed by their group.

  Args:
    found: the `Walk` of each outcome.
    node: [B, M] the prefix that ends in each slot.
    weight: [B] the chance of an outcome within its group.
    group: [B] the tree it belongs to, in order.
    table: the law.
  """
  deepest = node[np.arange(len(node)), found.deepest]
  blocks = np.zeros((group[-1] + 1,) + table.shape)
  np.add.at(blocks, (group, deepest), weight[:, None] * found.bonus)
  np.testing.assert_allclose(blocks.sum((1, 2)), 1, atol=EXACT)
  return blocks


def error(weight, blocks, table):
  """Returns the total variation between what is emitted and plain sampling."""
  np.testing.assert_allclose(weight.sum(), 1, atol=EXACT)
  return distance(weight @ emitted(blocks, table), sequences(table))
