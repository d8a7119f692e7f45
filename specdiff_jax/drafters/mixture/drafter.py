"""K distinct drafters whose chains make one tree.

SpecDiff-2 (2511.00606) draws its K drafts from one drafter and leaves open what
several would do. Each of these writes its likeliest chain, and what they agree
on is verified once:

  first       a  x1 x2 x3         the last committed token is a
  second      a  x1 y2 y3
  third       a  z1 z2 z3

Under shared noise (rule M) each takes the verifier's own draws.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.drafters import joined_drafters
from specdiff_jax.drafters import prefix_trees
from specdiff_jax.drafters import window


@dataclasses.dataclass(frozen=True)
class Mixture(joined_drafters.Several):
  """Drafts the prefix tree of a chain of each member.

  Attributes:
    members: drafters of windows.
    gamma: tokens of a draft.
    budget: most slots of the tree, which is cut at its deepest tokens.
  """

  members: tuple[window.Window, ...]
  gamma: int
  budget: int

  @property
  def buckets(self) -> tuple[int, ...]:
    return (min(self.budget, 1 + len(self.members) * self.gamma),)

  def draft(self, params, state, context, sampling, noise, slots):
    chains, states = [], []
    for one, own, kept in self._each(params, state):
      marginals, kept = one.denoise(own, kept, context, sampling, noise)
      chains.append(joined_drafters.chosen(marginals, sampling, noise)[0])
      states.append(kept)
    tree = prefix_trees.merged(jnp.stack(chains, 1), context.last, slots)
    return tree, tuple(states)


def make(
  parts: Mapping[str, tuple[Any, Any]], gamma: int, budget: int
) -> tuple[Mixture, tuple[Any, ...]]:
  """Returns the drafter of several, (drafter, params) by part, and its params.

  Raises InputError where one is no drafter of windows.
  """
  for part, (one, _) in parts.items():
    if not isinstance(one, window.Window):
      raise errors.InputError(
        f'drafters.mixture.{part} is a {type(one).__name__}, which fills no '
        'windows; give a drafter of specdiff.'
      )
  members, params = zip(*parts.values(), strict=True)
  return Mixture(members, gamma, budget), params
