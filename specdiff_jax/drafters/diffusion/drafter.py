"""SpecDiff-2's drafter: denoising passes of a masked-diffusion network."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import window
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import windows as drafter_windows
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer


@flax.struct.dataclass
class DiffusionState:
  """Keys and values of the verified tokens, and the last one's features."""

  context: Any  # per layer (keys, values), each [B, Hkv, S, Dh]
  last: jax.Array  # [B, F, E] of the token before the last committed one


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(window.Window):
  """Fills a window in one pass; a strategy makes a tree of its marginals.

  Attributes:
    config: of the network.
    gamma: slots of the window that are used, at most the network's.
    strategy: what is verified of the marginals.
    cache_dtype: of the context's keys and values.
    denoising: how the window is filled, in one pass or more.
    context_window: how many of the last verified tokens a window sees; 0 for
      all. A shorter context makes drafts of long texts cheaper.
  """

  config: drafter_network.DrafterConfig
  gamma: int
  strategy: marginals_lib.Strategy = strategies.Chain()
  cache_dtype: str = 'float32'
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()
  context_window: int = 0

  @property
  def features(self) -> tuple[int, ...]:
    return self.config.features

  def init(self, params, context, features):
    batch, bucket = features.shape[:2]
    c = self.config.verifier
    slots = transformer.cache_slots(context.cache)
    shape = (batch, c.kv_heads, slots, c.head_dim)
    positions = jnp.broadcast_to(jnp.arange(bucket), (batch, bucket))

    def place(new):
      empty = jnp.zeros(shape, self.cache_dtype)
      return layers_lib.write_rows(empty, new, jnp.zeros(batch, jnp.int32))

    state = self._context(params, features, positions)
    last = features[jnp.arange(batch), jnp.maximum(context.length - 2, 0)]
    return DiffusionState(jax.tree.map(place, state), last)

  def _context(self, params, features, positions):
    return drafter_network.DrafterNetwork(self.config).apply(
      {'params': params.network}, features, positions, method='context'
    )

  def draft(self, params, state, context, sampling, noise, slots):
    anchors = (context.length - 1)[:, None]
    keys, first = self._visible(state.context, context.length)
    root = jnp.take_along_axis(context.tokens, anchors, axis=1)[:, 0]

    def run(decided, index):
      """One pass: the marginals, given what is decided of the window."""
      revealed = None
      if decided is not None:
        revealed = (decided[:, None], params.vocab[index][:, None])
      x = drafter_windows.fill(
        self.config,
        params.network,
        context.verifier['embed'],
        context.tokens,
        anchors,
        state.last[:, None],
        keys,
        first,
        revealed,
      )[:, 0]
      return marginals_lib.Marginals(
        logits=layers_lib.dense(x, params.head),
        ids=params.vocab,
        root=root,
        length=context.length,
        vocab_size=self.config.verifier.vocab_size,
      )

    return self.tree(run, sampling, noise, slots), state

  def _visible(self, context, length):
    """Returns the keys and values that a window sees, and where they begin."""
    window = self.context_window
    if not window or context[0][0].shape[2] <= window:
      return context, None
    first = jnp.maximum(length - 1 - window, 0)

    def cut(array):  # [B, Hkv, S, Dh]
      return jax.vmap(
        lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, window, axis=1)
      )(array, first)

    return jax.tree.map(cut, context), first

  def observe(self, params, state, context, verdict, features):
    start = context.length - 1
    positions = start[:, None] + jnp.arange(features.shape[1])
    new = self._context(params, features, positions)
    written = jax.tree.map(
      lambda old, x: layers_lib.write_rows(old, x, start), state.context, new
    )
    last = features[jnp.arange(start.shape[0]), verdict.count]
    return DiffusionState(written, last)
