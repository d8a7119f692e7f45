"""Filling a window of masked slots in several passes (SpecDiff, 2408.05636).

Each pass but the last decides a part of the slots, those that the network is
surest of, and the next pass sees them. The last pass gives the marginals that
drafts are made of, with the decided slots as point masses.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from specdiff_jax.drafters import marginals as marginals_lib

# run(decided [B, G] or None, index [B, G] or None) -> Marginals
Run = Callable[[jax.Array | None, jax.Array | None], marginals_lib.Marginals]


@dataclasses.dataclass(frozen=True)
class Denoising:
  """How many passes, and which slots are decided first.

  Attributes:
    steps: passes of the network; 1 is SpecDiff-2's.
    order: 'confidence' (largest probability of a token first) or 'entropy'
      (smallest entropy first).
    remask: decide anew in every pass, also slots that were decided before.
  """

  steps: int = 1
  order: str = 'confidence'
  remask: bool = False

  def __call__(
    self, run: Run, pick: Callable[[marginals_lib.Marginals], jax.Array]
  ) -> marginals_lib.Marginals:
    """Returns the marginals of the last pass; pick(marginals) -> [B, G]."""
    marginals = run(None, None)
    gamma = marginals.logits.shape[1]
    decided = jnp.zeros(marginals.logits.shape[:2], bool)
    index = jnp.zeros(decided.shape, jnp.int32)
    for step in range(1, self.steps):
      wanted = -(-gamma * step // self.steps)  # decided after this pass
      free = jnp.ones_like(decided) if self.remask else ~decided
      index = jnp.where(free, pick(marginals), index)
      sure = jnp.where(free, self._sureness(marginals), jnp.inf)
      rank = jnp.argsort(jnp.argsort(-sure, axis=1, stable=True), axis=1)
      decided = rank < wanted
      marginals = run(decided, index)
    if self.steps == 1 or self.remask:
      return marginals
    token = jax.nn.one_hot(index, marginals.logits.shape[-1], dtype=bool)
    fixed = jnp.where(token, 0.0, -jnp.inf)
    return marginals.replace(
      logits=jnp.where(decided[..., None], fixed, marginals.logits)
    )

  def _sureness(self, marginals):
    log_q = jax.nn.log_softmax(marginals.logits, axis=-1)
    if self.order == 'confidence':
      return log_q.max(axis=-1)
    return jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
