"""Losses that compare the drafter's distribution with the verifier's.

Both distributions stand over the draft vocabulary, as arrays [..., V]:

  log_q  log-probabilities of the drafter, finite; q sums to 1, is 0 elsewhere
  log_p  log-probabilities of the verifier; what they lack of 1 is the mass
         outside the draft vocabulary. -inf is allowed, but not everywhere

A distribution is that of the trajectory's next token given all before it, so a
window's slot j is compared under the verifier's tokens x_1 .. x_{j-1}.

The functions of two distributions drop the last axis; a loss takes their values
[..., G] beside `log_q` and `valid` [..., G] of the targets, as in `losses`.
"""

import jax
import jax.numpy as jnp

from specdiff_jax.losses import registry
from specdiff_jax.losses import slots
from specdiff_jax.losses import windows


def log_overlap(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns log alpha, alpha = sum_v min(p(v), q(v)) = 1 - TV.

  The probability that rejection sampling accepts one token drawn from q.
  """
  return _log_sum(jnp.minimum(log_q, log_p))


def overlap(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns alpha; see `log_overlap`."""
  return jnp.exp(log_overlap(log_q, log_p))


def log_agreement(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns log sum_v p(v) q(v): that independent draws are the same token."""
  return _log_sum(log_q + log_p)


def forward_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns m KL(p / m || q), m the mass of p inside the draft vocabulary.

  Its gradient is that of the cross-entropy -sum_v p(v) log q(v) (DistillSpec,
  arXiv 2310.08461): the mass outside, which q cannot reach, plays no part, and
  at m = 1 it is the KL divergence itself.
  """
  p, inside = jnp.exp(log_p), log_p > -jnp.inf
  ratio = jnp.where(inside, log_p, 0) - jnp.where(inside, log_q, 0)
  mass = jnp.sum(p, axis=-1)
  return jnp.sum(p * ratio, axis=-1) - jax.scipy.special.xlogy(mass, mass)


def reverse_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns KL(q || p) = sum_v q(v) log(q(v) / p(v)).

  It seeks modes (DistillSpec). Infinite where p is 0 and q is not.
  """
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def js(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns the Jensen-Shannon divergence, in nats: 0 to log 2.

  The mean of KL(p || m) and KL(q || m), m = (p + q) / 2 (DistillSpec with
  weight 1/2). Outside the draft vocabulary m is p / 2.
  """
  log_m = jnp.logaddexp(log_q, log_p) - jnp.log(2.0)
  p, inside = jnp.exp(log_p), log_p > -jnp.inf
  ratio = jnp.where(inside, log_p - log_m, 0)
  outside = (1 - jnp.sum(p, axis=-1)) * jnp.log(2.0)
  each = p * ratio + jnp.exp(log_q) * (log_q - log_m)
  return (jnp.sum(each, axis=-1) + outside) / 2


def tv(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns the total variation 1 - sum_v min(p(v), q(v)), 0 to 1."""
  return 1 - overlap(log_q, log_p)


def distillation(
  divergence: jax.Array, log_q: jax.Array, valid: jax.Array
) -> slots.Value:
  """Returns the mean divergence of the slots that a draft can reach.

  AR-distillation, slot by slot (DistillSpec, arXiv 2310.08461), with any of
  the divergences above.

  Serves: `forward_kl` covers the verifier's whole distribution and ranks it,
  which is what trees live on; `reverse_kl` gives up tails for the mode: chains
  under rule M; `js` lies between; `tv` is one rejected token exactly, for
  rejection and shared noise, but its gradient vanishes where the distributions
  do not meet, so warm up with cross-entropy first.
  """
  there = windows.reached(log_q, valid)
  loss = windows.mean(jnp.where(there, divergence, 0), there)
  return loss, windows.window_metrics(log_q, valid)


for _name, _divergence in (
  ('kl', forward_kl),
  ('reverse_kl', reverse_kl),
  ('js', js),
  ('tv', tv),
):
  registry.register(_name, statistics={'divergence': _divergence})(distillation)


@registry.register('lk', statistics={'kl': forward_kl, 'alpha': overlap})
def lk_loss(
  kl: jax.Array,
  alpha: jax.Array,
  log_q: jax.Array,
  valid: jax.Array,
  lk_eta: jax.Array | float,
) -> slots.Value:
  """Returns the LK hybrid: lambda KL + (1 - lambda) TV, slot by slot.

  lambda = exp(-eta alpha) is held constant (arXiv 2602.23881, eta = 3): where
  the distributions hardly meet it is the KL divergence, whose gradient does not
  vanish, and where they do it is the acceptance of rejection sampling.

  Serves: rejection and shared noise at a temperature above 0.

  Args:
    kl: [..., G] `forward_kl`.
    alpha: [..., G] `overlap`.
    log_q: [..., G] of the targets.
    valid: [..., G].
    lk_eta: how fast the KL divergence fades.
  """
  fixed = jax.lax.stop_gradient(alpha)
  share = jnp.exp(-lk_eta * fixed)
  mixed = share * kl + (1 - share) * (1 - alpha)
  loss, metrics = distillation(mixed, log_q, valid)
  reached = windows.mean(fixed, windows.reached(log_q, valid))
  return loss, metrics | {'overlap': reached}


@registry.register('decayed_kl', statistics={'divergence': forward_kl})
def decayed_kl(
  divergence: jax.Array,
  log_q: jax.Array,
  valid: jax.Array,
  decay: jax.Array | float,
) -> slots.Value:
  """Returns the mean of `forward_kl` with weights exp(-(j-1) / decay).

  EAGLE-3 (arXiv 2503.01840) takes 0.8^(j-1), a decay of 4.48.

  Serves: as `kl`, where first tokens matter most.
  """
  there = windows.reached(log_q, valid)
  loss = windows.decayed_mean(divergence, there, decay)
  return loss, windows.window_metrics(log_q, valid)


@registry.register('dspark', statistics={'distance': tv})
def dspark_loss(
  distance: jax.Array,
  log_q: jax.Array,
  valid: jax.Array,
  decay: jax.Array | float,
  ce_share: jax.Array | float,
) -> slots.Value:
  """Returns a CE + (1 - a) |p - q|_1, both with weights exp(-(j-1) / decay).

  DSpark (arXiv 2607.05147) takes a = 0.1 and decay = 4. |p - q|_1 is twice the
  total variation: what rejection sampling loses of a token.

  Serves: heads, and any tree or chain at a temperature above 0.

  Args:
    distance: [..., G] `tv`.
    log_q: [..., G] of the targets.
    valid: [..., G].
    decay: of the weights.
    ce_share: a.
  """
  ce, metrics = windows.decayed_ce(log_q, valid, decay)
  l1 = windows.decayed_mean(2 * distance, windows.reached(log_q, valid), decay)
  loss = ce_share * ce + (1 - ce_share) * l1
  return loss, metrics | {'ce': ce, 'l1': l1}


@registry.register('confidence', statistics={'distance': tv})
def confidence_loss(
  confidence: jax.Array,
  distance: jax.Array,
  log_q: jax.Array,
  valid: jax.Array,
  decay: jax.Array | float,
) -> slots.Value:
  """Returns the binary cross-entropy of c against 1 - TV(p, q), with weights.

  DSpark (arXiv 2607.05147): 1 - TV is the chance that rejection sampling accepts
  a drawn token. The weights are exp(-(j-1) / decay).

  Serves: the head `confidence`, by which drafts are cut.

  Args:
    confidence: [..., G] logits of c.
    distance: [..., G] `tv`, from which nothing is learned.
    log_q: [..., G] of the targets.
    valid: [..., G].
    decay: of the weights.
  """
  where = windows.reached(log_q, valid)
  target = 1 - jax.lax.stop_gradient(distance)
  entropy = jax.nn.softplus(confidence) - target * confidence
  loss = windows.decayed_mean(entropy, where, decay)
  chance = jax.nn.sigmoid(confidence)
  return loss, {
    'confidence': windows.mean(chance, where),
    'overlap': windows.mean(target, where),
    'confidence_error': windows.mean(jnp.abs(chance - target), where),
  }


def soft_value(
  log_factor: jax.Array, log_last: jax.Array, valid: jax.Array
) -> jax.Array:
  """Returns log sum_m prod_{j<m} a_j(x_j) b_m, [...].

  An expected length whose last factor is averaged over the verifier's
  distribution, b_m = sum_v p_m(v) a_m(v), instead of taken at the drawn target
  x_m. The expectation over x ~ P is the same and its variance less. It is to be
  differentiated as it stands: the weights W_j are not its gradient.

  Args:
    log_factor: [..., G] log a_j(x_j), -inf where it is 0.
    log_last: [..., G] log b_j.
    valid: [..., G] bool, a prefix.
  """
  alive = windows.live_prefix(log_factor, valid)
  terms = windows.reached(log_factor, valid) & (log_last > -jnp.inf)
  log_s = jnp.cumsum(jnp.where(alive, log_factor, 0), axis=-1)
  before = jnp.pad(log_s[..., :-1], [(0, 0)] * (log_s.ndim - 1) + [(1, 0)])
  last = jnp.where(terms, log_last, 0)
  return _log_sum(jnp.where(terms, before + last, -jnp.inf))


@registry.register(
  'soft_streak',
  statistics={'agreement': log_agreement},
  drawn=True,
)
def soft_streak_loss(
  log_q: jax.Array,
  agreement: jax.Array,
  valid: jax.Array,
  beta: jax.Array | float,
) -> slots.Value:
  """Returns the streak loss with its last factor averaged: <p_m, q_m>.

  J = sum_m prod_{j<m} q_j(x_j) <p_m, q_m> has the expectation of SpecDiff-2's
  Eq. 6 over x ~ P and a small part of its variance. With beta other than 1 the
  noise inside the logarithm differs, and with it the expectation.

  Serves: what `windows.streak_loss` serves, where the distribution is at hand
  and the trajectories were drawn from it (not greedy ones).
  """
  log_j = soft_value(log_q, agreement, valid)
  loss = windows.length_loss(log_j, beta)
  return loss, windows.window_metrics(log_q, valid) | {
    'soft_streak': windows.mean(jnp.exp(log_j), valid[..., 0])
  }


@registry.register(
  'rejection',
  statistics={'log_last': log_overlap},
  drawn=True,
)
def rejection_loss(
  log_q: jax.Array,
  log_p: jax.Array,
  valid: jax.Array,
  beta: jax.Array | float,
  log_last: jax.Array,
) -> slots.Value:
  """Returns the Box-Cox loss of the length that rejection sampling accepts.

  E[accepted] = E_{x ~ P} sum_m prod_{j<=m} min(1, q_j(x_j) / p_j(x_j)): exact,
  for P(x) min(1, q/p) = min(P, Q) term by term. The last factor is averaged
  (see `soft_value`).

  Serves: rejection (and, nearly, shared noise) at a temperature above 0, on
  trajectories that were drawn at it. It has no reason to sharpen q.

  Args:
    log_q: [..., G] of the targets under the drafter.
    log_p: [..., G] of the targets under the verifier.
    valid: [..., G].
    beta: exponent, as in `windows.streak_loss`.
    log_last: [..., G] `log_overlap`.
  """
  log_j = soft_value(jnp.minimum(log_q - log_p, 0), log_last, valid)
  loss = windows.length_loss(log_j, beta)
  return loss, windows.window_metrics(log_q, valid) | {
    'rejection_accepted': windows.mean(jnp.exp(log_j), valid[..., 0])
  }


def from_top_k(
  ids: jax.Array, log_p: jax.Array, index: jax.Array, size: int
) -> jax.Array:
  """Returns log_p [..., size] over the draft vocabulary, of a stored top k.

  The mass that was not stored is spread evenly over all other tokens of the
  verifier. So the truncated distribution is at most that mass away from the
  true one in total variation, and alpha and TV are wrong by at most as much;
  the order below the top k is lost, and reverse KL sees a flat tail.

  Args:
    ids: [..., K] int32 tokens of the verifier.
    log_p: [..., K] their log-probabilities.
    index: [V] places in the draft vocabulary, -1 outside.
    size: size of the draft vocabulary.

  Example: from_top_k([[7, 2]], log([[.6, .3]]), index, 4) where the draft
  vocabulary is (2, 5, 7, 9) of V = 12: .3, .01, .6, .01.
  """
  # Never 0, which would be an infinite reverse KL of a rounded distribution.
  rest = jnp.maximum(1 - jnp.sum(jnp.exp(log_p), axis=-1), 1e-30)
  flat = jnp.log(rest / max(index.shape[0] - ids.shape[-1], 1))
  place = index[ids]
  place = jnp.where(place >= 0, place, size)  # dropped
  rows = jnp.arange(flat.size)[:, None]
  dense = jnp.broadcast_to(flat.reshape(-1, 1), (flat.size, size))
  dense = dense.at[rows, place.reshape(flat.size, -1)].set(
    log_p.reshape(flat.size, -1), mode='drop'
  )
  return dense.reshape(flat.shape + (size,))


def _log_sum(terms: jax.Array) -> jax.Array:
  """Returns the logsumexp; -inf with a zero gradient where all are -inf."""
  finite = jnp.any(terms > -jnp.inf, axis=-1)
  safe = jnp.where(finite[..., None], terms, 0)
  return jnp.where(finite, jax.nn.logsumexp(safe, axis=-1), -jnp.inf)
