"""The jitted step: what it skips, donates and refuses; golden numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training

from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import rules
from specdiff_jax.training import checksum
from specdiff_jax.training import optimizer as optimizer_lib
from specdiff_jax.training import step

# Six steps of `tiny_training`; 1e-4 leaves room for another CPU's rounding.
GOLDEN_LOSSES = [
  2.041722,
  2.010424,
  1.977817,
  1.565098,
  1.120566,
  0.882623,
]
GOLDEN_STREAK = 0.238416


def test_golden_run():
  state, step_fn = tiny_training.start()
  iterator = tiny_training.batches()
  got = []
  for _ in range(6):
    state, metrics = step_fn(state, next(iterator), None)
    got.append(float(metrics['loss']))
  np.testing.assert_allclose(got, GOLDEN_LOSSES, rtol=1e-4)
  assert float(metrics['streak']) == pytest.approx(GOLDEN_STREAK, rel=1e-4)
  assert int(state.step) == 6 and int(state.skipped) == 0
  assert step_fn._cache_size() == 1  # No recompilation.


def test_non_finite_update_is_skipped_and_counted():
  state, step_fn = tiny_training.start()
  good = next(tiny_training.batches())
  bad = good | {'x': np.full_like(good['x'], np.nan)}
  state, _ = step_fn(state, good, None)
  before = checksum.digest((state.params, state.opt_state))
  state, metrics = step_fn(state, bad, None)
  assert checksum.digest((state.params, state.opt_state)) == before
  assert int(metrics['skipped']) == int(state.skipped) == 1
  assert int(state.step) == 2
  state, metrics = step_fn(state, good, None)
  assert np.isfinite(metrics['loss'])
  # Negative control: a finite update does change them.
  assert checksum.digest((state.params, state.opt_state)) != before
  assert int(state.skipped) == 1


def test_non_finite_gradient_of_a_finite_loss_is_skipped():
  def loss(params, frozen, batch, at):
    del frozen, batch, at
    zero = 0.0 * params['bias'][0]
    return jnp.sum(params['head'] ** 2) + jnp.sqrt(zero), {}

  state, step_fn = tiny_training.start(loss=loss)
  before = checksum.digest(state.params)
  state, metrics = step_fn(state, next(tiny_training.batches()), None)
  assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['grad_norm'])
  assert checksum.digest(state.params) == before
  assert int(state.skipped) == 1


def test_an_exploding_update_is_left_out():
  state, step_fn = tiny_training.start(explosion=10.0)
  iterator = tiny_training.batches()
  for _ in range(2):
    state, metrics = step_fn(state, next(iterator), None)
    assert not metrics['left_out']
  usual = float(state.norm)
  batch = next(iterator)
  huge = batch | {'x': 1e4 * batch['x']}
  before = checksum.digest((state.params, state.opt_state))
  for time in (1, 2):
    state, metrics = step_fn(state, huge, None)
    assert metrics['left_out'] and np.isfinite(metrics['grad_norm'])
    assert int(state.skipped) == time
  assert checksum.digest((state.params, state.opt_state)) == before
  assert float(state.norm) == usual  # no explosion raises the bar
  state, metrics = step_fn(state, batch, None)
  assert not metrics['left_out'] and int(state.skipped) == 2
  # The control: without the limit it is an update.
  state, step_fn = tiny_training.start()
  state, metrics = step_fn(state, huge, None)
  assert not metrics['left_out'] and int(state.skipped) == 0


def test_frozen_and_init_arguments_survive_donation():
  mesh = mesh_lib.make_mesh((1, 1))
  optimizer = optimizer_lib.make_optimizer(0.1, 4)
  frozen = {'head': jnp.ones((3, 2))}
  state, shardings = step.init_state(
    lambda f: {'head': f['head']}, [frozen], optimizer, (), mesh
  )

  def loss(params, frozen, batch, at):
    del at
    return jnp.sum((params['head'] - frozen['head']) * batch), {}

  step_fn = step.make_train_step(loss, optimizer, mesh, shardings)
  donated = state.params['head']
  state, _ = step_fn(state, np.ones((1, 2), np.float32), frozen)
  assert donated.is_deleted()
  assert float(frozen['head'].sum()) == 6.0
  assert float(state.params['head'].sum()) != 6.0


def test_biases_do_not_decay():
  optimizer = optimizer_lib.make_optimizer(0.1, 10, warmup=0, weight_decay=1.0)
  params = {'head': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(
    zeros, optimizer.init(params), params, value=0.0
  )
  assert float(updates['head'][0, 0]) < 0
  assert float(updates['bias'][0]) == 0


def test_optimizer_state_is_split_as_its_parameters():
  mesh = mesh_lib.make_mesh((1, 1))
  shapes = jax.eval_shape(
    lambda: optimizer_lib.make_optimizer(0.1, 4).init(
      {'query': jnp.ones((4, 2))}
    )
  )
  leaves = jax.tree.leaves(
    rules.shardings(shapes, rules.TRANSFORMER, mesh),
  )
  specs = [leaf.spec for leaf in leaves]
  assert specs.count(jax.sharding.PartitionSpec('model', None)) == 2
