"""The marginals of a window's slots, of which strategies make draft trees.

A one-pass drafter gives a distribution for each slot of its window, independent
of the other slots' tokens. A strategy decides what is verified of it (`strategies`).
"""

from typing import Any, Protocol

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types


class Marginals(flax.struct.PyTreeNode):
  """Distributions of a window's slots, over W tokens that can be drafted."""

  logits: jax.Array  # [B, G, W] float32, before temperature
  ids: jax.Array  # [W] int32 the tokens
  root: jax.Array  # [B] int32 last committed token
  length: jax.Array  # [B] committed tokens; slot j is at position length + j
  vocab_size: int = flax.struct.field(pytree_node=False)
  states: jax.Array | None = None  # [B, G, E] what the head reads
  edges: Any = None  # params of a lattice's source


class Strategy(Protocol):
  """Makes trees of marginals: a frozen dataclass, static under jit."""

  @property
  def proposal(self) -> str: ...
  @property
  def chain(self) -> bool: ...

  def slots(self, gamma: int) -> int:
    """Returns the size of a whole tree over a window of gamma slots."""
    ...

  def pick(
    self,
    marginals: Marginals,
    sampling: types.Sampling,
    noise: types.Noise,
  ) -> jax.Array:
    """Returns [B, G] which of the W tokens each slot takes, taken alone."""
    ...

  def __call__(
    self,
    marginals: Marginals,
    sampling: types.Sampling,
    noise: types.Noise,
    slots: int,
  ) -> types.DraftTree:
    """Returns a tree of `slots` slots."""
    ...


def noise_at(
  noise: types.Noise, length: jax.Array, gamma: int, ids: jax.Array
) -> jax.Array:
  """Returns the verifier's noise [B, G, W] of tokens [W], from length on."""
  positions = length[:, None] + jnp.arange(gamma)
  return sampling_lib.gumbel(noise, positions, ids)


def conditioned(
  marginals: Marginals, sampling: types.Sampling, noise: types.Noise
) -> jax.Array:
  """Returns the logits [B, .., G, W] given the noise of the verifier.

  At temperature > 0 it takes y_t = argmax(log p_t + g_t), so that log q_t + g_t
  takes the place of log q_t. Of several windows, [B, K, G, W], all have the
  same positions.
  """
  m = marginals

  def perturbed():
    rows, *between, gamma, size = m.logits.shape
    flat = m.logits.reshape(rows, -1, size)
    logits = sampling_lib.warped(flat, sampling).reshape(m.logits.shape)
    hot = (sampling.temperature > 0)[:, None, None]
    g = jnp.where(hot, noise_at(noise, m.length, gamma, m.ids), 0)
    return logits + (g[:, None] if between else g)

  return lax.cond(
    jnp.any(sampling.temperature > 0), perturbed, lambda: m.logits
  )


def own_noise(
  noise: types.Noise,
  length: jax.Array,
  shape: tuple[int, ...],
  purpose: int = sampling_lib.DRAFT,
) -> jax.Array:
  """Returns Gumbel noise [B, *shape] that is drawn afresh in every cycle."""
  keys = sampling_lib.fresh(noise, purpose, length)
  return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def own_draws(
  log_q: jax.Array, noise: types.Noise, length: jax.Array, drafts: int
) -> jax.Array:
  """Returns K independent draws [B, K, G] of each slot's log q [B, G, W]."""
  keys = sampling_lib.fresh(noise, sampling_lib.DRAFT, length)
  shape = (log_q.shape[1], drafts)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
  return jnp.swapaxes(sampling_lib.drawn(log_q, uniform), 1, 2)


def distinct(
  log_q: jax.Array, noise: types.Noise, length: jax.Array, drafts: int
) -> tuple[jax.Array, jax.Array]:
  """Returns K draws [B, K] of log q [B, W] without replacement, and their scores.

  Gumbel-top-k: the order of scores is that of such draws; -inf: there are no more.
  """
  g = own_noise(noise, length, log_q.shape[1:], sampling_lib.DISTINCT)
  score, index = lax.top_k(log_q + g, drafts)
  return index, score
