"""The training forward of autoregressive drafters: one pass a trajectory."""

import jax.numpy as jnp

from specdiff_jax.drafters import scores
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.models import layers
from specdiff_jax.models import views


def score_of(config: causal_network.CausalConfig) -> scores.Score:
  """Returns the score of windows that are drafted token by token.

  Each distribution is conditioned on the trajectory's own tokens before it,
  and so is the same in every window: one pass over the trajectory scores all.
  While a window's tokens match, a drafter that runs freely has the same ones
  before it, so that what serving would accept is exact.
  """

  def score(params, view, batch, gamma, shown=None):
    del shown  # it sees every token before a slot as it is
    tokens = batch.tokens
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = views.causal_mask(jnp.full(rows, length), length)
    x = layers.lookup(view.embed, tokens)
    states, _ = causal_network.over(config, params, x, positions, mask)
    # Past the row's end there is no target.
    place = jnp.minimum(scores.places(batch.anchors, gamma), length - 1)
    return scores.Predictions(states, positions, place)

  return score
