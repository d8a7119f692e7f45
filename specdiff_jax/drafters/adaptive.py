"""The choice of gamma, K and no draft at all, every few cycles.

`Adaptive` is a drafter made of others, its arms. Each arm is a bucket of its
own size, compiled once; plain decoding is the smallest. The loop takes the arm
with the most expected tokens for each unit of time: the time of a whole cycle
is measured beforehand (`costs`), the tokens are estimated while decoding.
"""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.drafters import unread

_MEMORY = 0.97  # weight of the past after each drafted cycle
_FIRST_WAIT, _LONGEST_WAIT = 32, 128  # plain cycles between two trials
_STRETCH = 4  # drafted cycles of one choice


@flax.struct.dataclass
class AdaptiveParams:
  """What the choice is made from; dynamic, so measuring never retraces."""

  arms: Any  # of the arms, which share them
  cost: jax.Array  # [A+1] time of a cycle without a draft (1), then of each arm
  cond: jax.Array  # [A, D] prior of Pr(accept position j | accepted j - 1)
  weight: jax.Array  # [] cycles that the prior counts for
  forced: jax.Array  # [] int32 the arm to take whatever pays, -1 to choose


@flax.struct.dataclass
class AdaptiveState:
  """What a row has seen of its arms."""

  arms: Any
  arm: jax.Array  # [B] int32 used in this cycle; 0 is no draft
  reached: jax.Array  # [B, A, D] cycles in which position j was judged
  accepted: jax.Array  # [B, A, D] and accepted
  quiet: jax.Array  # [B] int32 cycles since the last draft
  wait: jax.Array  # [B] int32 after so many the row drafts again, as a trial
  # [B, W, F, E] features of the tokens since the last draft; () if the arms
  # want none.
  unread: Any = ()
  # Whether this cycle drafts nothing.
  plain: bool = flax.struct.field(pytree_node=False, default=False)


@dataclasses.dataclass(frozen=True)
class Adaptive:
  """Drafts with the arm that pays most, or not at all.

  An arm's expected tokens are 1 + sum_j surv_j, surv_j the product of its
  acceptance curve up to j; the curve is a discounted mean that starts from the
  prior. Chains share one curve: of one drafter, they differ in length only.
  Where no draft pays, a row decodes plainly and tries the shortest arm again
  after a wait that doubles each time it fails.

  Attributes:
    arms: drafters of one family, with the same params and state, each of one
      bucket, in the order of their sizes.
    plain: drafts nothing.
  """

  arms: tuple[types.Drafter, ...]
  plain: types.Drafter

  def __post_init__(self):
    sizes = self.buckets
    if list(sizes) != sorted(set(sizes)):
      raise errors.InputError(
        f'the arms of an adaptive drafter verify {sizes[1:]} tokens, and '
        f'plain decoding {sizes[0]}: these have to be different numbers, in '
        'ascending order.'
      )

  @property
  def buckets(self) -> tuple[int, ...]:
    return tuple(arm.buckets[-1] for arm in (self.plain,) + self.arms)

  @property
  def chain(self) -> bool:
    return all(arm.chain for arm in self.arms)

  @property
  def max_depth(self) -> int:
    return max(arm.max_depth for arm in self.arms)

  @property
  def proposal(self) -> str:
    # Plain cycles are among what the rule is given: they have no law q.
    kinds = {arm.proposal for arm in (self.plain, *self.arms)}
    return kinds.pop() if len(kinds) == 1 else 'unknown'

  @property
  def features(self) -> tuple[int, ...]:
    return self.arms[0].features

  @property
  def _curves(self) -> tuple[int, ...]:
    """Returns, for each arm, the index of the curve that it learns."""
    chains = [i for i, arm in enumerate(self.arms) if arm.chain]
    curves = enumerate(self.arms)
    return tuple(chains[-1] if arm.chain else i for i, arm in curves)

  def init(self, params, context, features):
    batch = context.length.shape[0]
    ones = jnp.ones((batch, len(self.arms), self.max_depth))
    count = jnp.zeros(batch, jnp.int32)
    return AdaptiveState(
      arms=self.arms[-1].init(params.arms, context, features),
      arm=count,
      reached=params.weight * ones,
      accepted=params.weight * params.cond * ones,
      quiet=count,
      wait=count + _FIRST_WAIT,
      unread=(
        unread.empty(features, context.length, self._room)
        if self.features
        else ()
      ),
    )

  @property
  def _room(self) -> int:
    """Returns the slots of what is unread: one has been read already."""
    return max(_LONGEST_WAIT + 1, self.buckets[-1])

  def wanted(self, params, state):
    best = self._best(params, state)
    plain = state.wait - state.quiet  # cycles until a trial
    index = jnp.where(best > 0, best, (plain <= 0).astype(jnp.int32))
    # A trial is one cycle; plain cycles teach nothing that changes the choice.
    count = jnp.where(best > 0, _STRETCH, jnp.maximum(plain, 1))
    forced = params.forced >= 0
    return (
      jnp.where(forced, params.forced, index),
      jnp.where(forced, _STRETCH, count),
    )

  def enter(self, params, state, context, slots):
    if not self.features or slots == self.buckets[0]:
      return state
    observe = functools.partial(self.arms[-1].observe, params.arms)
    arms = unread.read(
      observe,
      state.arms,
      context,
      state.unread,
      state.quiet,
      self.buckets[-1],
    )
    return state.replace(arms=arms)

  def _best(self, params, state):
    """Returns [B] the arm of most tokens a time, 0 for plain decoding."""
    cond = state.accepted / jnp.maximum(state.reached, 1e-6)
    surv = jnp.cumprod(cond, axis=-1)  # [B, A, D]
    ahead = jnp.cumsum(surv, axis=-1)
    tokens = [jnp.ones(state.arm.shape)]
    for arm, curve in zip(self.arms, self._curves):
      tokens.append(1 + ahead[:, curve, arm.max_depth - 1])
    rate = jnp.stack(tokens, axis=1) / params.cost
    return jnp.argmax(rate, axis=1).astype(jnp.int32)

  def draft(self, params, state, context, sampling, noise, slots):
    index = self.buckets.index(slots)
    state = state.replace(arm=jnp.full_like(state.arm, index))
    if index == 0:
      tree, _ = self.plain.draft((), (), context, sampling, noise, slots)
      return tree, state.replace(plain=True)
    tree, arms = self.arms[index - 1].draft(
      params.arms, state.arms, context, sampling, noise, slots
    )
    return tree, state.replace(arms=arms)

  def observe(self, params, state, context, verdict, features):
    kept, arms = state.unread, state.arms
    if self.features and state.plain:
      kept = unread.keep(kept, features[:, 0], state.quiet)
    else:
      arms = self.arms[-1].observe(
        params.arms, arms, context, verdict, features
      )
      if self.features:  # the last token that was read
        rows = jnp.arange(verdict.count.size)
        kept = kept.at[:, 0].set(features[rows, verdict.count])
    # Which curve, and how many positions of it, this cycle tells about.
    curves = jnp.array((-1,) + self._curves)[state.arm]
    depths = jnp.array((0,) + tuple(a.max_depth for a in self.arms))[state.arm]
    position = jnp.arange(1, self.max_depth + 1)
    count = verdict.count[:, None]
    judged = (position <= depths[:, None]) & (count >= position - 1)
    own = curves[:, None] == jnp.arange(len(self.arms))
    told = own[..., None] & judged[:, None]  # [B, A, D]
    hit = (count >= position)[:, None]
    drafted = state.arm > 0
    failed = drafted & (verdict.count < depths)
    wait = jnp.where(failed, 2 * state.wait, _FIRST_WAIT)
    return state.replace(
      arms=arms,
      unread=kept,
      plain=False,
      reached=jnp.where(told, _MEMORY * state.reached + 1, state.reached),
      accepted=jnp.where(told, _MEMORY * state.accepted + hit, state.accepted),
      quiet=jnp.where(drafted, 0, state.quiet + 1),
      wait=jnp.where(drafted, jnp.minimum(wait, _LONGEST_WAIT), state.wait),
    )


def uncalibrated(drafter: Adaptive, arms: types.Params) -> AdaptiveParams:
  """Returns params with plain guesses, for `calibrate` to replace.

  A verified token more costs a tenth of a plain step, a drafter's pass a
  fifth, and a position is accepted three times in five.
  """
  sizes = jnp.array(drafter.buckets, jnp.float32)
  drafting = 0.2 * (jnp.arange(sizes.size) > 0)
  return AdaptiveParams(
    arms=arms,
    cost=1 + 0.1 * (sizes - sizes[0]) + drafting,
    cond=jnp.full((len(drafter.arms), drafter.max_depth), 0.6, jnp.float32),
    weight=jnp.float32(4),
    forced=jnp.int32(-1),
  )


def calibrate(
  drafter: Adaptive,
  params: AdaptiveParams,
  start: Callable[[], types.DecodeState],
  decode: Callable[..., types.DecodeState],
  cycles: int = 4,
  rounds: int = 16,
) -> AdaptiveParams:
  """Measures the cost and the acceptance of each arm on real prompts.

  Args:
    drafter: the arms.
    params: what they read.
    start: returns a prefilled state.
    decode: (params, state, cycles) -> state; the first call may compile.
    cycles: of each timed call.
    rounds: the median of each arm's share of a round counts.
  """
  arms = range(len(drafter.buckets))
  forced = [params.replace(forced=jnp.int32(arm)) for arm in arms]
  states = [jax.block_until_ready(decode(f, start(), 1)) for f in forced]
  seconds = np.full((rounds, len(arms)), np.nan)  # of a cycle
  for turn in range(rounds):  # a slow moment of the machine meets all arms
    for arm in arms:
      if states[arm].done.all():
        states[arm] = jax.block_until_ready(start())
      before = int(states[arm].stats.cycles.max())
      begin = time.perf_counter()
      states[arm] = decode(forced[arm], states[arm], cycles)
      after = int(jax.block_until_ready(states[arm]).stats.cycles.max())
      taken = time.perf_counter() - begin
      if after > before:  # fewer than asked where rows ended
        seconds[turn, arm] = taken / (after - before)
  whole = seconds[np.isfinite(seconds).all(axis=1)]
  if not len(whole):  # every row ended at once
    return params
  shares = np.median(whole / whole.mean(axis=1, keepdims=True), axis=0)
  cond = np.asarray(params.cond).copy()
  for curve in set(drafter._curves):
    state = states[curve + 1].drafter
    accepted, reached = state.accepted[:, curve], state.reached[:, curve]
    cond[curve] = np.asarray(accepted.sum(0) / reached.sum(0))
  return params.replace(
    cost=jnp.asarray(shares / shares[0], jnp.float32),
    cond=jnp.asarray(cond),
    weight=jnp.float32(8),
  )
