"""The training forward of DFlash drafters: many blocks in one pass.

Blocks of one text lie in one row, each over the context before its anchor
(2602.06036). Tokens that are shown stand in their slots in place of masks, as
those that a first draft decided do in serving (D2SD, 2606.04446).
"""

import jax.numpy as jnp

from specdiff_jax.data import windows
from specdiff_jax.drafters import scores
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks


def score_of(config: dflash.TrainedConfig, remat: bool = False) -> scores.Score:
  """Returns the score of windows that are the masks of a block.

  With `remat` each layer is computed again on the way back.
  """

  def score(params, view, batch, gamma, shown=None):
    targets, valid = windows.targets(batch, gamma)
    slots = jnp.full_like(targets, config.mask_id)
    if shown is not None:
      slots = jnp.where(shown & valid, targets, slots)
    tokens, anchors = batch.tokens, batch.anchors
    first = jnp.take_along_axis(tokens, anchors, axis=1)
    block = jnp.concatenate([first[..., None], slots], axis=-1)
    sizes = config.run_as
    drafted = sizes.first
    block = block[..., : gamma + drafted]
    network = dflash.DFlash(sizes, remat=remat)
    context = networks.apply(
        network, params, batch.features.astype(jnp.float32),
        jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
        method='context',
    )  # fmt: skip
    x = layers_lib.lookup(view.embed, block)
    states = networks.apply(network, params, x, anchors, context)
    return scores.of_windows(states[:, :, drafted:], batch.anchors, block.size)

  return score
