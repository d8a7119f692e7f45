"""What the windows of each family of drafters predict, for any loss."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from specdiff_jax.data import windows
from specdiff_jax.models import causal_network
from specdiff_jax.models import drafter_network
from specdiff_jax.models import drafter_windows
from specdiff_jax.models import views


@flax.struct.dataclass
class Predictions:
  """P predictions for each row, and which of them each slot is."""

  states: jax.Array  # [B, P, E] what the head reads
  position: jax.Array  # [B, P] each predicts the token after this one
  place: jax.Array  # [B, W, G] int32 in 0..P-1
  # Tokens that passed the drafter for them, beside those of the rows.
  extra_tokens: int = flax.struct.field(pytree_node=False, default=0)


# (params, view, batch, gamma, shown [B, W, G] or None) -> Predictions
Score = Callable[..., Predictions]


def diffusion_score(
  config: drafter_network.DrafterConfig, remat: bool = False
) -> Score:
  """Returns the score of windows that are drafted in one pass.

  With `remat` each layer is computed again on the way back.
  """

  def score(params, view, batch, gamma, shown=None):
    targets, valid = windows.targets(batch, gamma)
    states = drafter_windows.window_states(
      config,
      params,
      view.embed,
      batch.tokens,
      batch.features.astype(jnp.float32),
      batch.anchors,
      None if shown is None else (shown & valid, targets),
      remat,
    )
    rows = targets.shape[0]
    place = jnp.arange(targets[0].size).reshape(targets[0].shape)
    return Predictions(
      states=states.reshape(rows, -1, states.shape[-1]),
      position=_places(batch, gamma).reshape(rows, -1),
      place=jnp.broadcast_to(place, targets.shape),
      extra_tokens=targets.size,
    )

  return score


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


def causal_score(config: causal_network.CausalConfig) -> Score:
  """Returns the score of windows that are drafted token by token.

  Each law is conditioned on the trajectory's own tokens before it, whose law
  is the same in every window: one pass over the trajectory scores them all.
  While a window's tokens match, a drafter that runs freely has the same ones
  before it, so that what serving would accept is exact.
  """

  def score(params, view, batch, gamma, shown=None):
    del shown  # it sees every token before a slot as it is
    tokens = batch.tokens
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = views.causal_mask(jnp.full(rows, length), length)
    states, _ = causal_network.run(
      config, params, view.embed, tokens, positions, mask
    )
    # Past the row's end there is no target.
    place = jnp.minimum(_places(batch, gamma), length - 1)
    return Predictions(states, positions, place)

  return score


def _places(batch, gamma):
  """Returns [B, W, G], the position before each slot's."""
  return batch.anchors[..., None] + jnp.arange(gamma)
