"""The choice of gamma, K and no draft at all, every few cycles.

`Adaptive` is a drafter made of others, its arms. Each arm is a bucket of its
own size, compiled once; plain decoding is the smallest. The loop takes the arm
with the most expected tokens for each unit of time: the time of a whole cycle
is measured beforehand (`costs`), the tokens are estimated while decoding. That
is CAST's rule (2610.00321) for widths that are compiled: with rho_r the share of
cycles that accept the slot of rank r, and l(N) the time of a cycle of N drafted
slots, the N of largest (1 + rho_1 + ... + rho_N) / l(N), none among them. Both
are measured: what a drafter thinks of a slot is no acceptance rate.
"""

import dataclasses
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import chunks
from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import types
from specdiff_jax.drafters import deferred_features

_MEMORY = 0.97  # weight of the past after each drafted cycle
_FIRST_WAIT, _LONGEST_WAIT = 32, 128  # plain cycles between two trials
_STRETCH = 4  # drafted cycles of one choice


@flax.struct.dataclass
class AdaptiveParams:
  """What the choice is made from; dynamic, so measuring never retraces."""

  arms: Any  # of the arms, which share them
  cost: jax.Array  # [A+1] time of a cycle without a draft (1), then of each arm
  cond: jax.Array  # [A, R] prior of what the arms' curves say of each rank
  weight: jax.Array  # [] cycles that the prior counts for
  forced: jax.Array  # [] int32 the arm to take whatever pays, -1 to choose


@flax.struct.dataclass
class AdaptiveState:
  """What a row has seen of its arms."""

  arms: Any
  reached: jax.Array  # [B, A, R] cycles in which rank r was tried
  accepted: jax.Array  # [B, A, R] and accepted
  quiet: jax.Array  # [B] int32 cycles since the last draft
  wait: jax.Array  # [B] int32 after so many the row drafts again, as a trial
  # [B, W, F, E] features of the tokens since the last draft; () if the arms
  # want none.
  unread: Any = ()


@dataclasses.dataclass(frozen=True)
class Adaptive:
  """Drafts with the arm that pays most, or not at all.

  An arm's expected tokens are 1 + sum_r rho_r, by its curve, a discounted mean
  that starts from the prior. Chains share one curve, of one drafter they differ in
  length only: Pr(accept position r | accepted r - 1), whose products are rho.
  Trees share another, rho itself, as a smaller one is the beginning of a larger
  one: what a wide tree accepts tells what any narrower one would.
  Where no draft pays, a row decodes plainly and tries the shortest arm again
  after a wait that doubles each time it fails.

  Attributes:
    arms: drafters of one family, with the same params and state, each of one
      bucket, in the order of their sizes; trees have their slots in one order,
      the likeliest first.
    plain: drafts nothing.
  """

  arms: tuple[protocols.Drafter, ...]
  plain: protocols.Drafter

  calibrates = True

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
    # Plain cycles are among what the rule is given: they have no q.
    kinds = {arm.proposal for arm in (self.plain, *self.arms)}
    return kinds.pop() if len(kinds) == 1 else 'unknown'

  @property
  def features(self) -> tuple[int, ...]:
    return self.arms[0].features

  @property
  def _curves(self) -> tuple[int, ...]:
    """Returns, for each arm, the index of the curve that it learns."""
    last = {arm.chain: i for i, arm in enumerate(self.arms)}
    return tuple(last[arm.chain] for arm in self.arms)

  @property
  def ranks(self) -> int:
    """R: drafted slots of the largest arm."""
    return self.buckets[-1] - 1

  def init(self, params, context):
    batch = context.length.shape[0]
    ones = jnp.ones((batch, len(self.arms), self.ranks))
    count, unread = jnp.zeros(batch, jnp.int32), ()
    if self.features:
      width = context.verifier.width
      # One slot is of what has been read already.
      room = max(_LONGEST_WAIT + 1, self.buckets[-1])
      unread = jnp.zeros((batch, room, len(self.features), width), jnp.float32)
    return AdaptiveState(
      arms=self.arms[-1].init(params.arms, context),
      reached=params.weight * ones,
      accepted=params.weight * params.cond * ones,
      quiet=count,
      wait=count + _FIRST_WAIT,
      unread=unread,
    )

  def read(self, params, state, context, features, start):
    arm = cast(protocols.FeatureDrafter, self.arms[-1])
    arms = arm.read(params.arms, state.arms, context, features, start)
    last = chunks.last(state.unread[:, 0], features, context.length - 2 - start)
    return state.replace(arms=arms, unread=state.unread.at[:, 0].set(last))

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
    arms = deferred_features.read(
      self.arms[-1],
      params.arms,
      state.arms,
      context,
      state.unread,
      state.quiet,
      self.buckets[-1],
    )
    return state.replace(arms=arms)

  def forced(self, params, index):
    return params.replace(forced=jnp.int32(index))

  def calibrated(self, params, costs, states):
    cond = np.asarray(params.cond).copy()
    for curve in set(self._curves):
      state = states[curve + 1]
      accepted, reached = state.accepted[:, curve], state.reached[:, curve]
      cond[curve] = np.asarray(accepted.sum(0) / reached.sum(0))
    return params.replace(
      cost=jnp.asarray(costs, jnp.float32),
      cond=jnp.asarray(cond),
      weight=jnp.float32(8),
    )

  def _best(self, params, state):
    """Returns [B] the arm of most tokens a time, 0 for plain decoding."""
    share = state.accepted / jnp.maximum(state.reached, 1e-6)
    of_chains = jnp.cumprod(share, axis=-1)  # [B, A, R]
    tokens = [jnp.ones(state.quiet.shape)]
    for arm, curve in zip(self.arms, self._curves):
      rho = (of_chains if arm.chain else share)[:, curve]
      tokens.append(1 + jnp.sum(rho[:, : arm.buckets[-1] - 1], axis=-1))
    rate = jnp.stack(tokens, axis=1) / params.cost
    return jnp.argmax(rate, axis=1).astype(jnp.int32)

  def draft(self, params, state, context, sampling, noise, slots):
    index = self.buckets.index(slots)
    if index == 0:
      tree, _ = self.plain.draft((), (), context, sampling, noise, slots)
      return tree, state
    tree, arms = self.arms[index - 1].draft(
      params.arms, state.arms, context, sampling, noise, slots
    )
    return tree, state.replace(arms=arms)

  def observe(self, params, state, context, verdict, features, slots):
    index = self.buckets.index(slots)
    if index == 0:
      if self.features:
        kept = deferred_features.keep(state.unread, features[:, 0], state.quiet)
        state = state.replace(unread=kept)
      return state.replace(quiet=state.quiet + 1)
    arms = self.arms[-1].observe(
      params.arms, state.arms, context, verdict, features, slots
    )
    if self.features:  # the last token that was read
      rows = jnp.arange(verdict.count.size)
      kept = state.unread.at[:, 0].set(features[rows, verdict.count])
      state = state.replace(unread=kept)
    # The ranks of its curve that this cycle tells about, and those accepted.
    arm, curve = self.arms[index - 1], self._curves[index - 1]
    rank, count = jnp.arange(1, self.ranks + 1), verdict.count[:, None]
    reached = jnp.broadcast_to(rank < slots, (count.size, rank.size))
    if arm.chain:
      reached, hit = reached & (count >= rank - 1), count >= rank
    else:
      depth = jnp.arange(verdict.path.shape[1])
      there = (depth > 0) & (depth <= count)
      here = verdict.path[..., None] == rank
      hit = jnp.any(here & there[..., None], axis=1)
    here = (jnp.arange(len(self.arms)) == curve)[:, None]
    told, hit = here & reached[:, None], hit[:, None]  # [B, A, R]
    # Only trials make a row wait longer: a draft that pays need not be whole.
    trial, pays = state.quiet >= state.wait, self._best(params, state) > 0
    failed = trial & (verdict.count < arm.max_depth)
    first = jnp.where(trial | pays, _FIRST_WAIT, state.wait)
    wait = jnp.where(failed, 2 * state.wait, first)
    return state.replace(
      arms=arms,
      reached=jnp.where(told, _MEMORY * state.reached + 1, state.reached),
      accepted=jnp.where(told, _MEMORY * state.accepted + hit, state.accepted),
      quiet=jnp.zeros_like(state.quiet),
      wait=jnp.minimum(wait, _LONGEST_WAIT),
    )


def uncalibrated(drafter: Adaptive, arms: types.Params) -> AdaptiveParams:
  """Returns params with plain guesses, for `calibrated` to replace.

  A verified token more costs a tenth of a plain step, a drafter's pass a fifth; a
  chain's position is accepted three times in five, a tree's slot of rank r so
  many in 5 r.
  """
  sizes = jnp.array(drafter.buckets, jnp.float32)
  drafting = 0.2 * (jnp.arange(sizes.size) > 0)
  rank = jnp.arange(1, drafter.ranks + 1, dtype=jnp.float32)
  of = {True: jnp.full(rank.shape, 0.6, jnp.float32), False: 0.6 / rank}
  return AdaptiveParams(
    arms=arms,
    cost=1 + 0.1 * (sizes - sizes[0]) + drafting,
    cond=jnp.stack([of[arm.chain] for arm in drafter.arms]),
    weight=jnp.float32(4),
    forced=jnp.int32(-1),
  )
