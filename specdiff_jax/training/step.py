"""One training step, jitted and sharded."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from specdiff_jax.parallel import pin
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules as rules_lib
from specdiff_jax.training import optimizer as optimizer_lib

Params = Any
# (params, view, batch, step) -> (loss, dict of scalar metrics)
LossFn = Callable[
  [Params, Any, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]


class TrainState(flax.struct.PyTreeNode):
  """All that training carries from step to step.

  The state of `optimizer.skip_explosions` lies in it flat, as checkpoints have
  it: `skipped`, `norm` and, of the optimizer inside, `opt_state`.
  """

  step: jax.Array  # [] int32 batches seen
  skipped: jax.Array  # [] int32 of them, those whose update was left out
  norm: jax.Array  # [] float32 running mean of the gradients' norms; 0: none
  params: Params
  opt_state: Any


def abstract_state(
  init: Callable[..., Params],
  args: Sequence[Any],
  optimizer: optax.GradientTransformationExtraArgs,
  rules: Sequence[rules_lib.Rule],
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """Returns the shapes of the state before the first step, with shardings."""
  shapes = jax.eval_shape(_first_state(init, optimizer), *args)
  return rules_lib.placed(shapes, rules, mesh)


def init_state(
  init: Callable[..., Params],
  args: Sequence[Any],
  optimizer: optax.GradientTransformationExtraArgs,
  rules: Sequence[rules_lib.Rule],
  mesh: jax.sharding.Mesh,
) -> tuple[TrainState, Any]:
  """Returns a sharded state and its shardings.

  Shapes come first, then the rules, then the values: `init(*args)` runs
  under jit, so that nothing is ever materialised unsharded. The state shares
  no buffer with `args`, which stay alive when a step donates it.
  """
  abstract = abstract_state(init, args, optimizer, rules, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  first = jax.jit(_first_state(init, optimizer), out_shardings=shardings)
  return first(*args), shardings


def _first_state(init, optimizer) -> Callable[..., TrainState]:
  def create(*args) -> TrainState:
    params = jax.tree.map(jnp.copy, init(*args))
    skipped, norm, opt_state = optimizer.init(params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, skipped, norm, params, opt_state)

  return create


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformationExtraArgs,
  mesh: jax.sharding.Mesh,
  state_shardings: Any,
  used: Sequence[rules_lib.Rule] | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the jitted `(state, batch, frozen) -> (state, metrics)`.

  `state` is donated and comes back with the same shardings; the rows of
  `batch` are split over the mesh; `frozen` (the verifier's view, or None)
  keeps the shardings that it has. `optimizer` is one of
  `optimizer.skip_explosions`: where it leaves an update out, `step` goes on.

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
    before = optimizer_lib.Skipping(state.skipped, state.norm, state.opt_state)
    updated: Any = optimizer.update(grads, before, state.params, value=loss)
    updates, after = updated
    extra = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'skipped': after.skipped,
      'left_out': after.skipped > before.skipped,
    }
    state = TrainState(
      step=state.step + 1,
      skipped=after.skipped,
      norm=after.norm,
      params=optax.apply_updates(state.params, updates),
      opt_state=after.inner,
    )
    return state, metrics | extra

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
