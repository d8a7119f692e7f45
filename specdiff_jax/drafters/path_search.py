"""Causal-consistency path search (DiffuSpec, 2510.02358, section 4.2).

The marginals of a window say nothing of how its tokens follow each other. A
left-to-right beam through each slot's likeliest tokens takes the path of
largest

  score(pi) = sum_i lam log q_i(pi_i) + (1 - lam) log p_ngram(pi_i | before)   (Eq. 8)

The tokens of slot i are the M_i = min{m <= M : the m likeliest hold the mass tau}
likeliest (M if they do not), and an end token in any case (Eq. 7).
"""

import dataclasses
from typing import NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.drafters.ngram import model as ngram_model


class Lattice(NamedTuple):
  """The candidates of each slot, likeliest first, the added end token last."""

  index: jax.Array  # [B, G, C] which of the W tokens
  log_q: jax.Array  # [B, G, C] float32
  kept: jax.Array  # [B, G, C] bool
  end: jax.Array  # [B, G, C] bool: it ends a text
  open: jax.Array  # [B, G] bool: paths go on to this slot


class Path(NamedTuple):
  """What a search found."""

  index: jax.Array  # [B, G] which of the W tokens
  length: jax.Array  # [B] int32 slots of the path, its end token included


@dataclasses.dataclass(frozen=True)
class PathSearch:
  """The settings of a search.

  Attributes:
    beam: paths that are kept from slot to slot.
    tau: mass that a slot's candidates are to hold.
    candidates: M, the most candidates of a slot, without an added end token.
    lam: weight of the marginals; the n-gram model has the rest.
  """

  beam: int = 3
  tau: float = 0.8
  candidates: int = 15
  lam: float = 0.5

  def lattice(
    self, log_q: jax.Array, ends: jax.Array, length: jax.Array
  ) -> Lattice:
    """Returns the candidates of each slot (Eq. 7).

    No path goes past the first slot among whose likeliest tokens is one that
    ends a text. One that was added only because it always has to be there
    closes nothing.

    Args:
      log_q: [B, G, W] log-probabilities.
      ends: [W] bool, which tokens end a text.
      length: [B] slots that a path may have at most.
    """
    chex.assert_rank((log_q, ends, length), (3, 1, 1))
    value, index = sampling_lib.top_k(
      log_q, min(self.candidates, log_q.shape[-1])
    )
    mass = jnp.cumsum(jnp.exp(value), axis=-1)
    before = jnp.pad(mass[..., :-1], ((0, 0), (0, 0), (1, 0)))
    kept = (before < self.tau) & (value > -jnp.inf)
    end = ends[index]
    natural = jnp.any(kept & end, axis=-1)
    of_end = jnp.where(ends, log_q, -jnp.inf)
    added = jnp.argmax(of_end, axis=-1)[..., None]
    worth = jnp.max(of_end, axis=-1)[..., None]
    forced = ~natural[..., None] & (worth > -jnp.inf)
    closed = jnp.cumsum(natural, axis=1) - natural > 0  # by a slot before
    last = lambda x, y: jnp.concatenate([x, y], axis=-1)
    return Lattice(
      index=last(index, added),
      log_q=last(value, worth),
      kept=last(kept, forced),
      end=last(end, forced),
      open=~closed & (jnp.arange(log_q.shape[1]) < length[:, None]),
    )

  def search(
    self,
    lattice: Lattice,
    ids: jax.Array,
    ngram: ngram_model.Tables | None,
    previous: jax.Array,
    noise: jax.Array,
    scale: jax.Array,
  ) -> Path:
    """Returns the path of largest score (Eq. 8), by a beam from left to right.

    A path that has ended competes with its sum as it is, as the longer ones do:
    nothing is divided by lengths. Ties go to the better path, then to the
    likelier token.

    Args:
      lattice: the candidates.
      ids: [W] int32 the verifier's ids of the W tokens.
      ngram: of order n; None for a uniform distribution.
      previous: [B, n - 1] the last committed tokens; -1 before a text.
      noise: [B, G, C] what is added to the n-gram's log-probabilities of the
        candidates, as it was to the marginals'.
      scale: [B] by which these are divided before, 1 at temperature 0.

    Where noise is not 0, they are normalised over a slot's candidates.
    """
    batch, gamma, _ = lattice.index.shape
    width, rows = self.beam, jnp.arange(batch)[:, None]
    hot = jnp.any(noise != 0, axis=(1, 2))[:, None, None]
    uniform = -jnp.log(float(ids.size))

    def fluency(before, token, kept, g):
      """Returns the n-gram's score [B, K, C] after each path."""
      shape = batch, width, token.shape[-1]
      if ngram is None:
        plain = jnp.full(shape, uniform)
      else:
        token = jnp.broadcast_to(token[:, None], shape)
        plain = ngram_model.log_probabilities(ngram, before, token)
      drawn = plain / scale[:, None, None] + g[:, None]
      drawn = jnp.where(kept[:, None], drawn, -jnp.inf)
      return jnp.where(hot, jax.nn.log_softmax(drawn, axis=-1), plain)

    def step(carry, slot):
      (index, log_q, kept, end, open), g, number = slot
      score, done, length, before, path = carry
      token = ids[index]
      gain = log_q[:, None]
      if self.lam < 1:
        gain = self.lam * gain + (1 - self.lam) * fluency(
          before, token, kept, g
        )
      go = (open[:, None] & ~done)[..., None]
      grown = jnp.where(go & kept[:, None], score[..., None] + gain, -jnp.inf)
      stay = jnp.where(go, -jnp.inf, score[..., None])
      pool = jnp.concatenate([stay, grown], axis=-1)  # [B, K, 1 + C]
      size = pool.shape[-1]
      score, best = lax.top_k(pool.reshape(batch, -1), width)
      above, choice = best // size, best % size - 1
      grew, choice = choice >= 0, jnp.maximum(choice, 0)
      carried = lambda x: x[rows, above]
      new = carried(before)
      if new.shape[-1]:
        shifted = jnp.roll(new, -1, axis=-1)
        shifted = shifted.at[..., -1].set(token[rows, choice])
        new = jnp.where(grew[..., None], shifted, new)
      path = carried(path)
      here = grew[..., None] & (jnp.arange(gamma) == number)
      path = jnp.where(here, index[rows, choice][..., None], path)
      done = carried(done) | (grew & end[rows, choice])
      length = carried(length) + grew
      return (score, done, length, new, path), None

    before = jnp.broadcast_to(
      previous[:, None], (batch, width, previous.shape[-1])
    )
    first = jnp.arange(width) == 0  # the only path at the beginning
    carry = (
      jnp.broadcast_to(jnp.where(first, 0.0, -jnp.inf), (batch, width)),
      jnp.zeros((batch, width), bool),
      jnp.zeros((batch, width), jnp.int32),
      before.astype(jnp.int32),
      jnp.zeros((batch, width, gamma), lattice.index.dtype),
    )
    by_slot = lambda x: jnp.swapaxes(x, 0, 1)
    slots = (
      jax.tree.map(by_slot, tuple(lattice)),
      by_slot(noise),
      jnp.arange(gamma),
    )
    (_, _, length, _, path), _ = lax.scan(step, carry, slots)
    return Path(path[:, 0], length[:, 0])
