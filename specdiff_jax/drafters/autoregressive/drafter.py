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

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import ClassVar

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer

_CHUNK = 64  # prompt tokens that the drafter reads at once


@dataclasses.dataclass(frozen=True)
class Autoregressive:
  """Drafts one token after the other.

  Attributes:
    config: of the network.
    gamma: tokens of a draft.
    strategy: how a law becomes a token.
    cache_dtype: of its keys and values.
  """

  config: causal_network.CausalConfig
  gamma: int
  strategy: strategies.Chain = strategies.Chain()
  cache_dtype: str = 'float32'

  chain: ClassVar[bool] = True
  features: ClassVar[tuple[int, ...]] = ()

  @property
  def proposal(self) -> str:
    return proposal(self.strategy)

  @property
  def buckets(self) -> tuple[int, ...]:
    return (self.gamma + 1,)

  @property
  def max_depth(self) -> int:
    return self.gamma

  def init(self, params, context, features):
    """Reads the prompt, in as many chunks as the longest row has."""
    del features
    batch, buffer = context.tokens.shape
    room = transformer.cache_slots(context.cache)
    cache = transformer.empty_cache(
      self.config.network, batch, room, self.cache_dtype
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
    slots = jnp.arange(cache[0][0].shape[2])
    return causal_network.run(
      self.config,
      params.network,
      context.verifier['embed'],
      tokens,
      positions,
      slots <= positions[..., None],
      cache,
      start,
    )

  def draft(self, params, state, context, sampling, noise, slots):
    def step(tokens, start, cache):
      x, cache = self._read(params, context, tokens, start, cache)
      return layers_lib.dense(x[:, -1], params.head), cache

    start = context.length - 2
    rows = jnp.arange(start.shape[0])[:, None]
    last_two = context.tokens[rows, start[:, None] + jnp.arange(2)]
    return drafted(
      self.strategy,
      step,
      last_two,
      params.vocab,
      state,
      context,
      sampling,
      noise,
      slots - 1,
    )

  def observe(self, params, state, context, verdict, features):
    del params, context, verdict, features
    return state


def proposal(strategy: strategies.Chain) -> str:
  """Returns what `log_q` means where each token follows from those before."""
  return 'autoregressive' if strategy.mode == 'sample' else 'deterministic'


def drafted(
  strategy: strategies.Chain,
  step: Callable[..., tuple[jax.Array, Any]],
  tokens: jax.Array,
  ids: jax.Array,
  cache: Any,
  context: types.Context,
  sampling: types.Sampling,
  noise: types.Noise,
  gamma: int,
) -> tuple[types.DraftTree, Any]:
  """Returns the chain of `gamma` tokens that step after step gives.

  Args:
    strategy: how a law becomes a token.
    step: reads tokens [B, M] at positions from start [B] on: (tokens, start,
      cache) -> (logits [B, W] after the last of them, cache).
    tokens: [B, M] what the first step reads, up to the last committed token.
    ids: [W] int32 the tokens that the laws are over.
    cache: of the steps.
    context: of the draft.
    sampling: the verifier's law.
    noise: keys of the requests.
    gamma: how many.
  """
  length = context.length
  start = length - tokens.shape[1]
  root = tokens[:, -1:]
  law = strategy.law(sampling)
  vocab_size = context.verifier['embed'].shape[0]
  g = _perturbation(strategy, law, noise, length, gamma, ids, vocab_size)
  chosen, laws = [root], []
  for j in range(gamma):  # unrolled: faster than a scan on CPU
    logits, cache = step(tokens, start, cache)
    scores = logits
    if g is not None:
      scores = sampling_lib.law(logits[:, None], law)[:, 0] + g[:, j]
    tokens = ids[jnp.argmax(scores, axis=-1)][:, None].astype(jnp.int32)
    start = length + j
    chosen.append(tokens)
    laws.append(logits)
  log_q = None
  if strategy.keep_q:
    log_q = sampling_lib.log_probabilities(jnp.stack(laws, axis=1), law)
    log_q = strategy.kept(log_q, ids, vocab_size)
    log_q = jnp.pad(log_q, ((0, 0), (1, 0), (0, 0)))
  token = jnp.concatenate(chosen, axis=1)
  return tree_lib.chain(token, jnp.ones_like(token, bool), log_q), cache


def _perturbation(strategy, law, noise, length, gamma, ids, vocab_size):
  """Returns what is added to log q of each token [B, G, W], or None.

  Rows of temperature 0 add nothing, and where all are nothing is drawn.
  """
  if strategy.mode == 'argmax':
    return None
  hot = law.temperature > 0
  shape = (gamma, ids.shape[0])

  def draw():
    if strategy.mode == 'shared_noise':
      g = marginals_lib.noise_at(noise, length, gamma, ids, vocab_size)
    else:
      g = marginals_lib.own_noise(noise, length, shape)
    return jnp.where(hot[:, None, None], g, 0.0)

  return lax.cond(
    jnp.any(hot), draw, lambda: jnp.zeros((length.shape[0],) + shape)
  )
