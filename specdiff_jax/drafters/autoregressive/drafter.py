"""SpS (2302.01318): a small autoregressive drafter with a cache of its own.

The cache is indexed by position and never rolled back: keys of accepted tokens
stay, others are overwritten. With committed tokens a b c d, three of them read
by the drafter when c and d were still drafts, a draft looks like

    position   0  1  2  3  4  5
    step 1           c  d         2 tokens: c may have no key yet, d has none
    step 2                 x      the first drafted token
    step 3                    y   and so on; the last one is never read

so that after a fully accepted chain, whose last token was not read, nothing is
missing: the next draft begins with it.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import chain
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import layers as layers_lib

_CHUNK = 64  # prompt tokens that the drafter reads at once


@dataclasses.dataclass(frozen=True)
class Autoregressive(chain.Chain):
  """Drafts one token after the other.

  Attributes:
    config: of the network.
    gamma: tokens of a draft.
    strategy: how a distribution becomes a token.
  """

  config: causal_network.CausalConfig
  gamma: int
  strategy: strategies.Chain = strategies.Chain()

  @property
  def proposal(self) -> str:
    return proposal(self.strategy)

  def init(self, params, context):
    """Reads the prompt, in as many chunks as the longest row has."""
    batch, buffer = context.tokens.shape
    room = context.cache.slots
    cache = cache_lib.empty(
      self.config.network, batch, room, context.cache.dtype
    )
    size = min(_CHUNK, room, buffer)

    def read(index, cache):
      # The last chunk may begin earlier and read some tokens again.
      start = jnp.minimum(index * size, min(room, buffer) - size)
      tokens = lax.dynamic_slice_in_dim(context.tokens, start, size, axis=1)
      first = jnp.broadcast_to(start, (batch,))
      return self._read(params, context, tokens, first, cache)[1]

    wanted = jnp.max(context.length) - 2  # a draft reads the last two
    return lax.fori_loop(0, (wanted + size - 1) // size, read, cache)

  def _read(self, params, context, tokens, start, cache):
    """Reads tokens [B, M] at positions from start [B] on, after the cache's."""
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    return causal_network.over(
      self.config,
      params.network,
      context.embed(tokens),
      positions,
      jnp.arange(cache.slots) <= positions[..., None],
      cache,
      start,
    )

  def draft(self, params, state, context, sampling, noise, slots):
    cache, start = state, context.length - 2
    rows = jnp.arange(start.shape[0])[:, None]
    tokens = context.tokens[rows, start[:, None] + jnp.arange(2)]
    chosen, logits = [tokens[:, 1:]], []
    ahead = draws(
      self.strategy, context, sampling, noise, slots - 1, params.vocab
    )
    for j in range(slots - 1):  # unrolled: faster than a scan on CPU
      x, cache = self._read(params, context, tokens, start, cache)
      logits.append(layers_lib.dense(x[:, -1], params.head))
      tokens, start = ahead.token(j, logits[-1]), context.length + j
      chosen.append(tokens)
    return ahead.tree(chosen, logits), cache


def proposal(strategy: strategies.Chain) -> str:
  """Returns what `log_q` means where each token follows from those before."""
  return 'autoregressive' if strategy.mode == 'sample' else 'deterministic'


class Draws(NamedTuple):
  """How the tokens of a chain are drawn, each from its own logits."""

  strategy: strategies.Chain
  ids: jax.Array  # [W] int32 the tokens that logits are over
  vocab_size: int  # of the verifier
  sampling: types.Sampling  # the drafter's
  noise: jax.Array | None  # [B, G, W] added to log q of each; None for nothing

  def token(self, place: int, logits: jax.Array) -> jax.Array:
    """Returns the token [B, 1] number `place`, of logits [B, W]."""
    scores = logits
    if self.noise is not None:
      scores = sampling_lib.warped(logits[:, None], self.sampling)[:, 0]
      scores = scores + self.noise[:, place]
    return self.ids[jnp.argmax(scores, axis=-1)][:, None].astype(jnp.int32)

  def tree(
    self, tokens: Sequence[jax.Array], logits: Sequence[jax.Array]
  ) -> types.DraftTree:
    """Returns the chain of a root and drawn tokens [B, 1], one a slot."""
    log_q = None
    if self.strategy.keep_q:
      log_q = jnp.stack(logits, axis=1)
      log_q = sampling_lib.log_probabilities(log_q, self.sampling)
      log_q = self.strategy.kept(log_q, self.ids, self.vocab_size)
      log_q = jnp.pad(log_q, ((0, 0), (1, 0), (0, 0)))
    token = jnp.concatenate(tokens, axis=1)
    return tree_lib.chain(token, jnp.ones_like(token, bool), log_q)


def draws(
  strategy: strategies.Chain,
  context: protocols.Context,
  sampling: types.Sampling,
  noise: types.Noise,
  gamma: int,
  ids: jax.Array,
) -> Draws:
  """Returns the draws of a chain of `gamma` tokens of ids [W]."""
  mine, vocab_size = strategy.tempered(sampling), context.verifier.vocab_size
  g = _perturbation(strategy, mine, noise, context.length, gamma, ids)
  return Draws(strategy, ids, vocab_size, mine, g)


def _perturbation(strategy, sampling, noise, length, gamma, ids):
  """Returns what is added to log q of each token [B, G, W], or None.

  Rows of temperature 0 add nothing, and where all are nothing is drawn.
  """
  if strategy.mode == 'argmax':
    return None
  hot = sampling.temperature > 0
  shape = (gamma, ids.shape[0])

  def draw():
    if strategy.mode == 'shared_noise':
      g = marginals_lib.noise_at(noise, length, gamma, ids)
    else:
      g = marginals_lib.own_noise(noise, length, shape)
    return jnp.where(hot[:, None, None], g, 0.0)

  return lax.cond(
    jnp.any(hot), draw, lambda: jnp.zeros((length.shape[0],) + shape)
  )
