"""A verifier in the train step: the loss of features that were kept."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_model

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import training_types
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import training as diffusion_training
from specdiff_jax.models import networks
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.training import features as features_lib
from specdiff_jax.training import objective
from specdiff_jax.training import reading

GAMMA = 3
FEATURES = (0, 2)


def batch():
  rng = np.random.default_rng(0)
  return training_types.TrainBatch(
    tokens=rng.integers(0, 256, (2, 20)).astype(np.int32),
    length=np.array([20, 13], np.int32),
    prompt_length=np.array([4, 4], np.int32),
    anchors=np.array([[4, 9], [5, 8]], np.int32),
    anchor_valid=np.array([[True, True], [True, False]]),
    record=np.array([0, 1], np.int32),
  )


def test_it_is_the_loss_of_kept_features():
  verifier = presets.random('tiny', 'float32')
  weights = jax.tree.map(jnp.asarray, verifier.params)
  network = drafter_network.DrafterConfig(
    GAMMA, 1, FEATURES, 16, 64, 0, verifier.config
  )
  params = tiny_model.drafter_params(network)
  view = objective.view(weights, np.arange(64))
  config = fields.typed({'loss': 'kl'})
  loss = objective.make_loss(
    diffusion_training.score_of(network), build_losses.make(config), GAMMA
  )
  model = networks.network(verifier.config)

  def of(function):
    return jax.jit(lambda *args: function(*args, 0)[0])

  keep = features_lib.Features(model, weights, FEATURES, 9, 1.0)
  kept = keep(batch())
  with_kept = of(loss)
  wanted = with_kept(params, view, kept)
  inside = view.replace(verifier=weights, embed=None)
  read = reading.Reading(verifier, 0, FEATURES, 20)
  found = of(read.wrapped(loss, 1.0))(params, inside, batch())
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  # The control: features in another order.
  other = kept.replace(features=kept.features[:, :, ::-1])
  assert abs(with_kept(params, view, other) - wanted) > 1e-4 * wanted
