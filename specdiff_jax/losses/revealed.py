"""Windows of which a part is shown: variable prefixes and the diffusion ELBO.

A drafter that is to go on from tokens that it decided (a second branch, a later
denoising step) learns from windows whose other tokens are the trajectory's:

  slot      1   2   3   4
  shown     x   .   x   .      the drafter sees x_1 and x_3
  targets       2       4      and is asked for the rest

`slots.Shown` says what is seen; the losses take `log_q` and `valid` as in
`windows`, with the log-probabilities under that view.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from specdiff_jax.losses import options as options_lib
from specdiff_jax.losses import registry
from specdiff_jax.losses import slots
from specdiff_jax.losses import windows

Schedule = Callable[[jax.Array], jax.Array]  # time in (0, 1] -> Pr(masked)


def draw_prefixes(
  key: jax.Array, shape: tuple[int, ...], gamma: int, base: float
) -> slots.Shown:
  """Draws how many first tokens each window shows: Pr(l) ~ base^l, l < gamma.

  D2SD, arXiv 2606.04446, Eq. 6 (base 0.9 in a public trainer). l counts drafted
  tokens, so that l = 0 is the window of a plain draft.
  """
  logits = jnp.arange(gamma) * jnp.log(base)
  length = jax.random.categorical(key, logits, shape=shape)
  return slots.Shown(jnp.arange(gamma) < length[..., None], jnp.ones(shape))


def _shown_prefixes(options: options_lib.VariablePrefix):
  return functools.partial(draw_prefixes, base=options.prefix_base)


@registry.register('variable_prefix', show=_shown_prefixes)
def variable_prefix(
  log_q: jax.Array,
  valid: jax.Array,
  shown: slots.Shown,
  decay: jax.Array | float,
  prefix_pooled: bool = False,
) -> slots.Value:
  """Returns D2SD's loss of the slots behind the shown prefix.

  With l shown tokens, -sum_{k>l} w_k log q_k / sum_{k>l} w_k and
  w_k = exp(-(k-l-1) / decay) (arXiv 2606.04446, Eq. 7; decay 7 in a public
  trainer), averaged over the windows that have a target behind l. Pooled, both
  sums go over all windows first, as a public trainer does: where nothing is
  shown that is `windows.decayed_ce`.

  Serves: rule M over a tree whose branches keep a prefix of a first draft and
  fill the rest anew; also chains of more than one denoising step.

  Args:
    log_q: [..., G].
    valid: [..., G].
    shown: views by `draw_prefixes`.
    decay: decay of the weights, in slots.
    prefix_pooled: whether all windows have one sum of weights.
  """
  # A shown token need not lie in the draft vocabulary.
  prefix = shown.mask
  live = windows.live_prefix(jnp.where(prefix, 0, log_q), valid) & ~prefix
  place = jnp.cumsum(live, axis=-1) - 1  # k - l - 1
  weights = jnp.where(live, jnp.exp(-place / decay), 0)
  nll = -jnp.where(live, log_q, 0)
  total = jnp.sum(weights, axis=-1)
  summed = jnp.sum(weights * nll, axis=-1)
  counted = jnp.any(live, axis=-1)
  if prefix_pooled:
    loss = jnp.sum(summed) / jnp.maximum(jnp.sum(total), 1e-9)
  else:
    loss = windows.mean(summed / jnp.maximum(total, 1e-9), counted)
  length = jnp.sum(prefix, axis=-1).astype(log_q.dtype)
  return loss, {
    'windows': jnp.sum(counted),
    'prefix': windows.mean(length, counted),
  }


def linear(time: jax.Array) -> jax.Array:
  """Returns the probability t that a token is masked (LLaDA, DiffuLLaMA)."""
  return time


def log_linear(time: jax.Array) -> jax.Array:
  """Returns 1 - exp(-sigma), sigma(t) = -log(1 - (1 - 1e-3) t).

  MDLM (arXiv 2406.07524): the total noise sigma is log-linear, and at t = 1
  one token in a thousand is still seen.
  """
  return -jnp.expm1(jnp.log1p(-(1 - 1e-3) * time))


SCHEDULES = {'linear': linear, 'log_linear': log_linear}


def elbo_weight(schedule: Schedule, time: jax.Array) -> jax.Array:
  """Returns m'(t) / m(t), the ELBO's weight of a masked token; [...].

  1 / t under both schedules above.
  """
  mask, slope = jax.jvp(schedule, (time,), (jnp.ones_like(time),))
  return slope / mask


def draw_masks(
  key: jax.Array, shape: tuple[int, ...], gamma: int, schedule: Schedule
) -> slots.Shown:
  """Draws a time t ~ U(0.001, 1) for each window, and masks under it."""
  time_key, mask_key = jax.random.split(key)
  time = jax.random.uniform(time_key, shape, minval=1e-3, maxval=1.0)
  masked = (
    jax.random.uniform(mask_key, shape + (gamma,)) < (schedule(time)[..., None])
  )
  return slots.Shown(~masked, elbo_weight(schedule, time))


def _shown_masks(options: options_lib.Elbo):
  schedule = SCHEDULES[options.noise_schedule]
  return functools.partial(draw_masks, schedule=schedule)


@registry.register('elbo', show=_shown_masks)
def elbo(log_q: jax.Array, valid: jax.Array, shown: slots.Shown) -> slots.Value:
  """Returns the masked-diffusion bound on -log p, in nats a token.

  -log p(x) <= integral over t of m'(t) / m(t) E[sum_{i masked} -log q_i(x_i)],
  one t for each window (MDLM, arXiv 2406.07524, Eq. 10; LLaDA, 2502.09992,
  Eq. 3). Exact conditionals make it an equality. Targets outside the draft
  vocabulary count nowhere. Of whole texts the same function takes
  [B, T] arrays.

  Serves: chains of several denoising steps under rule M, and the pretraining
  and adaptation of a masked language model. One pass from all masks sees only
  t = 1: there cross-entropy and the streak say more.

  Args:
    log_q: [..., G] under the partly masked input.
    valid: [..., G].
    shown: views by `draw_masks`.
  """
  counted = valid & (log_q > -jnp.inf)
  asked = counted & ~shown.mask
  nll = -jnp.where(asked, log_q, 0)
  total = jnp.sum(shown.weight[..., None] * nll)
  tokens = jnp.sum(counted)
  loss = total / jnp.maximum(tokens, 1).astype(log_q.dtype)
  return loss, {
    'windows': jnp.sum(jnp.any(counted, axis=-1)),
    'masked': jnp.sum(asked) / jnp.maximum(tokens, 1),
    'ce': windows.mean(nll, asked),
  }
