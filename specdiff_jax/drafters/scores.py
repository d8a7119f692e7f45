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


def of_windows(
  states: jax.Array,
  anchors: jax.Array,
  extra_tokens: int,
  head: jax.Array | None = None,
) -> Predictions:
  """Returns the predictions of windows that share none: P = W G.

  Args:
    states: [B, W, G, E] of each slot.
    anchors: [B, W] the position of the last committed token before a window.
    extra_tokens: as in `Predictions`.
    head: as in `Predictions`.
  """
  rows, windows, gamma, width = states.shape
  flat = rows, windows * gamma
  place = jnp.arange(windows * gamma).reshape(windows, gamma)
  return Predictions(
    states=states.reshape(*flat, width),
    position=places(anchors, gamma).reshape(flat),
    place=jnp.broadcast_to(place, (rows, windows, gamma)),
    extra_tokens=extra_tokens,
    head=head,
  )


# (params, view, batch, gamma, shown [B, W, G] or None) -> Predictions
Score = Callable[..., Predictions]


def in_dtype(score: Callable[..., Any], dtype: str) -> Callable[..., Any]:
  """Returns a score, or a loss, that computes with params rounded to dtype.

  Matrices alone: they are most of the time and memory. Gradients, and what is
  trained, stay in the dtype of the params.
  """

  if dtype == 'float32':  # as they are trained
    return score

  def rounded(params, *rest):
    params = jax.tree.map(
      lambda x: x.astype(dtype) if x.ndim > 1 else x, params
    )
    return score(params, *rest)

  return rounded


def places(anchors: jax.Array, gamma: int) -> jax.Array:
  """Returns [B, W, G], the position before each slot's."""
  return anchors[..., None] + jnp.arange(gamma)
