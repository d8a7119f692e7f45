"""DFlash (2602.06036): a block of masks, filled with the verifier's states.

The verifier's hidden states of each verified token become keys and values of
the drafter once; a draft then runs over the last committed token and masks.
"""

import dataclasses

import jax.numpy as jnp

from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import window
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks


@dataclasses.dataclass(frozen=True)
class Block(window.SharedContext):
  """Fills the slots of a block; a strategy makes a tree of the marginals.

  The state is the KV cache of the verified tokens, which are those before the
  last committed one.

  Attributes:
    config: of the network.
    gamma: slots that are used, at most the block's without its first.
    strategy: what is verified of the marginals.
    denoising: how the block is filled, in one pass or more.
  """

  config: dflash.DFlashConfig
  gamma: int
  strategy: marginals_lib.Strategy = strategies.Chain()
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()

  @property
  def features(self) -> tuple[int, ...]:
    return self.config.features

  def init(self, params, context):
    del params
    return cache_lib.empty(
      self.config.network,
      context.length.shape[0],
      context.cache.slots,
      context.cache.dtype,
    )

  def read(self, params, state, context, features, start):
    del context
    return self._keep(params, state, features, start)

  def branches(self, params, state, context, token=None, shown=None):
    anchor, size = context.length - 1, self.config.gamma
    masks = jnp.full((anchor.size, 1, size), self.config.mask_id)
    if token is not None and shown is not None:
      room = (0, 0), (0, 0), (0, size - shown.shape[2])
      token, shown = jnp.pad(token, room), jnp.pad(shown, room)
      masks = jnp.where(shown, token, masks)
    first = jnp.broadcast_to(context.last[:, None, None], masks[..., :1].shape)
    # The embedding as it is stored: DFlash knows no scale of it.
    x = networks.apply(
      dflash.DFlash(self.config),
      params.network,
      context.embed(
        jnp.concatenate([first, masks], axis=-1)[..., : self.config.block]
      ),
      jnp.broadcast_to(anchor[:, None], masks.shape[:2]),
      state.layers,
      serving=True,
    )[:, :, self.config.first :]
    head = params.head
    logits = context.head(x) if head is None else layers_lib.dense(x, head)
    # The network never drafts the mask, whatever the head makes of it.
    vocab_size = context.verifier.vocab_size
    ids = params.vocab
    if ids is None:
      ids = jnp.arange(vocab_size, dtype=jnp.int32)
    return marginals_lib.Marginals(
      logits=logits + jnp.where(ids == self.config.mask_id, -jnp.inf, 0.0),
      ids=ids,
      root=context.last,
      length=context.length,
      vocab_size=vocab_size,
      states=x,
      edges=params.edges,
    )

  def observe(self, params, state, context, verdict, features, slots):
    del verdict, slots
    return self._keep(params, state, features, context.length - 1)

  def _keep(self, params, cache, features, start):
    """Returns the cache with the pairs of features [B, M, F, E] from start."""
    positions = start[:, None] + jnp.arange(features.shape[1])
    network = dflash.DFlash(self.config)
    return cache.written(
      networks.apply(
        network, params.network, features, positions, method='context'
      ),
      start,
    )
