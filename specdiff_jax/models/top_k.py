"""What a language model finds likeliest after each token of a text."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.models import networks
from specdiff_jax.models import views

_AT_ONCE = 16  # positions whose logits exist at once, of each row


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def top_k(
  model: nn.Module,
  count: int,
  k: int,
  params,
  tokens: jax.Array,
  length: jax.Array,
  first: jax.Array,
  temperature: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
  """Returns the k likeliest next tokens after each of `count` positions.

  One pass over the given tokens, each distribution conditioned on those before it.

  Args:
    model: of `networks.network`.
    count: C positions of each row, from `first` on; past the row's end they
      repeat its last buffer slot.
    k: how many tokens.
    params: of the model.
    tokens: [B, T] int32.
    length: [B] tokens of each row.
    first: [B] the first position.
    temperature: sampling temperature, above 0.

  Returns:
    ids [B, C, K] int32, likeliest first, ties by id; and their
    log-probabilities [B, C, K] float32.
  """
  size = tokens.shape[1]
  positions = jnp.broadcast_to(jnp.arange(size), tokens.shape)
  mask = views.causal_mask(length, size)
  final, _, _ = networks.apply(model, params, tokens, positions, mask)
  at = jnp.minimum(first[:, None] + jnp.arange(count), size - 1)
  states = jnp.take_along_axis(final, at[..., None], axis=1)

  def one(states):
    logits = (
      networks.apply(model, params, states, method='logits') / temperature
    )
    return jax.lax.top_k(jax.nn.log_softmax(logits), k)

  log_p, ids = jax.lax.map(one, jnp.swapaxes(states, 0, 1), batch_size=_AT_ONCE)
  return jnp.swapaxes(ids, 0, 1), jnp.swapaxes(log_p, 0, 1)
