"""A verifier adapted to diffusion: its scores are those that it serves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from specdiff_jax.core import errors
from specdiff_jax.core import training_types
from specdiff_jax.drafters.masked_lm import network as adapted_network
from specdiff_jax.drafters.masked_lm import training as adaptation
from specdiff_jax.losses import revealed
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.training import objective

VERIFIER = config_lib.TransformerConfig(
    vocab_size=30, width=16, layers=1, heads=4, kv_heads=2, head_dim=4,
    mlp_width=24, tied_head=False,
)  # fmt: skip
MASK, GAMMA = 29, 3


@pytest.fixture(scope='module')
def parts():
  """Returns (sizes, params, view, batch) of a verifier as it is."""
  verifier = tiny_model.random_params(VERIFIER)
  verifier = jax.tree.map(jnp.asarray, verifier)
  sizes = adapted_network.AdaptedConfig(MASK, VERIFIER)
  params = adapted_network.initial_from_verifier(
    sizes, jax.random.key(0), verifier
  )
  vocab = np.arange(sizes.vocab)
  view = objective.view(verifier, vocab)
  rng = np.random.default_rng(0)
  batch = training_types.TrainBatch(
    tokens=rng.integers(0, 29, (2, 12)).astype(np.int32),
    length=np.array([12, 9], np.int32),
    prompt_length=np.array([3, 4], np.int32),
    anchors=np.array([[3, 9], [5, 7]], np.int32),
    anchor_valid=np.ones((2, 2), bool),
    record=np.arange(2),
  )
  return verifier, sizes, params, view, batch


def served(verifier, sizes, params, text, shifted=True):
  """Logits of gamma masks after a text, from the whole language model."""
  model = networks.network(sizes.model.network)
  tokens = np.append(text, [MASK] * GAMMA)[None].astype(np.int32)
  size = tokens.shape[1]
  first = len(text) - int(shifted)
  whole = adapted_network.whole(params, verifier)
  mask = np.ones((1, size, size), bool)
  return np.asarray(
    logits_of(model, whole, tokens, mask)[0, first : first + GAMMA]
  )


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens, mask):
  positions = jnp.arange(tokens.shape[1])[None]
  x, _, _ = model.apply({'params': params}, tokens, positions, mask)
  return model.apply({'params': params}, x, method='logits')


def test_windows_are_scored_as_they_are_served(parts):
  verifier, sizes, params, view, batch = parts
  score = adaptation.score_of(sizes)
  found = jax.jit(lambda p, b: score(p, view, b, GAMMA))(params, batch)
  logits = np.asarray(found.states) @ np.asarray(view.head).T
  wrong = 0
  for b, w in np.ndindex(2, 2):
    anchor = batch.anchors[b, w]
    text = batch.tokens[b, : anchor + 1]
    expected = served(verifier, sizes, params, text)
    got = logits[b, np.asarray(found.place)[b, w]]
    np.testing.assert_allclose(got, expected, atol=2e-4)
    other = served(verifier, sizes, params, text, shifted=False)
    wrong = max(wrong, np.abs(got - other).max())
    position = np.asarray(found.position)[b].reshape(2, GAMMA)[w]
    np.testing.assert_array_equal(position, anchor + np.arange(GAMMA))
  assert found.extra_tokens == 2 * 2 * (12 + GAMMA) - 2 * 12
  assert wrong > 0.1  # the control: the outputs of the slots themselves


def test_before_it_opens_it_is_the_verifiers_own_loss(parts):
  """With causal attention, and completions of masks alone."""
  verifier, sizes, params, view, batch = parts
  always = lambda time: 1.0 + 0 * time

  def elbo(steps):
    value = adaptation.whole_elbo(sizes, always, steps)
    run = jax.jit(lambda batch: value(
        params, view, batch, jax.random.split(jax.random.key(1)), 0, 0
    ))  # fmt: skip
    return run(batch)[1]

  metrics = elbo(10**9)
  assert metrics['masked'] == 1
  tokens = np.where(
    np.arange(12) < batch.prompt_length[:, None], batch.tokens, MASK
  )
  model = networks.network(VERIFIER)
  causal = np.tril(np.ones((1, 12, 12), bool))
  logits = logits_of(model, verifier, tokens, causal)
  log_p = np.asarray(jax.nn.log_softmax(logits))
  rows = [
      [log_p[b, i - 1, batch.tokens[b, i]]
       for i in range(batch.prompt_length[b], batch.length[b])]
      for b in range(2)
  ]  # fmt: skip
  expected = -np.mean(sum(rows, []))
  np.testing.assert_allclose(metrics['ce'], expected, rtol=1e-4)
  opened = elbo(1)  # the control
  assert abs(opened['ce'] - expected) > 1e-3


def test_the_objective_takes_whole_texts(parts):
  _, sizes, params, view, batch = parts
  whole = adaptation.whole_elbo(sizes, revealed.linear, 4)
  loss = objective.Objective(None, vocab_block=13, whole=whole)
  value = objective.make_loss(None, loss, GAMMA, seed=3)
  run = jax.jit(jax.value_and_grad(value, has_aux=True))
  (before, metrics), slope = run(params, view, batch, 5)
  assert np.isfinite(before) and 0 < metrics['masked'] < 1
  scale = 0.05 / max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slope))
  (after, _), _ = run(
    jax.tree.map(lambda x, g: x - scale * g, params, slope), view, batch, 5
  )
  assert after < before
  (again, _), _ = run(params, view, batch, 5)
  other, _ = run(params, view, batch, 6)
  assert again == before != other[0]


def test_a_mask_that_is_no_token_is_refused():
  with pytest.raises(errors.InputError, match='mask token has the id 99'):
    adapted_network.AdaptedConfig(99, VERIFIER)
  assert adapted_network.AdaptedConfig(MASK, VERIFIER).model.shifted
