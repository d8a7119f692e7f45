"""Plain autoregressive decoding: the tree with only its root."""

import dataclasses

import jax.numpy as jnp

from specdiff_jax.core import tree
from specdiff_jax.drafters import chain


@dataclasses.dataclass(frozen=True)
class NoDraft(chain.Stateless):
  """Drafts nothing.

  `slots` pads the verifier's pass with slots that are never accepted: 2 gives
  bf16 its fast path on CPU; the M of another system gives the same shapes,
  hence the same bits, as that system's verification.
  """

  slots: int = 1

  proposal = 'deterministic'
  max_depth = 0

  @property
  def buckets(self) -> tuple[int, ...]:
    return (self.slots,)

  def draft(self, params, state, context, sampling, noise, slots):
    del params, sampling, noise
    last = context.last
    token = jnp.broadcast_to(last[:, None], (last.size, slots))
    valid = jnp.broadcast_to(jnp.arange(slots) == 0, token.shape)
    return tree.chain(token, valid), state
