"""Filling a window of masked slots in several passes (SpecDiff, 2408.05636).

Each pass but the last decides a part of the slots, those that the network is
surest of, and the next pass sees them. The last pass gives the marginals that
drafts are made of, with the decided slots as point masses.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specdiff_jax.core import jax_settings
from specdiff_jax.drafters import marginals as marginals_lib


class Revealed(NamedTuple):
  """What a pass is given of its window."""

  decided: jax.Array  # [B, G] bool
  index: jax.Array  # [B, G] which of the W tokens, where decided


@dataclasses.dataclass(frozen=True)
class Denoising:
  """How many passes, and which slots are decided first.

  Attributes:
    steps: passes of the network; 1 is SpecDiff-2's.
    order: 'confidence' (largest probability of a token first), 'entropy'
      (smallest entropy first) or 'random' (by the text's length alone).
    remask: decide anew in every pass, also slots that were decided before.
  """

  steps: int = 1
  order: str = 'confidence'
  remask: bool = False

  def reveal(
    self,
    step: int,
    marginals: marginals_lib.Marginals,
    choice: jax.Array,
    before: Revealed | None,
  ) -> Revealed:
    """Returns what pass `step` (from 1 on) is given.

    Args:
      step: how many passes there were.
      marginals: of the last of them.
      choice: [B, G] the token that each slot takes, by its index.
      before: what the last of them was given; the first: None.
    """
    gamma = choice.shape[1]
    wanted = -(-gamma * step // self.steps)  # decided after this pass
    if before is None or self.remask:
      free, index = jnp.ones(choice.shape, bool), choice
    else:
      free = ~before.decided
      index = jnp.where(free, choice, before.index)
    sure = jnp.where(free, self._sureness(marginals), jnp.inf)
    rank = jnp.argsort(jnp.argsort(-sure, axis=1, stable=True), axis=1)
    return Revealed(rank < wanted, index)

  def settled(
    self, marginals: marginals_lib.Marginals, revealed: Revealed | None
  ) -> marginals_lib.Marginals:
    """Returns the marginals of the last pass, which was given `revealed`."""
    if revealed is None or self.remask:
      return marginals
    token = jax.nn.one_hot(
      revealed.index, marginals.logits.shape[-1], dtype=bool
    )
    fixed = jnp.where(token, 0.0, -jnp.inf)
    decided = revealed.decided[..., None]
    return marginals.replace(logits=jnp.where(decided, fixed, marginals.logits))

  def _sureness(self, marginals):
    log_q = jax.nn.log_softmax(marginals.logits, axis=-1)
    if self.order == 'confidence':
      return log_q.max(axis=-1)
    if self.order == 'entropy':
      return jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax_settings.key(0), marginals.length
    )
    draw = lambda key: jax.random.uniform(key, log_q.shape[1:2])
    return jax.vmap(draw)(keys)
