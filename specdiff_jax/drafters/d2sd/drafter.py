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
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import prefix_trees
from specdiff_jax.drafters import window


@flax.struct.dataclass
class Both:
  """What the two drafters have: their params, or their states."""

  first: Any
  second: Any


@dataclasses.dataclass(frozen=True)
class Dual:
  """Drafts a tree of a first draft and of K that share prefixes with it.

  Under shared noise (rule M) both take the verifier's own draws at their
  positions, and probabilities are those given the draws.

  Attributes:
    first: what makes the first draft.
    second: what fills the rest of its prefixes.
    gamma: tokens of a draft.
    branches: K.
    budget: most slots of the tree, which is cut at its deepest tokens.
  """

  first: Any  # a window.SharedContext
  second: Any
  gamma: int
  branches: int
  budget: int

  proposal = 'deterministic'
  chain = False

  @property
  def features(self) -> tuple[int, ...]:
    return tuple(sorted({*self.first.features, *self.second.features}))

  @property
  def buckets(self) -> tuple[int, ...]:
    k = (
      self.branches
    )  # the i-th prefix has i tokens of the first draft at least
    whole = 1 + (k + 1) * self.gamma - k * (k - 1) // 2
    return (min(self.budget, whole),)

  @property
  def max_depth(self) -> int:
    return self.gamma

  def init(self, params, context):
    return self._each(lambda one, params: one.init(params, context), params)

  def read(self, params, state, context, features, start):
    def read(one, params, state):
      own = self._own(one, features)
      return one.read(params, state, context, own, start)

    return self._each(read, params, state)

  def observe(self, params, state, context, verdict, features, slots):
    def observe(one, params, state):
      own = self._own(one, features)
      return one.observe(params, state, context, verdict, own, slots)

    return self._each(observe, params, state)

  def _each(self, function, *both: Both) -> Both:
    return Both(
      function(self.first, *(x.first for x in both)),
      function(self.second, *(x.second for x in both)),
    )

  def _own(self, one: Any, features: jax.Array) -> jax.Array:
    """Returns the features [B, T, F, E] of the layers that a drafter reads."""
    every = self.features
    return features[:, :, jnp.array([every.index(x) for x in one.features])]

  def draft(self, params, state, context, sampling, noise, slots):
    first, _ = self.first.denoise(
      params.first, state.first, context, sampling, noise
    )
    token, confidence = chosen(first, sampling, noise)
    length = prefixes(confidence, self.branches)
    shown = jnp.arange(self.gamma) < length[..., None]  # [B, K, G]
    kept = jnp.broadcast_to(token[:, None], shown.shape)
    filled = self.second.branches(
      params.second, state.second, context, kept, shown
    )
    logits = filled.logits[:, :, : self.gamma]
    other, _ = chosen(filled.replace(logits=logits), sampling, noise)
    branches = jnp.where(shown, kept, other)
    chains = jnp.concatenate([token[:, None], branches], axis=1)
    return prefix_trees.merged(chains, context.last, slots), state


def chosen(
  marginals: marginals_lib.Marginals,
  sampling: types.Sampling,
  noise: types.Noise,
) -> tuple[jax.Array, jax.Array]:
  """Returns each slot's likeliest token [B, .., G] and its probability."""
  scores = marginals_lib.conditioned(marginals, sampling, noise)
  token = marginals.ids[jnp.argmax(scores, axis=-1)]
  return token, jnp.max(jax.nn.softmax(scores, axis=-1), axis=-1)


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
  parts: Mapping[str, tuple[Any, Any]], gamma: int, branches: int, budget: int
) -> tuple[Dual, Both]:
  """Returns the drafter of a first and a second one, and its params.

  Args:
    parts: (drafter, params) of 'first' and 'second'.
    gamma: tokens of a draft.
    branches: K.
    budget: most tokens that are verified at once.

  Raises:
    InputError: more branches than there are prefixes, or a drafter that is none
      of windows over a shared context.
  """
  if branches > gamma:
    raise errors.InputError(
      f'branches is {branches}, but a first draft of gamma={gamma} tokens has '
      f'{gamma} prefixes to go on from; give at most {gamma}.'
    )
  for part, (one, _) in parts.items():
    if not isinstance(one, window.SharedContext):
      raise errors.InputError(
        f'drafters.d2sd.{part} is a {type(one).__name__}, whose windows share '
        'no context; give a drafter of the kind dflash or diffusion.'
      )
  second = parts['second'][0]
  if not second.takes_prefixes:
    raise errors.InputError(
      'drafters.d2sd.second has no input for the tokens of a prefix (its ngram '
      'is 0); give one of the kind dflash.'
    )
  one = Dual(parts['first'][0], second, gamma, branches, budget)
  return one, Both(*(parts[name][1] for name in ('first', 'second')))
