"""What systems have in common in which several drafters draft together."""

from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.core import types
from specdiff_jax.drafters import marginals as marginals_lib


class Several:
  """Keeps each drafter's state: a base of frozen dataclasses.

  Params and state are tuples, an entry for each member.

  Attributes, which the dataclasses declare:
    members: drafters of windows.
    gamma: tokens of a draft.
  """

  members: tuple[Any, ...]
  gamma: int

  proposal = 'deterministic'
  chain = False

  @property
  def features(self) -> tuple[int, ...]:
    return tuple(sorted({x for one in self.members for x in one.features}))

  @property
  def max_depth(self) -> int:
    return self.gamma

  def init(self, params, context):
    pairs = zip(self.members, params, strict=True)
    return tuple(one.init(own, context) for one, own in pairs)

  def read(self, params, state, context, features, start):
    return tuple(
      one.read(own, kept, context, self._own(one, features), start)
      if one.features
      else kept
      for one, own, kept in self._each(params, state)
    )

  def observe(self, params, state, context, verdict, features, slots):
    return tuple(
      one.observe(own, kept, context, verdict, self._own(one, features), slots)
      for one, own, kept in self._each(params, state)
    )

  def _each(self, params, state):
    return zip(self.members, params, state, strict=True)

  def _own(self, one: Any, features: jax.Array | None) -> jax.Array | None:
    """Returns the features [B, T, F, E] of the layers that a drafter reads.

    None where it reads none.
    """
    if features is None or not one.features:
      return None
    every = self.features
    return features[:, :, [every.index(x) for x in one.features]]


def chosen(
  marginals: marginals_lib.Marginals,
  sampling: types.Sampling,
  noise: types.Noise,
) -> tuple[jax.Array, jax.Array]:
  """Returns each slot's likeliest token [B, .., G] and its probability.

  Under the verifier's own draws, where the temperature is above 0.
  """
  scores = marginals_lib.conditioned(marginals, sampling, noise)
  token = marginals.ids[jnp.argmax(scores, axis=-1)]
  return token, jax.nn.softmax(scores, axis=-1).max(axis=-1)
