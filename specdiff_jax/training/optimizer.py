"""The optimizer: AdamW of the params that are trained, without explosions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from specdiff_jax.training import trainable_subset


def make_optimizer(
  learning_rate: float,
  steps: int,
  *,
  warmup: int | float = 0.04,
  weight_decay: float = 0.01,
  trained: str = '',
  explosion: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Returns AdamW after clipping to a global norm of 1, warm-up then cosine.

  Updates that explode are skipped; see `skip_explosions`.

  Args:
    learning_rate: The peak.
    steps: The length of the whole run; the cosine ends there.
    warmup: Steps of linear warm-up; below 1 a fraction of `steps`.
    weight_decay: Decoupled, and on matrices only (rank >= 2).
    trained: Expression of the names of what is trained; '' for all. See
      `trainable_subset.only`.
    explosion: See `skip_explosions`.
  """
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      schedule(learning_rate, steps, warmup),
      b2=0.95,
      weight_decay=weight_decay,
      mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
    ),
  )
  if trained:
    optimizer = trainable_subset.only(optimizer, trained)
  return skip_explosions(optimizer, explosion)


def schedule(
  learning_rate: float, steps: int, warmup: int | float = 0.04
) -> optax.Schedule:
  """Returns the learning rate by step: warm-up, then a cosine to 0 at `steps`.

  See `make_optimizer`.
  """
  warmup_steps = int(warmup * steps) if warmup < 1 else int(warmup)
  return optax.warmup_cosine_decay_schedule(
    init_value=learning_rate / (warmup_steps + 1),
    peak_value=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=max(steps, warmup_steps + 1),
  )


class Skipping(NamedTuple):
  """State of `skip_explosions`."""

  skipped: jax.Array  # [] int32 updates that were left out
  norm: jax.Array  # [] float32 running mean of the gradients' norms; 0: none
  inner: Any  # of the optimizer


def skip_explosions(
  optimizer: optax.GradientTransformation, explosion: float = 0.0
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that leaves out updates which would do harm.

  Where the loss (`value`) or the gradient's norm is not finite, or that norm is
  more than `explosion` (if that is not 0) times its running mean, params and
  the optimizer's state stay as they are, and `skipped` counts it.

  Example: skip_explosions(optax.adamw(1e-3), 10).update(g, s, p, value=loss)
  """
  inner = optax.with_extra_args_support(optimizer)

  def init(params):
    return Skipping(
      jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), inner.init(params)
    )

  def update(updates, state, params=None, **more):
    value, norm = more.pop('value'), optax.tree.norm(updates)
    good = jnp.isfinite(value) & jnp.isfinite(norm)
    usual = jnp.where(state.norm > 0, state.norm, norm)
    if explosion:
      good &= norm <= explosion * usual
    updates, after = inner.update(updates, state.inner, params, **more)
    # To add -0.0 changes no bit of any param; 0.0 would those of -0.0.
    updates = jax.tree.map(lambda u: jnp.where(good, u, -0.0), updates)
    return updates, Skipping(
      skipped=state.skipped + (~good).astype(jnp.int32),
      norm=jnp.where(good, 0.99 * usual + 0.01 * norm, state.norm),
      inner=jax.tree.map(
        lambda new, old: jnp.where(good, new, old), after, state.inner
      ),
    )

  return optax.GradientTransformationExtraArgs(init, update)
