"""States of drafters after a prompt."""

import jax.numpy as jnp


def prefilled(drafter, params, context, features):
  """Returns the state after features [B, P, F, E] of prompts, read at once."""
  state = drafter.init(params, context)
  start = jnp.zeros(features.shape[0], jnp.int32)
  return drafter.read(params, state, context, features, start)
