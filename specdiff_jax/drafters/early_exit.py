"""Self-speculation: the verifier's first layers draft for all of them.

There is nothing to train or to load: the state after layer n goes through the
verifier's own final norm and head (Draft & Verify, 2309.08168, skips layers
in its middle instead). The keys of the committed tokens are in the verifier's
cache already; those of drafted tokens go to a copy of these layers' part of
it, which lives as long as the draft. The copy is small beside the weights that
the draft reads.
"""

import dataclasses

import jax.numpy as jnp

from specdiff_jax.drafters import chain
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import drafter as autoregressive
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class EarlyExit(chain.Chain):
  """Drafts token by token with the first layers of the verifier.

  Attributes:
    config: the verifier's sizes.
    layers: n, how many of its layers run.
    gamma: tokens of a draft.
    strategy: how a distribution becomes a token.
  """

  config: config_lib.TransformerConfig
  layers: int
  gamma: int
  strategy: strategies.Chain = strategies.Chain()

  def __post_init__(self):
    config_lib.require_transformer(self.config, 'early_exit')

  @property
  def proposal(self) -> str:
    return autoregressive.proposal(self.strategy)

  def draft(self, params, state, context, sampling, noise, slots):
    del params
    ids = jnp.arange(self.config.vocab_size)
    draws = autoregressive.draws(
      self.strategy, context, sampling, noise, slots - 1, ids
    )
    cache = context.cache.first(self.layers)
    index = jnp.arange(cache.slots)
    chosen, logits = [context.last[:, None]], []
    for j in range(slots - 1):  # unrolled: faster than a scan on CPU
      start = context.length - 1 + j
      x, cache = transformer.first_layers(
        self.config,
        context.params,
        self.layers,
        transformer.scaled(self.config, context.embed(chosen[-1])),
        start[:, None],
        index <= start[:, None, None],
        cache,
        start,
      )
      logits.append(context.head(x[:, 0]))
      chosen.append(draws.token(j, logits[-1]))
    return draws.tree(chosen, logits), state
