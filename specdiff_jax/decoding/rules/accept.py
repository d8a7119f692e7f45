"""Acceptance: which pairs are lossless, rule M, self-selection before a rule.

`rejection.py` and `block_verification.py` hold the rules that draw coins of
their own.
Which rule is lossless for which drafts is in each rule's `needs`, and `check`
refuses all other pairs.
"""

import dataclasses
from typing import ClassVar

import chex
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types


def check(drafter: protocols.Drafter, rule: protocols.AcceptanceRule) -> None:
  """Raises InputError unless the rule is lossless for the drafter's trees."""
  what, name = drafter.proposal, type(rule).__name__
  if what not in rule.needs:
    needs = ' or '.join(repr(p) for p in sorted(rule.needs))
    raise errors.InputError(
      f'{name} is not lossless for drafts that are {what!r} '
      f'({protocols.PROPOSALS[what]}): it needs {needs}. Use the rule '
      'SampleAndMatch, which is lossless for any draft, or draw the drafts '
      'in another way.'
    )
  if rule.one_chain and not drafter.chain:
    raise errors.InputError(
      f'{name} walks a single chain, but the drafter proposes trees. Use '
      'SampleAndMatch, or draft a single chain.'
    )


@dataclasses.dataclass(frozen=True)
class SampleAndMatch:
  """Rule M: draw one token y ~ p at each node, move to the child that has it.

  Lossless for any tree, drafter and selection, since the emitted token is the
  verifier's own draw; temperature 0 is the case y = argmax. The noise is keyed
  by position, so the output equals seeded plain sampling token for token.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.SampleAndMatch().needs >= sd.Rejection().needs
    True
  """

  needs: ClassVar[frozenset[str]] = frozenset(protocols.PROPOSALS)
  reads_q: ClassVar[bool] = False
  one_chain: ClassVar[bool] = False

  def __call__(
    self,
    tree: types.DraftTree,
    logits: jax.Array,
    length: jax.Array,
    sampling: types.Sampling,
    noise: types.Noise,
    max_depth: int,
  ) -> types.Verdict:
    """See `AcceptanceRule`. The token after depth d has position length + d."""
    chex.assert_shape(logits, (*tree.token.shape, None))
    positions = length[:, None] + tree.depth
    token = sampling_lib.choose(
      logits, positions, sampling, noise, span=max_depth + 1
    )
    return tree_lib.matched_path(tree, token, max_depth)


@dataclasses.dataclass(frozen=True)
class SelfSelection:
  """SpecDiff-2's selection: the best single path, then a rule on it alone.

  The score of a path is the expected length of its accepted prefix,
    S(x) = sum_m prod_{j <= m} p_j(x_j | s, x_{<j})    (2511.00606, Eq. 7),
  which the verification pass gives for every path of the tree. Lossless only
  for rules that need no q: the selected draft is no longer distributed as q.

  At the same cost `SampleAndMatch` on the whole tree never accepts less: it
  follows whichever path matches.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.SelfSelection(sd.Rejection())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    specdiff_jax.core.errors.InputError: Rejection reads q, but ...
  """

  rule: protocols.AcceptanceRule = SampleAndMatch()

  reads_q: ClassVar[bool] = False
  one_chain: ClassVar[bool] = False

  def __post_init__(self):
    if self.rule.reads_q:
      raise errors.InputError(
        f'{type(self.rule).__name__} reads q, but a draft that was selected '
        'is no longer distributed as q: the output would be biased towards '
        'what the selection likes. Use SampleAndMatch or GreedyAcceptance.'
      )

  @property
  def needs(self) -> frozenset[str]:
    return self.rule.needs

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
    kept = best_path(tree, chances(tree, logits, sampling), max_depth)
    alone = tree.replace(valid=tree.valid & kept)
    return self.rule(alone, logits, length, sampling, noise, max_depth)


def chances(
  tree: types.DraftTree, logits: jax.Array, sampling: types.Sampling
) -> jax.Array:
  """Returns [B, M]: p of each slot's token after its parent; logits [B, M, V].

  Only these entries of p are computed: normalising all of p would cost as much
  as the rest of the cycle's bookkeeping.
  """
  rows = jnp.arange(tree.token.shape[0])[:, None]
  best = jnp.argmax(logits, axis=-1)[rows, tree.parent]
  greedy = (best == tree.token).astype(logits.dtype)

  def sampled():
    scores = sampling_lib.warped(logits, sampling)
    total = jax.nn.logsumexp(scores, axis=-1)[rows, tree.parent]
    p = jnp.exp(scores[rows, tree.parent, tree.token] - total)
    return jnp.where(sampling.temperature[:, None] > 0, p, greedy)

  return lax.cond(jnp.any(sampling.temperature > 0), sampled, lambda: greedy)


def best_path(
  tree: types.DraftTree, chance: jax.Array, max_depth: int
) -> jax.Array:
  """Returns [B, M]: the slots of the path of largest score (Eq. 7).

  Args:
    tree: the drafts; ties go to the path whose last slot is first.
    chance: [B, M] the verifier's p of each slot's token after its parent.
    max_depth: D.
  """
  line = tree_lib.lines(tree)
  step = jnp.where(tree.valid, chance, 0.0)[:, None, None]
  # [B, M, D] of a slot's line, the root's child first; 0 past the slot.
  depth = jnp.arange(1, max_depth + 1)[:, None]
  at = line[:, :, None] & (tree.depth[:, None, None] == depth)
  steps = jnp.sum(jnp.where(at, step, 0.0), axis=-1)
  reach, score = 1.0, jnp.zeros(tree.token.shape)
  for i in range(max_depth):  # equal lines are to have equal sums
    reach *= steps[..., i]
    score += reach
  best = jnp.argmax(score, axis=1)
  return jnp.take_along_axis(line, best[:, None, None], axis=1)[:, 0]
