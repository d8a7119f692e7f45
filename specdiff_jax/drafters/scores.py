"""What the windows of each family of drafters predict, for any loss."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Predictions:
  """P predictions for each row, and which of them each slot is."""

  states: jax.Array  # [B, P, E] what the head reads
  position: jax.Array  # [B, P] each predicts the token after this one
  place: jax.Array  # [B, W, G] int32 in 0..P-1
  # Tokens that passed the drafter for them, beside those of the rows.
  extra_tokens: int = flax.struct.field(pytree_node=False, default=0)
  # [W, E] rows that states are multiplied with; None: of the verifier's head.
  head: jax.Array | None = None
  confidence: jax.Array | None = None  # [B, P] logits of `heads.Confidence`


# (params, view, batch, gamma, shown [B, W, G] or None) -> Predictions
Score = Callable[..., Predictions]


def in_dtype(score: Score, dtype: Any) -> Score:
  """Returns a score that computes with params rounded to dtype.

  Matrices alone: they are most of the time and memory. Gradients, and what is
  trained, stay in the dtype of the params.
  """

  def rounded(params, *rest):
    params = jax.tree.map(
      lambda x: x.astype(dtype) if x.ndim > 1 else x, params
    )
    return score(params, *rest)

  return rounded


def places(batch, gamma):
  """Returns [B, W, G], the position before each slot's."""
  return batch.anchors[..., None] + jnp.arange(gamma)
