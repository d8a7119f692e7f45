"""D2SD (2606.04446): a first draft, and others that go on from its prefixes.

With c_k the largest probability of slot k of the first draft, x its tokens,

  r(i) = c_1 ... c_i (1 - c_{i+1})    i = 0 .. gamma - 1                 (Eq. 4)

is how likely it goes wrong right behind its first i tokens. The K prefixes of
largest r (Eq. 5) stay, and a second drafter fills what lies behind them:

  first draft     a  x1 x2 x3         the last committed token is a
  r               .1 .6 .2
  K = 2           a  x1 y  y          i = 1
                  a  x1 x2 z          i = 2

The K branches are windows of one row: each sees the context, which is read
once, and itself. First draft and branches merge into one tree for the verifier.
Where the second drafter's windows are longer, it goes on from the whole first
draft too.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.drafters import joined_drafters
from specdiff_jax.drafters import prefix_trees
from specdiff_jax.drafters import window


@dataclasses.dataclass(frozen=True)
class Dual(joined_drafters.Several):
  """Drafts a tree of a first draft and of K that share prefixes with it.

  Under shared noise (rule M) both take the verifier's own draws at their
  positions, and probabilities are those given the draws.

  Attributes:
    members: what makes the first draft, and what fills the rest of its
      prefixes.
    gamma: tokens of a draft: the second's, at least as many as the first's.
    branches: K.
    budget: most slots of the tree, which is cut at its deepest tokens.
  """

  members: tuple[window.SharedContext, window.SharedContext]
  gamma: int
  branches: int
  budget: int

  @property
  def buckets(self) -> tuple[int, ...]:
    k = self.branches
    # The i-th prefix has i tokens of the first draft at least.
    whole = 1 + (k + 1) * self.gamma - k * (k - 1) // 2
    return (min(self.budget, whole),)

  def draft(self, params, state, context, sampling, noise, slots):
    first, second = self.members
    draft, _ = first.denoise(params[0], state[0], context, sampling, noise)
    token, confidence = joined_drafters.chosen(draft, sampling, noise)
    length = prefixes(confidence, self.branches)
    longer = self.gamma - first.gamma
    token = jnp.pad(token, ((0, 0), (0, longer)))[:, None]
    if longer:
      length = jnp.pad(length, ((0, 0), (1, 0)), constant_values=first.gamma)
    shown = jnp.arange(self.gamma) < length[..., None]  # [B, K, G]
    kept = jnp.broadcast_to(token, shown.shape)
    filled = second.branches(params[1], state[1], context, kept, shown)
    logits = filled.logits[:, :, : self.gamma]
    new, _ = joined_drafters.chosen(
      filled.replace(logits=logits), sampling, noise
    )
    chains = jnp.where(shown, kept, new)
    if not longer:
      chains = jnp.concatenate([token, chains], axis=1)
    return prefix_trees.merged(chains, context.last, slots), state


def misses(confidence: jax.Array) -> jax.Array:
  """Returns r(i) [..., G], i from 0 on, of confidences [..., G] (Eq. 4)."""
  alive = jnp.cumprod(confidence, axis=-1)
  before = jnp.concatenate(
    [jnp.ones_like(alive[..., :1]), alive[..., :-1]], axis=-1
  )
  return before * (1 - confidence)


def prefixes(confidence: jax.Array, branches: int) -> jax.Array:
  """Returns the K lengths of largest r [..., K], ties the shorter first.

  Example:
    >>> import jax.numpy as jnp
    >>> prefixes(jnp.array([0.9, 0.3, 0.5]), 2)
    Array([1, 2], dtype=int32)
  """
  return lax.top_k(misses(confidence), branches)[1]


def make(
  parts: Mapping[str, tuple[Any, Any]], branches: int, budget: int
) -> tuple[Dual, tuple[Any, Any]]:
  """Returns the drafter of a first and a second one, and its params.

  Args:
    parts: (drafter, params) of 'first' and 'second'.
    branches: K.
    budget: most tokens that are verified at once.

  Raises:
    InputError: more branches than there are prefixes, a second draft that is
      shorter than the first, or a drafter that is none of windows over a shared
      context.
  """
  for part, (one, _) in parts.items():
    if not isinstance(one, window.SharedContext):
      raise errors.InputError(
        f'drafters.d2sd.{part} is a {type(one).__name__}, whose windows share '
        'no context; give a drafter of the kind dflash or diffusion.'
      )
  first, second = (parts[part][0] for part in ('first', 'second'))
  if branches > first.gamma:
    raise errors.InputError(
      f'branches is {branches}, but a first draft of gamma={first.gamma} tokens '
      f'has {first.gamma} prefixes to go on from; give at most {first.gamma}.'
    )
  if second.gamma < first.gamma:
    raise errors.InputError(
      f'second_gamma is {second.gamma}, but a second draft cannot be shorter '
      f'than the first, of gamma={first.gamma} tokens; give 0, or at least '
      f'{first.gamma}.'
    )
  if not second.takes_prefixes:
    raise errors.InputError(
      'drafters.d2sd.second has no input for the tokens of a prefix (its ngram '
      'is 0); give one of the kind dflash.'
    )
  one = Dual((first, second), second.gamma, branches, budget)
  return one, (parts['first'][1], parts['second'][1])
