"""Sampling distributions, and noise keyed by absolute position.

The token at position t of a request is argmax(log p_t + g_t) with Gumbel
noise g_t = Gumbel(fold_in(request key, t)): a function of the request, the
position and the verifier alone. So the output of seeded sampling is the same
whatever the drafter, the tree or the batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import jax_settings
from specdiff_jax.core import types

Array = jax.Array | np.ndarray
# How noise is keyed; the same seed gives another text where this is another.
KEYED = 'threefry2x32, requests of 64 bits'


def request_noise(seed: int, low: Array, high: Array | int = 0) -> types.Noise:
  """Returns the noise of requests [B]; the row of the batch plays no part.

  Args:
    seed: 0 to 2**32 - 1.
    low: [B] the low 32 bits of the numbers of the requests.
    high: [B] the high ones; see `halves`.
  """
  root = jax_settings.key(seed)

  def one(low: Any, high: Any):
    return jax.random.fold_in(jax.random.fold_in(root, high), low)

  return types.Noise(jax.vmap(one)(low, jnp.broadcast_to(high, low.shape)))


def halves(numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the low and the high 32 bits of numbers below 2**64."""
  whole = np.array(numbers, np.uint64)
  low = whole & np.uint64(0xFFFFFFFF)
  return low.astype(np.uint32), (whole >> np.uint64(32)).astype(np.uint32)


def gumbel(
  noise: types.Noise, positions: jax.Array, vocab_size: int
) -> jax.Array:
  """Returns g [B, N, V] of absolute positions [B, N]."""

  def one(key: jax.Array, position: jax.Array):
    return jax.random.gumbel(jax.random.fold_in(key, position), (vocab_size,))

  return jax.vmap(jax.vmap(one, (None, 0)))(noise.key, positions)


# Purposes of draws that are made afresh in each cycle.
DRAFT, ACCEPT, RESIDUAL = 0, 1, 2


def fresh(noise: types.Noise, purpose: int, length: jax.Array) -> jax.Array:
  """Returns keys [B] that no other (request, cycle, purpose) has.

  A row's length grows with every cycle, so it tells the cycles apart.
  Positions stay far below the numbers that stand for purposes.
  """

  def one(key: jax.Array, length: jax.Array):
    key = jax.random.fold_in(key, 2**31 - 1 - purpose)
    return jax.random.fold_in(key, length)

  return jax.vmap(one)(noise.key, length)


def warped(logits: jax.Array, sampling: types.Sampling) -> jax.Array:
  """Returns unnormalised log-probabilities after temperature, top-k, top-p.

  Rows of temperature 0 keep their logits as they are. Top-p keeps the token
  that crosses the threshold; ties break to the lowest id.

  Args:
    logits: [B, N, V] float32.
    sampling: parameters [B].
  """
  temperature = sampling.temperature[:, None, None]
  logits = logits / jnp.where(temperature > 0, temperature, 1.0)
  filtered = (sampling.top_k > 0) | (sampling.top_p < 1)
  return lax.cond(
    jnp.any(filtered & (sampling.temperature > 0)),
    lambda: _filter(logits, sampling),
    lambda: logits,
  )


def log_probabilities(logits: jax.Array, sampling: types.Sampling) -> jax.Array:
  """Returns the normalised log of `warped`; a point mass at temperature 0."""
  logits = warped(logits, sampling)
  greedy = (sampling.temperature <= 0)[:, None, None]
  best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
  return jnp.where(greedy, jnp.log(best), jax.nn.log_softmax(logits, axis=-1))


def logprobs(logits: jax.Array, token: jax.Array) -> jax.Array:
  """Returns [B, N]: log-probabilities of tokens [B, N] under logits [B, N, V].

  Of the model's own distribution: temperature 1, neither top-k nor top-p.
  """
  chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def _filter(logits: jax.Array, sampling: types.Sampling):
  vocab_size = logits.shape[-1]
  order = jnp.argsort(-logits, axis=-1, stable=True)
  ordered = jnp.take_along_axis(logits, order, axis=-1)
  top_k = jnp.where(sampling.top_k > 0, sampling.top_k, vocab_size)
  keep = jnp.arange(vocab_size) < top_k[:, None, None]
  # Top-p acts on what top-k left, renormalised.
  p = jax.nn.softmax(jnp.where(keep, ordered, -jnp.inf), axis=-1)
  before = jnp.cumsum(p, axis=-1) - p
  top_p = sampling.top_p[:, None, None]
  keep &= (before < top_p) | (top_p >= 1)
  rank = jnp.argsort(order, axis=-1)
  keep = jnp.take_along_axis(keep, rank, axis=-1)
  greedy = (sampling.temperature <= 0)[:, None, None]
  return jnp.where(keep | greedy, logits, -jnp.inf)


def choose(
  logits: jax.Array,
  positions: jax.Array,
  sampling: types.Sampling,
  noise: types.Noise,
  span: int = 0,
) -> jax.Array:
  """Returns the verifier's token for each position.

  Args:
    logits: [B, N, V] float32.
    positions: [B, N] absolute position of the token that is chosen.
    sampling: of each row; temperature 0 takes the argmax and draws no noise.
    noise: keys of the requests.
    span: if given, all positions of a row lie among so many from its first
      on, and the noise of each is drawn once.

  Returns:
    [B, N] int32.
  """
  greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def sampled():
    wanted = positions
    if span:
      wanted = positions[:, :1] + jnp.arange(span)
    g = gumbel(noise, wanted, logits.shape[-1])
    if span:
      offset = jnp.clip(positions - positions[:, :1], 0, span - 1)
      g = jnp.take_along_axis(g, offset[..., None], axis=1)
    token = jnp.argmax(warped(logits, sampling) + g, axis=-1).astype(jnp.int32)
    return jnp.where(sampling.temperature[:, None] > 0, token, greedy)

  return lax.cond(jnp.any(sampling.temperature > 0), sampled, lambda: greedy)
