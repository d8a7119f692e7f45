"""Self-speculation: the verifier's first layers draft for all of them.

There is nothing to train or to load: the state after layer n goes through the
verifier's own final norm and head (Draft & Verify, 2309.08168, skips layers
in its middle instead). The keys of the committed tokens are in the verifier's
cache already; those of drafted tokens go to a copy of these layers' part of
it, which lives as long as the draft. The copy is small beside the weights that
the draft reads.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import drafter as autoregressive
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class EarlyExit:
  """Drafts token by token with the first layers of the verifier.

  Attributes:
    config: the verifier's sizes.
    layers: n, how many of its layers run.
    gamma: tokens of a draft.
    strategy: how a law becomes a token.
  """

  config: config_lib.TransformerConfig
  layers: int
  gamma: int
  strategy: strategies.Chain = strategies.Chain()

  chain: ClassVar[bool] = True
  features: ClassVar[tuple[int, ...]] = ()

  def __post_init__(self):
    config_lib.require_transformer(self.config, 'early_exit')

  @property
  def proposal(self) -> str:
    return autoregressive.proposal(self.strategy)

  @property
  def buckets(self) -> tuple[int, ...]:
    return (self.gamma + 1,)

  @property
  def max_depth(self) -> int:
    return self.gamma

  def init(self, params, context, features):
    del params, context, features
    return ()

  def draft(self, params, state, context, sampling, noise, slots):
    del params
    verifier = context.verifier
    head = verifier['embed' if self.config.tied_head else 'head']

    def step(tokens, start, cache):
      index = jnp.arange(cache[0][0].shape[2])
      x, cache = transformer.first_layers(
        self.config,
        verifier,
        self.layers,
        transformer.embedded(self.config, verifier['embed'], tokens),
        start[:, None],
        index <= start[:, None, None],
        cache,
        start,
      )
      return layers_lib.dense(x[:, 0], head), cache

    rows = jnp.arange(context.length.shape[0])
    last = context.tokens[rows, context.length - 1][:, None]
    tree, _ = autoregressive.drafted(
      self.strategy,
      step,
      last,
      jnp.arange(self.config.vocab_size),
      self._cache(context.cache),
      context,
      sampling,
      noise,
      slots - 1,
    )
    return tree, state

  def _cache(self, cache):
    """Returns (keys, values) of the first layers, unrolled or stacked."""
    if self.config.scan_layers:
      return tuple(
        jax.tree.map(lambda x: x[i], cache) for i in range(self.layers)
      )
    return cache[: self.layers]

  def observe(self, params, state, context, verdict, features):
    del params, context, verdict, features
    return state
