"""A batch in micro-batches has the gradient of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model

from specdiff_jax.core import training_types
from specdiff_jax.drafters import scores
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import training as diffusion_training
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.training import features
from specdiff_jax.training import micro_batches
from specdiff_jax.training import objective
from specdiff_jax.training import reading

GAMMA, ROWS, WIDTH = 3, 4, 20


def test_rows_stay_in_their_places():
  x = {'a': jnp.arange(12.0).reshape(6, 2), 'b': jnp.arange(6)}

  def double(x, none):
    assert none is None
    return {'sum': x['a'].sum(-1), 'b': 2 * x['b']}

  wanted = double(x, None)
  for count in (1, 2, 3):
    found = micro_batches.over_micro_batches(double, count)(x, None)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(scope='module', autouse=True)
def settings():
  """Features that are not rounded.

  In bfloat16 the last bits of a pass over fewer rows would turn some of them
  by 0.4 %.
  """
  kept, features.KEPT = features.KEPT, jnp.float32
  yield
  features.KEPT = kept


@pytest.fixture(scope='module')
def drafter():
  """A verifier, a drafter, and the gradient of its loss in micro-batches."""
  from specdiff_jax.checkpoints import presets

  verifier = presets.random('tiny', 'float32')
  network = drafter_network.DrafterConfig(
    GAMMA, 1, (0, 2), 16, 64, 0, verifier.config
  )
  params = tiny_model.drafter_params(network)
  view = objective.view(verifier.params, np.arange(64))
  view = view.replace(verifier=verifier.params)
  score = diffusion_training.score_of(network)

  @functools.cache
  def compiled(count, score):
    settings = {'loss': 'decayed_ce', 'accumulate': count}
    config = fields.typed(settings)
    loss = reading.Reading(verifier, 0, (0, 2), 20).wrapped(
      objective.make_loss(score, build_losses.make(config), GAMMA),
      micro_batches=count,
    )
    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  def gradient(batch, count=1, score=score):
    value = compiled(count, score)
    (value, metrics), slope = value(params, view, batch, 0)
    return value, metrics, slope

  return network, gradient


def batch():
  """Rows of many lengths, so that each weighs differently."""
  rng = np.random.default_rng(0)
  return training_types.TrainBatch(
    tokens=rng.integers(0, 64, (ROWS, WIDTH)).astype(np.int32),
    length=np.array([20, 8, 14, 7], np.int32),
    prompt_length=np.full(ROWS, 4, np.int32),
    anchors=rng.integers(4, 6, (ROWS, 2)).astype(np.int32),
    anchor_valid=np.array([[1, 1], [1, 0], [1, 1], [1, 0]], bool),
    record=np.arange(ROWS, dtype=np.int32),
  )


def far(found, wanted):
  error = optax.tree.norm(optax.tree.sub(found, wanted))
  return float(error / optax.tree.norm(wanted))


def test_the_gradient_is_that_of_the_whole(drafter):
  network, gradient = drafter
  loss, metrics, wanted = gradient(batch())
  in_parts, same, found = gradient(batch(), 2)
  assert far(found, wanted) <= 1e-6
  assert float(in_parts) == pytest.approx(float(loss), rel=1e-6)
  assert int(same['targets']) == int(metrics['targets'])
  # The control: the mean over micro-batches that do not weigh the same.
  halves = [
    gradient(jax.tree.map(lambda x, first=first: x[first::2], batch()))[2]
    for first in (0, 1)
  ]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
  assert far(mean, wanted) > 1e-2
  again = diffusion_training.score_of(network, remat=True)
  assert far(gradient(batch(), 1, again)[2], wanted) <= 1e-6
  traced = jax.make_jaxpr(lambda b: gradient(b, 1, again))(batch())
  assert 'remat' in str(traced)
  # In bfloat16 gradients stay float32, and near.
  rounded = gradient(batch(), 1, scores.in_dtype(again, jnp.bfloat16))[2]
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(rounded))
  assert 1e-4 < far(rounded, wanted) < 5e-2
