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
from specdiff_jax.models import networks


@dataclasses.dataclass(frozen=True)
class Block(window.Window):
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

  def denoise(self, params, state, context, sampling, noise):
    marginals = revealed = None
    for step in range(self.denoising.steps):
      revealed = self.reveal(step, marginals, revealed, sampling, noise)
      marginals = self._marginals(params, state, context, revealed)
    return self.settled(marginals, revealed), state

  def _marginals(self, params, cache, context, revealed):
    """Runs one pass, given what is decided of the block."""
    anchor, vocab_size = context.length - 1, context.verifier.vocab_size
    masks = jnp.full((anchor.size, self.config.gamma), self.config.mask_id)
    filled = masks
    if revealed is not None:
      filled = jnp.where(revealed.decided, revealed.index, masks)
    # The embedding as it is stored: DFlash knows no scale of it.
    x = networks.apply(
      dflash.DFlash(self.config),
      params,
      context.embed(jnp.concatenate([context.last[:, None], filled], axis=1)),
      anchor[:, None] + jnp.arange(self.config.block),
      cache.layers,
      jnp.arange(cache.slots) < anchor[:, None],
    )
    # The network never drafts the mask, whatever the head makes of it.
    ids = jnp.arange(vocab_size, dtype=jnp.int32)
    barred = jnp.where(ids == self.config.mask_id, -jnp.inf, 0.0)
    return marginals_lib.Marginals(
      logits=context.head(x[:, 1:]) + barred,
      ids=ids,
      root=context.last,
      length=context.length,
      vocab_size=vocab_size,
    )

  def observe(self, params, state, context, verdict, features, slots):
    del verdict, slots
    return self._keep(params, state, features, context.length - 1)

  def _keep(self, params, cache, features, start):
    """Returns the cache with the pairs of features [B, M, F, E] from start."""
    positions = start[:, None] + jnp.arange(features.shape[1])
    network = dflash.DFlash(self.config)
    return cache.written(
      networks.apply(network, params, features, positions, method='context'),
      start,
    )
