"""The training forward of diffusion drafters: many windows in one pass."""

import jax.numpy as jnp

from specdiff_jax.data import windows
from specdiff_jax.drafters import scores
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import windows as drafter_windows


def score_of(
  config: drafter_network.DrafterConfig, remat: bool = False
) -> scores.Score:
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
    return scores.of_windows(states, batch.anchors, targets.size)

  return score
