"""Many windows a pass: how many targets a token yields, and the same loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import trajectory

from specdiff_jax.data import windows
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import training as diffusion_training
from specdiff_jax.models import config as config_lib
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.training import objective

T, GAMMA, VOCAB = 512, 16, 29
VERIFIER = config_lib.TransformerConfig(
    vocab_size=VOCAB, width=16, layers=2, heads=2, kv_heads=1, head_dim=8,
    mlp_width=16,
)  # fmt: skip
DRAFTER = drafter_network.DrafterConfig(
    gamma=GAMMA, layers=1, features=(1,), trunk=8, vocab=VOCAB, ngram=1,
    verifier=VERIFIER,
)  # fmt: skip


def packed(count):
  """Returns the pipeline's batch of one full row, with made-up features."""
  rng = np.random.default_rng(0)
  item = trajectory.trajectory(
    rng.integers(0, VOCAB, 64), rng.integers(0, VOCAB, T)
  )
  sizes = windows.WindowConfig(T, count, GAMMA, batch=1)
  batch = next(iter(windows.batches([item], sizes)))
  features = rng.standard_normal((1, T, 1, VERIFIER.width))
  return batch.replace(features=features.astype(np.float32))


@pytest.fixture(scope='module')
def value():
  """Loss, metrics and gradient of a batch, by the streak and from random."""
  config = fields.typed({'ce_fraction': 0.0})
  loss = objective.make_loss(
    diffusion_training.score_of(DRAFTER), build_losses.make(config), GAMMA
  )
  embed = jax.random.normal(jax.random.key(1), (VOCAB, VERIFIER.width))
  view = objective.view({'embed': embed}, np.arange(VOCAB))
  params = tiny_model.drafter_params(DRAFTER)
  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

  def run(batch):
    (loss, metrics), grads = gradient(params, view, batch, jnp.int32(9))
    flat = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(grads)])
    return float(loss), jax.device_get(metrics), np.asarray(flat)

  return run


def test_useful_targets_of_a_token(value):
  many, one = packed(96), packed(1)
  _, metrics, _ = value(many)
  valid = windows.targets(many, GAMMA)[1].sum()
  assert metrics['targets'] == valid
  useful = metrics['useful_targets_per_token']
  assert useful == pytest.approx(valid / (T + 96 * GAMMA)) and useful >= 0.6
  # The control: a pass of its own for each window.
  useful = value(one)[1]['useful_targets_per_token']
  assert 0.02 < useful < 0.04


def test_packed_windows_have_the_loss_of_single_ones(value):
  batch = packed(12)
  loss, metrics, grads = value(batch)
  assert metrics['windows'] == 12 and np.linalg.norm(grads) > 0.1

  def single(number, moved=0):
    return value(
      batch.replace(
        anchors=batch.anchors[:, number : number + 1] + moved,
        anchor_valid=batch.anchor_valid[:, number : number + 1],
      )
    )

  alone = [single(number) for number in range(12)]
  mean = np.mean([one[0] for one in alone])
  assert loss == pytest.approx(mean, rel=1e-5)
  gap = grads - np.mean([one[2] for one in alone], axis=0)
  assert np.linalg.norm(gap) < 1e-5 * np.linalg.norm(grads)
  # The control: one of them an anchor too early.
  other = np.mean([single(0, -1)[0]] + [one[0] for one in alone[1:]])
  assert abs(other - loss) > 1e-4 * abs(loss)
