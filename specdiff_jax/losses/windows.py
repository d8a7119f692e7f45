"""Losses of a drafted window, as functions of arrays: the streak's family.

Those that read the verifier's distribution are in `divergences`, those of
windows that are partly shown in `revealed`. Every loss takes

  log_q  [..., G]  log-probability of each target under the drafter; -inf
                   where the target lies outside the draft vocabulary
  valid  [..., G]  bool, True on a prefix of each window

and returns the mean loss and a dict of scalar metrics. A window without any
valid target is padding: it counts nowhere. A target of probability zero ends
its window's sum, as a short window does.

Notation: S_m = prod_{j<=m} q_j(x_j), J = sum_m S_m, W_j = sum_{m>=j} S_m.

Each docstring says which engine a loss serves best. Rule M (sample and match)
walks a chain of argmaxes as far as it agrees; a tree also lives on the order of
the candidates below the top; rejection lives on the overlap of the two
distributions.
"""

import math

import jax
import jax.numpy as jnp

from specdiff_jax.losses import registry
from specdiff_jax.losses import slots


def live_prefix(log_q: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns the slots before the first invalid or impossible target."""
  alive = valid & (log_q > -jnp.inf)
  return jnp.cumsum(~alive, axis=-1) == 0


def reached(log_q: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns the valid slots whose every earlier target is possible.

  Beyond `live_prefix` it takes in the first impossible target, where a
  distribution still says something though the target itself does not.
  """
  alive = live_prefix(log_q, valid)
  before = jnp.concatenate(
    [jnp.ones_like(alive[..., :1]), alive[..., :-1]], axis=-1
  )
  return valid & before


def streak_value(log_q: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns log J [...], the log of the expected accepted draft tokens.

  J = sum_m prod_{j<=m} q_j(x_j), the streak objective (SpecDiff-2,
  arXiv 2511.00606, Eq. 6), computed in log space. It is -inf, with a zero
  gradient, where the first target is invalid or impossible.

  The derivative by log q_j is W_j / J: the softmax of the cumulative sums,
  summed from the right, which is what differentiating this gives.
  """
  live = live_prefix(log_q, valid)
  possible = live[..., 0]
  log_s = jnp.cumsum(jnp.where(live, log_q, 0), axis=-1)
  # Two selections: the gradient of a logsumexp over nothing is 0 / 0, so an
  # empty window first gets a harmless sum and then loses it.
  summed = jnp.where(live | ~possible[..., None], log_s, -jnp.inf)
  return jnp.where(possible, jax.nn.logsumexp(summed, axis=-1), -jnp.inf)


def box_cox(log_j: jax.Array, beta: jax.Array | float) -> jax.Array:
  """Returns -(J^beta - 1) / beta, which is -log J at beta = 0.

  Its derivative by log J is -J^beta. `beta` may be traced.
  """
  beta = jnp.asarray(beta, log_j.dtype)
  divisor = jnp.where(beta == 0, 1, beta)
  power = jnp.expm1(divisor * log_j) / divisor
  return -jnp.where(beta == 0, log_j, power)


@registry.register('streak')
def streak_loss(
  log_q: jax.Array, valid: jax.Array, beta: jax.Array | float
) -> slots.Value:
  """Returns the mean over windows of the Box-Cox streak loss.

  The weight of -log q_j in the gradient is W_j J^(beta-1): at beta = 1 the
  gradient of J itself, at beta = 0 that of log J, whose first weight is 1
  however poor the drafter. Windows whose first target is impossible carry no
  gradient and are left out of the mean loss, but count as 0 in `streak`.

  Serves: rule M with a chain of argmaxes, above all at temperature 0. It
  sharpens q to a point; for trees keep beta near 0. Wrong for rejection at a
  temperature: there `divergences.rejection_loss` is the exact objective.

  Example:
    loss, metrics = streak_loss(jnp.log(q), jnp.ones_like(q, bool), 0.0)
  """
  log_j = streak_value(log_q, valid)
  loss = length_loss(log_j, beta)
  metrics = window_metrics(log_q, valid, log_j)
  return loss, metrics | {'streak_loss': loss}


def length_loss(log_j: jax.Array, beta: jax.Array | float) -> jax.Array:
  """Returns the mean Box-Cox loss of lengths, those of -inf left out."""
  possible = log_j > -jnp.inf
  return mean(box_cox(jnp.where(possible, log_j, 0), beta), possible)


@registry.register('dpace')
def dpace(
  log_q: jax.Array, valid: jax.Array, dpace_smoothing: jax.Array | float
) -> slots.Value:
  """Returns D-PACE: cross-entropy under weights of smoothed confidences.

  With q~ = (1 - a) q + a held constant, the weight of -log q_j is
  W~_j = sum_{m>=j} prod_{i<=m} q~_i (D-PACE, arXiv 2605.18810, Eq. 7 to 9;
  a = 0.5 there). At a = 0 it is the gradient of the streak J itself; a > 0
  keeps late slots alive while the drafter is poor, so that no warm-up is
  needed. The sum over a window is divided by nothing: the weights' sum is part
  of the objective. The mean is over windows.

  Serves: rule M with a chain, as the streak does; from a cold start.
  """
  live = live_prefix(log_q, valid)
  fixed = jax.lax.stop_gradient(jnp.where(live, log_q, -jnp.inf))
  a = jnp.asarray(dpace_smoothing, log_q.dtype)
  smoothed = jnp.logaddexp(jnp.log1p(-a) + fixed, jnp.log(a))
  log_s = jnp.cumsum(jnp.where(live, smoothed, 0), axis=-1)
  s = jnp.where(live, jnp.exp(log_s), 0)
  weights = jnp.cumsum(s[..., ::-1], axis=-1)[..., ::-1]
  nll = -jnp.where(live, log_q, 0)
  loss = mean(jnp.sum(weights * nll, axis=-1), live[..., 0])
  return loss, window_metrics(log_q, valid)


@registry.register('decayed_ce')
def decayed_ce(
  log_q: jax.Array, valid: jax.Array, decay: jax.Array | float
) -> slots.Value:
  """Returns the cross-entropy with weights exp(-(j-1) / decay).

  DFlash (arXiv 2602.06036) takes decay = 7; an infinite decay is the plain
  cross-entropy. The mean is over targets by weight, so that a short window
  does not count more than its targets.

  Serves: trees, whose candidates below the top it ranks well, and as the first
  part of any run. Undecayed it is the baseline that all others are held to.
  """
  loss = decayed_mean(-log_q, live_prefix(log_q, valid), decay)
  return loss, window_metrics(log_q, valid)


@registry.register('ce')
def ce(log_q: jax.Array, valid: jax.Array) -> slots.Value:
  """Returns the plain cross-entropy, the mean over all targets."""
  return decayed_ce(log_q, valid, math.inf)


@registry.register('ce_streak')
def ce_streak(log_q: jax.Array, valid: jax.Array) -> slots.Value:
  """Returns the cross-entropy weighted by S_{j-1}, held constant.

  What the authors of SpecDiff-2 release under this name. It is not the
  gradient of J (whose weights are W_j): it is here for comparison.

  Serves: rule M with a chain, less well than `streak_loss`.
  """
  live = live_prefix(log_q, valid)
  nll = -jnp.where(live, log_q, 0)
  before = jnp.cumsum(-nll, axis=-1) + nll  # log S_{j-1}
  weights = jnp.where(live, jnp.exp(jax.lax.stop_gradient(before)), 0)
  loss = mean(jnp.sum(weights * nll, axis=-1), live[..., 0])
  return loss, window_metrics(log_q, valid)


@registry.register('suffix')
def suffix(
  log_q: jax.Array, valid: jax.Array, suffix_base: jax.Array | float
) -> slots.Value:
  """Returns the cross-entropy that weighs what is just behind the prefix.

  DEER, arXiv 2512.15176, stage II: the last R tokens are masked, R uniform, and
  the j-th of them weighs base^(R - j). Here R is uniform on the slots of a
  window, and each slot has its mean weight over R,

    w_j = 1/G sum_{R=j..G} base^(R - j)

  which falls to 1/G at the last slot. The mean is over targets by weight.

  Serves: chains that are drawn and accepted by min(1, p / q), and rule M.
  """
  live = live_prefix(log_q, valid)
  gamma = log_q.shape[-1]
  powers = jnp.asarray(suffix_base, log_q.dtype) ** jnp.arange(gamma)
  weights = jnp.where(live, jnp.cumsum(powers)[::-1] / gamma, 0)
  nll = -jnp.where(live, log_q, 0)
  loss = jnp.sum(weights * nll) / jnp.maximum(jnp.sum(weights), 1e-9)
  return loss, window_metrics(log_q, valid)


def warmed(
  loss: slots.Value,
  log_q: jax.Array,
  valid: jax.Array,
  *,
  ce_weight: jax.Array | float,
  decay: jax.Array | float,
) -> slots.Value:
  """Returns ce_weight * decayed_ce + (1 - ce_weight) * loss."""
  value, metrics = loss
  ce, _ = decayed_ce(log_q, valid, decay)
  return ce_weight * ce + (1 - ce_weight) * value, metrics | {
    'ce': ce,
    'ce_weight': jnp.asarray(ce_weight, log_q.dtype),
  }


def window_metrics(
  log_q: jax.Array, valid: jax.Array, log_j: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Returns scalars of the windows that have a target at all.

  streak    mean J, the expected accepted tokens of one sampled draft
  q_first   mean probability of the first target
  outside   fraction whose first target lies outside the draft vocabulary
  windows   how many they are
  """
  if log_j is None:
    log_j = streak_value(log_q, valid)
  first, counted = jax.lax.stop_gradient(log_q[..., 0]), valid[..., 0]
  log_j = jax.lax.stop_gradient(log_j)
  return {
    'streak': mean(jnp.exp(log_j), counted),
    'q_first': mean(jnp.exp(first), counted),
    'outside': mean((first == -jnp.inf).astype(log_q.dtype), counted),
    'windows': jnp.sum(counted),
  }


def anneal(
  step: jax.Array | int, start: int, end: int, final: float = 1.0
) -> jax.Array:
  """Returns beta: 0 until `start`, rising linearly to `final` at `end`."""
  step = jnp.asarray(step, jnp.float32)
  if end <= start:
    return final * (step >= start).astype(jnp.float32)
  return final * jnp.clip((step - start) / (end - start), 0.0, 1.0)


def warmup_weight(step: jax.Array | int, warmup: int) -> jax.Array:
  """Returns the share of cross-entropy: 1 for `warmup` steps, then 0."""
  return jnp.where(step < warmup, 1.0, 0.0)


def decayed_mean(
  values: jax.Array, where: jax.Array, decay: jax.Array | float
) -> jax.Array:
  """Returns the mean of the values there, weighted by exp(-(j-1) / decay)."""
  place = jnp.arange(values.shape[-1], dtype=values.dtype)
  weights = jnp.where(where, jnp.exp(-place / decay), 0)
  total = jnp.sum(weights * jnp.where(where, values, 0))
  return total / jnp.maximum(jnp.sum(weights), 1e-9)


def mean(values: jax.Array, where: jax.Array) -> jax.Array:
  """Returns the mean of the values there, 0 if there are none."""
  total = jnp.sum(jnp.where(where, values, 0))
  return total / jnp.maximum(jnp.sum(where), 1).astype(values.dtype)
