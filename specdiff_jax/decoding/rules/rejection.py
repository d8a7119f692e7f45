"""Rules that try candidates one after another, each with a coin of its own.

All of them are one walk. At a node with the verifier's distribution p, the
candidates (its children, in the order of slots) are tried in turn: candidate x
drawn from q is accepted with probability min(1, p(x) / q(x)); if it is not, p
becomes its residual, max(p - q, 0) normalised. If none is left the bonus is
drawn from the residual. The rules differ in what q is. Coins and bonus are
drawn afresh in every cycle, never from the noise that is keyed by position:
with that the rules would be lossy.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types


class Walk(NamedTuple):
  """What a walk found."""

  deepest: jax.Array  # [B] last accepted slot
  bonus: jax.Array  # [B, V] distribution of the bonus
  chance: jax.Array  # [B, M] of acceptance where a slot was tried, else -1


class CoinRule:
  """What these rules share: draw coins, walk, draw the bonus."""

  one_chain: ClassVar[bool] = False
  proposal: ClassVar[str]  # see `walk`

  def __call__(
    self,
    tree: types.DraftTree,
    logits: jax.Array,
    length: jax.Array,
    sampling: types.Sampling,
    noise: types.Noise,
    max_depth: int,
  ) -> types.Verdict:
    """See `AcceptanceRule`."""
    chex.assert_shape(logits, (*tree.token.shape, None))
    p = jnp.exp(sampling_lib.log_probabilities(logits, sampling))
    found = self.walk(tree, p, uniform(noise, length, tree.token.shape[1]))
    bonus = draw(found.bonus, noise, length)
    return tree_lib.verdict(tree, found.deepest, bonus, max_depth)

  def walk(self, tree: types.DraftTree, p: jax.Array, coins: jax.Array) -> Walk:
    """Walks with p [B, M, V] and coins [B, M] in [0, 1)."""
    return walk(tree, p, coins, self.proposal)


@dataclasses.dataclass(frozen=True)
class GreedyAcceptance(CoinRule):
  """SpecDiff-2's rule: accept x with probability p(x), else p without x.

  Rejection with q a point mass at x, hence lossless whatever drew x, a
  selection included. In distribution it equals `SampleAndMatch`.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.GreedyAcceptance().reads_q
    False
  """

  needs: ClassVar[frozenset[str]] = frozenset(protocols.PROPOSALS)
  reads_q: ClassVar[bool] = False
  proposal: ClassVar[str] = 'point'


@dataclasses.dataclass(frozen=True)
class Rejection(CoinRule):
  """Speculative sampling: accept with min(1, p / q), residual max(p - q, 0).

  On one chain the rule of 2211.17192 and 2302.01318; on K independent chains
  recursive rejection with replacement (SpecInfer, 2305.09781), in which equal
  candidates are tried as often as they were drawn.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Rejection().reads_q
    True
  """

  needs: ClassVar[frozenset[str]] = frozenset({'iid', 'autoregressive'})
  reads_q: ClassVar[bool] = True
  proposal: ClassVar[str] = 'drawn'


@dataclasses.dataclass(frozen=True)
class RejectionWithoutReplacement(CoinRule):
  """Recursive rejection of siblings drawn without replacement (2402.14160).

  After each candidate its token is zeroed in q and q is renormalised: what the
  next sibling was drawn from. So of siblings that were drawn only the last ones
  may be invalid.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.RejectionWithoutReplacement().needs
    frozenset({'distinct'})
  """

  needs: ClassVar[frozenset[str]] = frozenset({'distinct'})
  reads_q: ClassVar[bool] = True
  proposal: ClassVar[str] = 'distinct'


def uniform(noise: types.Noise, length: jax.Array, slots: int) -> jax.Array:
  """Returns the coins [B, M] of a cycle."""
  keys = sampling_lib.fresh(noise, sampling_lib.ACCEPT, length)
  return jax.vmap(lambda key: jax.random.uniform(key, (slots,)))(keys)


def draw(p: jax.Array, noise: types.Noise, length: jax.Array) -> jax.Array:
  """Returns a token [B] of each p [B, V], drawn afresh in every cycle."""
  keys = sampling_lib.fresh(noise, sampling_lib.RESIDUAL, length)
  return jax.vmap(jax.random.categorical)(keys, jnp.log(p)).astype(jnp.int32)


def drafted_log_q(tree: types.DraftTree) -> jax.Array:
  """Returns `log_q`; an error where the tree has none."""
  if tree.log_q is None:
    raise errors.InputError(
      'the rule reads the distribution that drafts were drawn from, but the '
      'drafter proposes trees without `log_q`. Set keep_q, or use '
      'SampleAndMatch or GreedyAcceptance.'
    )
  return tree.log_q


def residual(p: jax.Array, q: jax.Array, fallback: jax.Array) -> jax.Array:
  """Returns max(p - q, 0) normalised; `fallback` where nothing is left."""
  left = jnp.maximum(p - q, 0)
  mass = left.sum(-1, keepdims=True)
  return jnp.where(mass > 0, left / jnp.where(mass > 0, mass, 1), fallback)


def walk(
  tree: types.DraftTree, p: jax.Array, coins: jax.Array, proposal: str
) -> Walk:
  """Tries the slots of a tree in their order.

  Args:
    tree: slots in the order of draws, parents before children.
    p: [B, M, V] the verifier's distribution after each slot.
    coins: [B, M] in [0, 1); slot i is accepted if its coin is below its chance.
    proposal: what slots were drawn from: 'drawn' (`log_q`), 'distinct' (`log_q`
      without the siblings tried before) or 'point' (the token itself).
  """
  log_q = p if proposal == 'point' else drafted_log_q(tree)  # or unread
  vocab_size = p.shape[-1]

  def row(tree, p, log_q, coins):
    slots = tree.token.shape[0]

    def step(carry, slot):
      on_path, deepest, target, tried = carry
      token = tree.token[slot]
      here = jax.nn.one_hot(token, vocab_size, dtype=p.dtype)
      q = here
      if proposal != 'point':
        q = jnp.exp(log_q[slot])
      if proposal == 'distinct':
        q = jnp.where(tried, 0, q)
        q = q / jnp.where(q.sum() > 0, q.sum(), 1)
      sibling = tree.valid[slot] & on_path[tree.parent[slot]]
      is_tried = sibling & (tree.depth[slot] == tree.depth[deepest] + 1)
      # What q cannot draw is not accepted: without log_q a slot does nothing.
      ratio = target[token] / jnp.where(q[token] > 0, q[token], 1)
      chance = jnp.where(q[token] > 0, jnp.minimum(1, ratio), 0)
      accepted = is_tried & (coins[slot] < chance)
      # A slot that repeats an accepted token leads on like the accepted one.
      twin = jnp.any(
        on_path & (tree.depth == tree.depth[slot]) & (tree.token == token)
      )
      on_path = on_path.at[slot].set(accepted | (sibling & ~is_tried & twin))
      left = jnp.where(is_tried, residual(target, q, p[deepest]), target)
      carry = (
        on_path,
        jnp.where(accepted, slot, deepest),
        jnp.where(accepted, p[slot], left),
        jnp.where(accepted, False, tried | (is_tried & (here > 0))),
      )
      return carry, jnp.where(is_tried, chance, -1)

    root = jnp.arange(slots) == 0
    start = (root, jnp.int32(0), p[0], jnp.zeros(vocab_size, bool))
    (_, deepest, target, _), chance = lax.scan(
      step, start, jnp.arange(1, slots, dtype=jnp.int32)
    )
    return deepest, target, jnp.concatenate([-jnp.ones(1, p.dtype), chance])

  return Walk(*jax.vmap(row)(tree, p, log_q, coins))
