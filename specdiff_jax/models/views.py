"""What a layer sees by: angles of rotation and masks, global and local."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.models import attention
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib


class View(NamedTuple):
  """What a layer sees by."""

  cos: jax.Array  # [B, M, Dh/2]
  sin: jax.Array
  mask: jax.Array  # [B, M, S] bool
  seen: attention.Span | None  # of the mask, where there is a cache


def rope_of(
  config: config_lib.TransformerConfig, positions: jax.Array, local: bool
) -> tuple[jax.Array, jax.Array]:
  """Returns cos and sin [..., Dh/2] of a global or a local layer."""
  if local and config.local_rope_base:
    return layers_lib.rope(positions, config.head_dim, config.local_rope_base)
  return layers_lib.rope(
    positions, config.head_dim, config.rope_base, config.rope_scaling
  )


def views_of(
  config: config_lib.TransformerConfig,
  positions: jax.Array,
  mask: jax.Array,
  start: jax.Array | None,
  kinds: Sequence[bool],
) -> Mapping[bool, View]:
  """Returns the view of each kind of layer in `kinds`.

  False is that of the global layers, True that of the local ones.
  """
  views = {}
  for local in sorted(set(kinds)):
    seen = mask
    if local:
      seen = mask & near(positions, mask.shape[-1], start, config.window)
    span = None if start is None else attention.span(seen)
    views[local] = View(*rope_of(config, positions, local), seen, span)
  # Without the barrier XLA would compute cosines and the mask once a layer.
  return lax.optimization_barrier(views)


def near(
  positions: jax.Array, slots: int, start: jax.Array | None, window: int
) -> jax.Array:
  """Returns [B, M, S]: which keys are less than `window` positions away.

  A tree's slots are written at start, start + 1, ..., but their positions go by
  depth. With start 3, S 7 and positions 3 4 4 5, keys lie at 0 1 2 3 4 4 5.

  Args:
    positions: [B, M] of the tokens.
    slots: S.
    start: [B] first slot that they take; None where they are all the keys.
    window: how far a layer sees.
  """
  where = positions
  if start is not None:
    place = jnp.arange(slots) - start[:, None]
    last = positions.shape[1] - 1
    new = jnp.take_along_axis(positions, jnp.clip(place, 0, last), axis=1)
    where = jnp.where((place >= 0) & (place <= last), new, jnp.arange(slots))
  return jnp.abs(positions[:, :, None] - where[:, None, :]) < window


def causal_mask(length: jax.Array, tokens: int) -> jax.Array:
  """Returns [B, T, T]: token i of a row sees tokens j <= i, j < length."""
  index = jnp.arange(tokens)
  seen = (index[None, :] <= index[:, None])[None]
  return seen & (index[None, None, :] < length[:, None, None])
