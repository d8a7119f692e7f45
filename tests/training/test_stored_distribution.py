"""The law that `collect` stores, and losses that read it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import trajectory

from specdiff_jax.collecting import stored_distribution
from specdiff_jax.core import errors
from specdiff_jax.data import windows
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import training as diffusion_training
from specdiff_jax.losses import divergences
from specdiff_jax.losses import slots as slots_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.training import features
from specdiff_jax.training import objective

VERIFIER = config_lib.TransformerConfig(
    vocab_size=40, width=16, layers=1, heads=4, kv_heads=2, head_dim=4,
    mlp_width=24, tied_head=False,
)  # fmt: skip
TEMPERATURE = 0.7
ASKED = {
    'kl': divergences.forward_kl, 'reverse_kl': divergences.reverse_kl,
    'agreement': divergences.log_agreement,
}  # fmt: skip


@pytest.fixture(scope='module')
def verifier():
  params = jax.tree.map(jnp.asarray, tiny_model.random_params(VERIFIER))
  return types.SimpleNamespace(config=VERIFIER, params=params)


def made(number, prompt, completion):
  rng = np.random.default_rng(number)
  return trajectory.trajectory(
      rng.integers(0, 40, prompt), rng.integers(0, 40, completion),
      id=str(number), temperature=TEMPERATURE,
  )  # fmt: skip


RECORDS = [made(0, 4, 9), made(1, 6, 3)]
SIZES = windows.WindowConfig(tokens=16, windows=4, gamma=3, batch=2)


def stored(verifier, k):
  law = stored_distribution.TopK(
    networks.network(verifier.config),
    verifier.params,
    k,
    TEMPERATURE,
    rows=3,
    sizes=(14, 20),
    count=10,
  )
  return law(RECORDS)


def test_what_is_stored_is_the_law_of_each_token(verifier):
  records = stored(verifier, 5)
  model = networks.network(verifier.config)

  @jax.jit
  def law(tokens, positions, mask):
    params = {'params': verifier.params}
    state, _, _ = model.apply(params, tokens, positions, mask)
    logits = model.apply(params, state, method='logits')
    return jax.nn.log_softmax(logits / TEMPERATURE)

  for record, before in zip(records, RECORDS, strict=True):
    tokens = np.concatenate([before.prompt, before.completion])[None]
    positions = np.arange(tokens.shape[1])[None]
    mask = np.tril(np.ones((1, tokens.size, tokens.size), bool))
    first = len(before.prompt) - 1
    log_p = law(tokens, positions, mask)[0, first:-1]
    best = np.sort(log_p, axis=-1)[:, ::-1][:, :5]
    assert record.top_ids.shape == (len(before.completion), 5)
    assert record.top_log_p.dtype == np.float16
    np.testing.assert_allclose(record.top_log_p, best, atol=4e-3)
    at_ids = np.take_along_axis(np.asarray(log_p), record.top_ids, -1)
    np.testing.assert_allclose(at_ids, best, atol=1e-4)
    # The control: the place of one token later.
    assert np.abs(best[1:] - record.top_log_p[:-1]).max() > 0.05


def known(verifier, batch, vocab):
  """Returns what a random drafter's slots are told, as a function."""
  network = drafter_network.DrafterConfig(
    3, 1, (0,), 16, len(vocab), 0, verifier.config
  )
  params = tiny_model.drafter_params(network)
  view = objective.view(verifier.params, vocab)
  loss = slots_lib.Loss(None, ASKED, TEMPERATURE)
  _, valid = windows.targets(batch, 3)
  score = diffusion_training.score_of(network)

  @jax.jit
  def tell(batch):
    predictions = score(params, view, batch, 3)
    return objective.slots(predictions, view, batch, valid, loss)

  return lambda batch: jax.device_get(tell(batch)), valid


def test_the_whole_law_stored_is_the_law_online(verifier):
  batch = next(iter(windows.batches(RECORDS, SIZES)))
  given = np.ones((2, 16, 1, verifier.config.width), 'f4')
  batch = batch.replace(features=given)
  vocab = np.arange(verifier.config.vocab_size)[::-1].astype(np.int32)
  tell, valid = known(verifier, batch, vocab)
  model = networks.network(verifier.config)
  online = features.Features(model, verifier.params, (), 0, TEMPERATURE)
  expected = tell(online(batch))
  records = stored(verifier, len(vocab))
  found = tell(features.with_stored(records, batch))
  # The control: each law one token too late.
  late = [
      dataclasses.replace(
          record, top_ids=np.roll(record.top_ids, 1, axis=0),
          top_log_p=np.roll(record.top_log_p, 1, axis=0))
      for record in records
  ]  # fmt: skip
  other = tell(features.with_stored(late, batch))
  assert valid.sum() >= 10
  for name in ASKED:
    want = expected.statistics[name][valid]
    np.testing.assert_allclose(found.statistics[name][valid], want, atol=1e-3)
    assert np.isfinite(found.statistics[name]).all()
    assert np.abs(other.statistics[name][valid] - want).max() > 0.02, name
  np.testing.assert_allclose(
    found.log_p[valid], expected.log_p[valid], atol=4e-3
  )
  log_q = found.log_q[valid]
  np.testing.assert_array_equal(log_q, expected.log_q[valid])


def test_long_trajectories_and_blank_rows(verifier):
  """Rows are cut where the batch is, and blank rows have some law."""
  source = stored(verifier, 4)
  batch = next(iter(windows.batches(RECORDS, SIZES))).replace(
    tokens=np.zeros((2, 7), np.int32), record=np.array([0, windows.BLANK])
  )
  got = features.with_stored(source, batch).distribution
  np.testing.assert_array_equal(got.ids[0, 3:], source[0].top_ids[:4])
  np.testing.assert_array_equal(got.log_p[0, 3:], source[0].top_log_p[:4])
  assert np.isfinite(got.log_p).all()


def test_data_without_the_law_are_refused():
  def check(header, **values):
    config = fields.typed(values)
    build_losses.check_data(config, header, 'runs/x')

  header = {'store_top_k': 8, 'law_temperature': 1.0}
  check(header, loss='kl', stored_law=True)
  check({}, loss='kl')
  check({}, loss='streak', stored_law=True)  # it reads no law
  for wrong in ({}, header | {'law_temperature': 0.5}):
    with pytest.raises(errors.InputError, match='runs/x.*store_top_k'):
      check(wrong, loss='kl', stored_law=True)
