"""One training step, jitted and sharded."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from specdiff_jax.core import errors
from specdiff_jax.parallel import pin
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules as rules_lib

Params = Any
# (params, frozen, batch, step) -> (loss, dict of scalar metrics)
LossFn = Callable[
  [Params, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]


@flax.struct.dataclass
class TrainState:
  """All that training carries from step to step."""

  step: jax.Array  # [] int32 batches seen
  skipped: jax.Array  # [] int32 of them, those whose update was left out
  norm: jax.Array  # [] float32 running mean of the gradients' norms; 0: none
  params: Params
  opt_state: Any


def make_optimizer(
  learning_rate: float,
  steps: int,
  *,
  warmup: int | float = 0.04,
  weight_decay: float = 0.01,
  clip: float = 1.0,
  b2: float = 0.95,
  final: float = 0.0,
) -> optax.GradientTransformation:
  """Returns AdamW after clipping by global norm, warm-up then cosine.

  Args:
    learning_rate: The peak.
    steps: The length of the whole run; the cosine ends there.
    warmup: Steps of linear warm-up; below 1 a fraction of `steps`.
    weight_decay: Decoupled, and on matrices only (rank >= 2).
    clip: Largest global norm of a gradient.
    b2: Decay of Adam's second moment.
    final: Learning rate at the end, as a fraction of the peak.
  """
  if steps < 1 or learning_rate <= 0:
    raise errors.InputError(
      f'optimizer: learning_rate {learning_rate} and steps {steps} must be '
      'positive.'
    )
  warmup_steps = int(warmup * steps) if warmup < 1 else int(warmup)
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=learning_rate / (warmup_steps + 1),
    peak_value=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=max(steps, warmup_steps + 1),
    end_value=final * learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(clip),
    optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=_is_matrix),
  )


def first_state(
  params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first step."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    skipped=zero,
    norm=jnp.zeros((), jnp.float32),
    params=params,
    opt_state=optimizer.init(params),
  )


def init_state(
  init: Callable[..., Params],
  args: Sequence[Any],
  optimizer: optax.GradientTransformation,
  rules: Sequence[rules_lib.Rule],
  mesh: jax.sharding.Mesh,
) -> tuple[TrainState, Any]:
  """Returns a sharded state and its shardings.

  Shapes come first, then the rules, then the values: `init(*args)` runs
  under jit, so that nothing is ever materialised unsharded. The state shares
  no buffer with `args`, which stay alive when a step donates it.
  """

  def create(*args) -> TrainState:
    return first_state(jax.tree.map(jnp.copy, init(*args)), optimizer)

  shapes = jax.eval_shape(create, *args)
  shardings = rules_lib.shardings(shapes, rules, mesh)
  state = jax.jit(create, out_shardings=shardings)(*args)
  return state, shardings


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  state_shardings: Any,
  explosion: float = 0.0,
  used: Sequence[rules_lib.Rule] | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted `(state, batch, frozen) -> (state, metrics)`.

  `state` is donated and comes back with the same shardings; the rows of
  `batch` are split over the mesh; `frozen` (the verifier's params, or None)
  keeps the shardings that it has. An update whose loss or gradient is not
  finite, or whose gradient's norm is more than `explosion` (if that is not 0)
  times their running mean, is left out: params and optimizer stay as they are,
  while `step` goes on and `skipped` counts it.

  Params that are split further than `used` says are gathered where the loss
  reads them, and each device keeps its part of the gradients: left alone, the
  compiler would split the activations instead, which are larger.

  Example:
    step = make_train_step(loss_fn, optimizer, mesh, shardings)
    state, metrics = step(state, batch, None)
  """

  def step(state: TrainState, batch, frozen):
    batch = _split_rows(batch, mesh)

    def of(params):
      if used is not None:
        whole = rules_lib.shardings(params, used, mesh)
        params = jax.lax.with_sharding_constraint(params, whole)
      with pin.over(mesh):
        return loss_fn(params, frozen, batch, state.step)

    value = jax.value_and_grad(of, has_aux=True)
    (loss, metrics), grads = value(state.params)
    grads = jax.lax.with_sharding_constraint(grads, state_shardings.params)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    usual = jnp.where(state.norm > 0, state.norm, norm)
    if explosion:
      good &= norm <= explosion * usual
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(
      step=state.step + 1,
      skipped=state.skipped + (~good).astype(jnp.int32),
      norm=jnp.where(good, 0.99 * usual + 0.01 * norm, state.norm),
      params=_select(good, params, state.params),
      opt_state=_select(good, opt_state, state.opt_state),
    )
    extra = {'loss': loss, 'grad_norm': norm, 'skipped': state.skipped}
    return state, metrics | extra | {'left_out': ~good}

  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(state_shardings, rules_lib.replicated(mesh)),
  )


def _split_rows(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """Constrains the rows of every leaf to the mesh's axes of rows."""
  sharding, ways = rules_lib.by_row(mesh), rules_lib.row_ways(mesh)

  def split(leaf):
    if not jnp.ndim(leaf):
      return leaf
    processes.check_rows(leaf.shape[0], ways)
    return jax.lax.with_sharding_constraint(leaf, sharding)

  return jax.tree.map(split, batch)


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _is_matrix(params: Params) -> Any:
  return jax.tree.map(lambda p: p.ndim >= 2, params)
