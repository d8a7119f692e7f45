"""SpecDiff-2's drafter: denoising passes of a masked-diffusion network."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from specdiff_jax.core import chunks
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import window
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import windows as drafter_windows
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks


@flax.struct.dataclass
class DiffusionState:
  """The KV cache of the verified tokens, and the last one's features."""

  context: cache_lib.Cache
  last: jax.Array  # [B, F, E] of the token before the last committed one


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(window.SharedContext):
  """Fills a window in one pass; a strategy makes a tree of its marginals.

  Attributes:
    config: of the network.
    gamma: slots of the window that are used, at most the network's.
    strategy: what is verified of the marginals.
    denoising: how the window is filled, in one pass or more.
    context_window: how many of the last verified tokens a window sees; 0 for
      all. A shorter context makes drafts of long texts cheaper.
  """

  config: drafter_network.DrafterConfig
  gamma: int
  strategy: marginals_lib.Strategy = strategies.Chain()
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()
  context_window: int = 0

  @property
  def features(self) -> tuple[int, ...]:
    return self.config.features

  @property
  def takes_prefixes(self) -> bool:
    return self.config.ngram > 0

  def init(self, params, context):
    del params
    batch = context.length.shape[0]
    layers = dataclasses.replace(
      self.config.verifier, layers=self.config.layers, scan_layers=False
    )
    cache = cache_lib.empty(
      layers, batch, context.cache.slots, context.cache.dtype
    )
    features = len(self.features), self.config.verifier.width
    return DiffusionState(cache, jnp.zeros((batch, *features), jnp.float32))

  def read(self, params, state, context, features, start):
    last = chunks.last(state.last, features, context.length - 2 - start)
    return DiffusionState(
      self._written(params, state.context, features, start), last
    )

  def _written(self, params, cache, features, start):
    """Returns the cache with the pairs of features [B, M, F, E] from start."""
    positions = start[:, None] + jnp.arange(features.shape[1])
    pairs = networks.apply(
        drafter_network.DrafterNetwork(self.config), params.network, features,
        positions, method='context',
    )  # fmt: skip
    return cache.written(pairs, start)

  def branches(self, params, state, context, token=None, shown=None):
    cache, first = self._seen(state.context, context.length)
    anchors, last = (context.length - 1)[:, None], state.last[:, None]
    revealed = None
    if token is not None and shown is not None:
      room = (0, 0), (0, 0), (0, self.config.gamma - shown.shape[2])
      revealed = jnp.pad(shown, room), jnp.pad(token, room)
      anchors = jnp.broadcast_to(anchors, shown.shape[:2])
      last = jnp.broadcast_to(last, shown.shape[:2] + last.shape[2:])
    x = drafter_windows.fill(
      self.config,
      params.network,
      context.embed,
      context.tokens,
      anchors,
      last,
      cache.layers,
      first,
      revealed,
      serving=True,
    )
    return marginals_lib.Marginals(
      logits=layers_lib.dense(x, params.head),
      ids=params.vocab,
      root=context.last,
      length=context.length,
      vocab_size=context.verifier.vocab_size,
      states=x,
      edges=params.edges,
    )

  def _seen(self, cache, length):
    """Returns the KV cache that a window sees, and where it begins."""
    window = self.context_window
    if not window or cache.slots <= window:
      return cache, None
    first = jnp.maximum(length - 1 - window, 0)
    return cache.window(first, window), first

  def observe(self, params, state, context, verdict, features, slots):
    del slots
    start = context.length - 1
    last = features[jnp.arange(start.shape[0]), verdict.count]
    return DiffusionState(
      self._written(params, state.context, features, start), last
    )
