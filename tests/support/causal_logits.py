"""Logits of a causal drafter over whole texts, to hold serving against."""

import jax
import jax.numpy as jnp

from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.models import layers
from specdiff_jax.models import views


def next_logits(
  config: causal_network.CausalConfig,
  params,
  embed: jax.Array,
  head: jax.Array,
  tokens: jax.Array,
) -> jax.Array:
  """Returns logits [B, T, vocab] of the token after each.

  Args:
    config: sizes.
    params: of `causal_network.initial`.
    embed: [V, E] the verifier's embedding.
    head: [vocab, E] rows of the verifier's head that can be drafted.
    tokens: [B, T]; what pads a row follows its tokens.
  """
  batch, length = tokens.shape
  mask = views.causal_mask(jnp.full(batch, length), length)
  positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
  x = layers.lookup(embed, tokens)
  x, _ = causal_network.over(config, params, x, positions, mask)
  return layers.dense(x, head)
