"""DFlash (2602.06036): a block of masks, filled with the verifier's states.

The verifier's hidden states of each verified token become keys and values of
the drafter once; a draft then runs over the last committed token and masks.
"""

import dataclasses

import jax
import jax.numpy as jnp

from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import window
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks
from specdiff_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class Block(window.Window):
  """Fills the slots of a block; a strategy makes a tree of the marginals.

  The state is each layer's keys and values of the verified tokens, which are
  those before the last committed one.

  Attributes:
    config: of the network.
    verifier: the sizes of the verifier, whose embedding and head are used.
    gamma: slots that are used, at most the block's without its first.
    strategy: what is verified of the marginals.
    cache_dtype: of the context's keys and values.
    denoising: how the block is filled, in one pass or more.
  """

  config: dflash.DFlashConfig
  verifier: networks.Config
  gamma: int
  strategy: marginals_lib.Strategy = strategies.Chain()
  cache_dtype: str = 'float32'
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()

  @property
  def features(self) -> tuple[int, ...]:
    return self.config.features

  def init(self, params, context, features):
    batch, bucket = features.shape[:2]
    state = transformer.empty_cache(
      self.config.network,
      batch,
      transformer.cache_slots(context.cache),
      self.cache_dtype,
    )
    positions = jnp.broadcast_to(jnp.arange(bucket), (batch, bucket))
    start = jnp.zeros(batch, jnp.int32)
    return self._keep(params, state, features, positions, start)

  def draft(self, params, state, context, sampling, noise, slots):
    anchor = context.length - 1
    root = jnp.take_along_axis(context.tokens, anchor[:, None], axis=1)
    masks = jnp.full((root.shape[0], self.config.gamma), self.config.mask_id)
    positions = anchor[:, None] + jnp.arange(self.config.block)
    # The network never drafts the mask, whatever the head makes of it.
    ids = jnp.arange(self.verifier.vocab_size, dtype=jnp.int32)
    barred = jnp.where(ids == self.config.mask_id, -jnp.inf, 0.0)
    seen = jnp.arange(transformer.cache_slots(state)) < anchor[:, None]

    def run(decided, choice):
      """One pass: the marginals, given what is decided of the block."""
      filled = masks if decided is None else jnp.where(decided, choice, masks)
      tokens = jnp.concatenate([root, filled], axis=1)
      # The embedding as it is stored: DFlash knows no scale of it.
      x = layers_lib.lookup(context.verifier['embed'], tokens)
      x = dflash.DFlash(self.config).apply(
        {'params': params}, x, positions, state, seen
      )
      logits = networks.network(self.verifier).apply(
        {'params': context.verifier}, x[:, 1:], method='logits'
      )
      return marginals_lib.Marginals(
        logits=logits + barred,
        ids=ids,
        root=root[:, 0],
        length=context.length,
        vocab_size=self.verifier.vocab_size,
      )

    return self.tree(run, sampling, noise, slots), state

  def observe(self, params, state, context, verdict, features):
    del verdict
    start = context.length - 1
    positions = start[:, None] + jnp.arange(features.shape[1])
    return self._keep(params, state, features, positions, start)

  def _keep(self, params, state, features, positions, start):
    """Returns the keys with those of features [B, M, F, E] from start on."""
    new = dflash.DFlash(self.config).apply(
      {'params': params}, features, positions, method='context'
    )
    return jax.tree.map(
      lambda old, x: layers_lib.write_rows(old, x, start), state, new
    )
