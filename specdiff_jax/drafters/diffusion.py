"""SpecDiff-2's drafter: one denoising pass of a masked-diffusion network."""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree
from specdiff_jax.models import drafter_network
from specdiff_jax.models import transformer


@flax.struct.dataclass
class DrafterParams:
  """What drafting reads besides the verifier."""

  network: Any  # of DrafterNetwork
  vocab: jax.Array  # [vocab] int32 ids that can be drafted, most frequent first
  head: jax.Array  # [vocab, E] their rows of the verifier's head


@flax.struct.dataclass
class DiffusionState:
  """Keys and values of the verified tokens, and the last one's features."""

  context: Any  # per layer (keys, values), each [B, Hkv, S, Dh]
  last: jax.Array  # [B, F, E] of the token before the last committed one


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion:
  """Fills a window in one pass and drafts one chain from its marginals.

  `draft_mode` says how: 'argmax'; 'sample' with noise of its own; 'shared_noise',
  argmax(log q_t + g_t) with the very noise g_t that the verifier will use at
  position t, which raises acceptance at temperature > 0. All three are
  lossless under SampleAndMatch, and the same at temperature 0.
  """

  config: drafter_network.DrafterConfig
  gamma: int
  draft_mode: str = 'argmax'
  cache_dtype: str = 'float32'

  chain: ClassVar[bool] = True

  @property
  def proposal(self) -> str:
    return 'iid' if self.draft_mode == 'sample' else 'deterministic'

  @property
  def features(self) -> tuple[int, ...]:
    return self.config.features

  @property
  def max_slots(self) -> int:
    return self.gamma + 1

  @property
  def max_depth(self) -> int:
    return self.gamma

  def init(self, params, context, features):
    batch, bucket = features.shape[:2]
    c = self.config.verifier
    slots = context.tokens.shape[1] + self.max_slots
    shape = (batch, c.kv_heads, slots, c.head_dim)
    positions = jnp.broadcast_to(jnp.arange(bucket), (batch, bucket))

    def place(new):
      empty = jnp.zeros(shape, self.cache_dtype)
      return transformer.write_rows(empty, new, jnp.zeros(batch, jnp.int32))

    state = self._context(params, features, positions)
    last = features[jnp.arange(batch), jnp.maximum(context.length - 2, 0)]
    return DiffusionState(jax.tree.map(place, state), last)

  def _context(self, params, features, positions):
    return drafter_network.DrafterNetwork(self.config).apply(
        {'params': params.network}, features, positions, method='context'
    )

  def draft(self, params, state, context, sampling, noise):
    anchors = (context.length - 1)[:, None]
    x = drafter_network.fill(
        self.config,
        params.network,
        context.verifier['embed'],
        context.tokens,
        anchors,
        state.last[:, None],
        state.context,
    )[:, 0, : self.gamma]
    logits = transformer.dense(x, params.head)
    drafted = self._pick(params, logits, context.length, sampling, noise)
    rows = jnp.arange(anchors.shape[0])
    last = context.tokens[rows, anchors[:, 0]]
    token = jnp.concatenate([last[:, None], drafted], axis=1)
    return tree.chain(token, jnp.ones_like(token, bool)), state

  def _pick(self, params, logits, length, sampling, noise):
    """Chooses the drafted tokens [B, G] from logits [B, G, vocab]."""
    greedy = jnp.argmax(logits, axis=-1)

    def sampled():
      positions = length[:, None] + jnp.arange(self.gamma)
      if self.draft_mode == 'shared_noise':
        size = self.config.verifier.vocab_size
        g = sampling_lib.gumbel(noise, positions, size)[..., params.vocab]
      else:
        own = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(noise.key)
        g = sampling_lib.gumbel(
            noise.replace(key=own), positions, self.config.vocab
        )
      token = jnp.argmax(sampling_lib.law(logits, sampling) + g, axis=-1)
      return jnp.where(sampling.temperature[:, None] > 0, token, greedy)

    if self.draft_mode == 'argmax':
      index = greedy
    else:
      index = lax.cond(
          jnp.any(sampling.temperature > 0), sampled, lambda: greedy
      )
    return params.vocab[index].astype(jnp.int32)

  def observe(self, params, state, context, verdict, features):
    start = context.length - 1
    positions = start[:, None] + jnp.arange(features.shape[1])
    new = self._context(params, features, positions)
    written = jax.tree.map(
        lambda old, x: transformer.write_rows(old, x, start), state.context, new
    )
    last = features[jnp.arange(start.shape[0]), verdict.count]
    return DiffusionState(written, last)
