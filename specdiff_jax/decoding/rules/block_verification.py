"""Block verification of one chain (2403.10444)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from specdiff_jax.core import types
from specdiff_jax.decoding.rules import rejection


@dataclasses.dataclass(frozen=True)
class BlockVerification(rejection.CoinRule):
  """Verifies a chain as a whole; accepts at least what `Rejection` does.

  With w_0 = 1 and w_i = min(1, w_{i-1} p(x_i) / q(x_i)),
    A_i = sum_v max(w_i p(v | x_{<=i}) - q_{i+1}(v), 0),
    h_i = A_i / (A_i + 1 - w_i), and h_G = w_G,
  it accepts up to the largest i with U_i < h_i, and draws the next token from
  max(w_i p - q_{i+1}, 0), or from p if all of the chain was accepted.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.BlockVerification().one_chain
    True
  """

  needs: ClassVar[frozenset[str]] = frozenset({'iid', 'autoregressive'})
  reads_q: ClassVar[bool] = True
  one_chain: ClassVar[bool] = True

  def walk(
    self, tree: types.DraftTree, p: jax.Array, coins: jax.Array
  ) -> rejection.Walk:
    """Walks a chain, whose slots after the first invalid one do not count.

    Count i passes if its coin is below h_i.
    """
    h, bonuses = chances(tree, p)
    passed = (coins < h).at[:, 0].set(True)
    slots = jnp.arange(h.shape[1])
    count = jnp.max(jnp.where(passed, slots, 0), axis=1)
    bonus = bonuses[jnp.arange(count.shape[0]), count]
    return rejection.Walk(count, bonus, h.at[:, 0].set(-1))


def chances(tree: types.DraftTree, p: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns h [B, M] and p of the bonus [B, M, V] for each count."""
  q = jnp.exp(rejection.drafted_log_q(tree))
  drafted = jnp.cumprod(tree.valid, axis=1) > 0  # slots of the real chain
  token = tree.token[:, 1:, None]
  ratio = _ratio(
    jnp.take_along_axis(p[:, :-1], token, axis=2)[..., 0],
    jnp.take_along_axis(q[:, 1:], token, axis=2)[..., 0],
  )
  weights = [jnp.ones(p.shape[0], p.dtype)]
  for i in range(ratio.shape[1]):
    weights.append(jnp.minimum(1, weights[-1] * ratio[:, i]))
  w = jnp.stack(weights, axis=1)  # [B, M]
  last = ~jnp.pad(drafted[:, 1:], ((0, 0), (0, 1)))  # nothing follows
  following = jnp.pad(q[:, 1:], ((0, 0), (0, 1), (0, 0)))
  left = jnp.maximum(w[..., None] * p - following, 0)
  mass = left.sum(-1)
  total = mass + 1 - w
  h = jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), 1)
  h = jnp.where(last, w, h)
  bonuses = jnp.where(
    (last | ~(mass > 0))[..., None],
    p,
    left / jnp.where(mass > 0, mass, 1)[..., None],
  )
  return jnp.where(drafted, h, -1), bonuses


def _ratio(p: jax.Array, q: jax.Array) -> jax.Array:
  """Returns p / q, and 0 where q is 0: what it cannot draw is rejected."""
  return jnp.where(q > 0, p / jnp.where(q > 0, q, 1), 0)
