"""A prompt that is read in chunks."""

import jax
import jax.numpy as jnp


def last(before: jax.Array, chunk: jax.Array, place: jax.Array) -> jax.Array:
  """Returns [B, ..] each row's entry of `chunk` at `place`.

  Where a row's last token lies in another chunk, it is that of `before`.

  Args:
    before: [B, ..] of the chunks before.
    chunk: [B, C, ..].
    place: [B] where the row's last token lies in it, if it does.
  """
  size = chunk.shape[1]
  here = (place >= 0) & (place < size)
  found = chunk[jnp.arange(place.size), jnp.clip(place, 0, size - 1)]
  return jnp.where(here.reshape(-1, *[1] * (found.ndim - 1)), found, before)
