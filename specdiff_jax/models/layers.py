"""What networks are made of: matmuls, norms, rotary positions.

Results of a row do not depend on the other rows, and the forms are those that
XLA's CPU backend runs fast; the comments say which and why.
"""

from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.models import config as config_lib
from specdiff_jax.models import int8

Shapes = dict[str, tuple[int, ...]]  # of tensors by name
NORMAL = nn.initializers.normal(0.02)  # of all weights


def dense(x: jax.Array, weight: jax.Array | int8.Int8) -> jax.Array:
  """Returns x @ weight.T in float32 for weight [out, in].

  Two rules of XLA's CPU backend make this the fast form for thin x: both
  operands are matrices contracted over their last dimension (with more
  dimensions the weight would be transposed), and a bf16 weight meets at least
  two rows (one row converts the whole weight to float32). Elsewhere a second
  row costs a seventh of a plain step (an H100), so that one stays alone.
  """
  if isinstance(weight, int8.Int8):
    return int8.dense(x, weight)
  rows = x.reshape(-1, x.shape[-1]).astype(weight.dtype)

  def alone(rows, weight):
    return lax.dot_general(
      rows,
      weight,
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )

  def doubled(rows, weight):
    # The barrier keeps XLA from seeing that the rows are equal.
    rows = lax.optimization_barrier(jnp.concatenate([rows, rows]))
    return alone(rows, weight)[:1]

  if rows.shape[0] == 1 and weight.dtype == jnp.bfloat16:
    out = lax.platform_dependent(rows, weight, cpu=doubled, default=alone)
  else:
    out = alone(rows, weight)
  return out.reshape(x.shape[:-1] + (weight.shape[0],))


def affine(
  x: jax.Array, weight: jax.Array | int8.Int8, bias: jax.Array
) -> jax.Array:
  """Returns x @ weight.T + bias in float32."""
  return dense(x, weight) + bias.astype(jnp.float32)


def lookup(table: jax.Array | int8.Int8, ids: jax.Array) -> jax.Array:
  """Returns rows of table [V, E] as float32 [..., E].

  On a CPU the gather runs on the table's bits: XLA would convert a whole bf16
  table to float32 first. Elsewhere these would be a copy of it.
  """
  if isinstance(table, int8.Int8):
    return int8.lookup(table, ids)

  def plain(table, ids):
    return table[ids].astype(jnp.float32)

  def on_bits(table, ids):
    bits = lax.bitcast_convert_type(table, jnp.uint16)
    return lax.bitcast_convert_type(bits[ids], jnp.bfloat16).astype(jnp.float32)

  if table.dtype != jnp.bfloat16:
    return plain(table, ids)
  return lax.platform_dependent(table, ids, cpu=on_bits, default=plain)


def rms_norm(
  x: jax.Array, scale: jax.Array | None, eps: float, offset: float = 0.0
) -> jax.Array:
  """Divides by the root mean square over the last axis, in float32.

  The result is scaled by `offset + scale` (Gemma: 1 + w), or not at all.
  """
  x = x.astype(jnp.float32)
  y = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  if scale is None:
    return y
  scale = scale.astype(jnp.float32)
  return y * (offset + scale if offset else scale)


def layer_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float
) -> jax.Array:
  """Norms to mean 0 and variance 1 over the last axis, in float32."""
  x = x.astype(jnp.float32)
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  y = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  y = y * scale.astype(jnp.float32)
  return y if bias is None else y + bias.astype(jnp.float32)


def rope(
  positions: jax.Array,
  head_dim: int,
  base: float,
  scaling: config_lib.RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns cos and sin [..., Dh/2] of rotary position embedding."""
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  frequencies = base**-exponents
  if scaling is not None:
    frequencies = scaled(frequencies, scaling)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def scaled(
  frequencies: jax.Array, scaling: config_lib.RopeScaling
) -> jax.Array:
  """Returns rotary frequencies after scaling; see `RopeScaling`.

  llama3: f (1 - s) / factor + f s, where s goes from 0 at `low` turns within
  the original length to 1 at `high` (the reference code of Llama 3.1).
  """
  slow = frequencies / scaling.factor
  if scaling.kind == 'linear':
    return slow
  turns = scaling.original * frequencies / (2 * jnp.pi)
  share = (turns - scaling.low) / (scaling.high - scaling.low)
  share = jnp.clip(share, 0.0, 1.0)
  return (1 - share) * slow + share * frequencies


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + Dh/2) of x [..., H, Dh] by angles [..., Dh/2]."""
  first, second = jnp.split(x, 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def initializer(name: str, norm: float = 1.0):
  """Returns the initializer of a param, told by its name; norms are `norm`."""
  if name.endswith('_bias'):
    return nn.initializers.zeros
  if name.endswith('_norm'):
    return nn.initializers.constant(norm)
  return NORMAL


def make_params(
  module: nn.Module, table: Shapes, dtype: Any, norm: float = 1.0
) -> None:
  """Gives a module params of these shapes, in `setup`; norms are `norm`."""
  for name, shape in table.items():
    param = module.param(name, initializer(name, norm), shape, dtype)
    setattr(module, name, param)


def layered(top: Shapes, layer: Shapes, layers: int) -> Shapes:
  """Returns the shapes of a network, those of its layers as 'layer_0.query'."""
  return top | {
    f'layer_{i}.{name}': shape
    for i in range(layers)
    for name, shape in layer.items()
  }
