"""Training of EAGLE drafters: windows are drafted as they are served."""

import functools

import jax
import numpy as np
import published_references
import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import errors
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.drafters import registry
from specdiff_jax.drafters.eagle import format as format_lib
from specdiff_jax.drafters.eagle import network as eagle
from specdiff_jax.drafters.eagle import options as options_lib
from specdiff_jax.drafters.eagle import training
from specdiff_jax.losses import making
from specdiff_jax.losses import options as loss_options
from specdiff_jax.testing import models
from specdiff_jax.training import objective

VERIFIER = models.tiny_verifier()
GAMMA, TOKENS = 3, 14
VOCAB = np.random.default_rng(0).permutation(models.VOCAB)[:40]
CONFIG = eagle.TrainedConfig((0, 1, 0), len(VOCAB), VERIFIER.config)
PARAMS = models.random_params(CONFIG.shapes(), 2, 0.3)
VIEW = objective.view(jax.tree.map(jax.numpy.asarray, VERIFIER.params), VOCAB)
ANCHORS = np.array([[1, 6, 9, 10], [3, 4, 8, 12]])


def batch(seed=0):
  rng = np.random.default_rng(seed)
  width = VERIFIER.config.width
  return training_types.TrainBatch(
    tokens=rng.integers(0, models.VOCAB, (2, TOKENS)).astype(np.int32),
    length=np.array([TOKENS, TOKENS - 1], np.int32),
    prompt_length=np.ones(2, np.int32),
    anchors=ANCHORS.astype(np.int32),
    anchor_valid=np.ones(ANCHORS.shape, bool),
    record=np.arange(2),
    features=rng.standard_normal((2, TOKENS, 3, width)).astype(np.float32),
  )


@jax.jit
def _packed(params, batch):
  found = training.score_of(CONFIG)(params, VIEW, batch, GAMMA)
  return found.states @ found.head.T


def packed(batch):
  """Returns the logits [B, W, G, N] of a batch's windows."""
  return np.asarray(_packed(PARAMS, batch)).reshape(*ANCHORS.shape, GAMMA, -1)


@functools.cache
def files():
  """Returns config.json and tensors as the reference takes them."""
  c = VERIFIER.config
  raw = {
    'rms_norm_eps': c.norm_eps,
    'rope_theta': c.rope_base,
    'num_attention_heads': c.heads,
    'num_key_value_heads': c.kv_heads,
  }
  head = np.asarray(VIEW.head) + np.asarray(PARAMS['head'])
  own = {**PARAMS, 'head': head}
  return raw, {
    theirs: np.asarray(
      functools.reduce(lambda at, key: at[key], ours.split('.'), own)
    )
    for ours, theirs in format_lib.tensor_names(CONFIG.run_as).items()
  }


def stepwise(batch, row, anchor):
  """Returns the same [G, N] of one window, token by token in numpy."""
  tokens = batch.tokens[row, 1 : anchor + GAMMA]
  read = batch.features[row, :anchor].reshape(anchor, -1).astype(np.float64)
  x = np.asarray(VERIFIER.params['embed'])[tokens]
  return published_references.eagle3(*files(), x, read)[1][anchor - 1 :]


def test_windows_are_drafted_token_by_token():
  text = batch()
  found = packed(text)
  _, valid = windows.targets(text, GAMMA)
  for row, window in np.ndindex(*ANCHORS.shape):
    wanted = stepwise(text, row, ANCHORS[row, window])
    there = valid[row, window][: len(wanted)]
    got = found[row, window][: len(wanted)]
    np.testing.assert_allclose(got[there], wanted[there], atol=1e-5)
  assert np.abs(found).max() > 1 and not valid.all()
  # Negative control: one token more of the verifier's states.
  assert np.abs(found[0, 1, 1] - stepwise(text, 0, 7)[0]).max() > 1e-2


def test_a_window_sees_no_state_from_its_anchor_on():
  text, other = batch(), batch(1)
  before = packed(text)
  for row, window in np.ndindex(*ANCHORS.shape):
    anchor = ANCHORS[row, window]
    tokens, features = text.tokens.copy(), text.features.copy()
    features[row, anchor:] = other.features[row, anchor:]
    tokens[row, anchor + GAMMA :] = other.tokens[row, anchor + GAMMA :]
    got = packed(text.replace(tokens=tokens, features=features))[row, window]
    np.testing.assert_array_equal(got, before[row, window])
    # Negative control: the state of the token before the anchor.
    features[row, anchor - 1] = 0
    got = packed(text.replace(features=features))[row, window]
    assert np.abs(got - before[row, window]).max() > 1e-4


@pytest.mark.parametrize('name', ['decayed_ce', 'decayed_kl'])
def test_a_few_steps_lower_the_loss(name):
  """Against the text, and against what the verifier says of each token."""
  text = batch()
  rng = np.random.default_rng(3)
  shape = (*text.tokens.shape, VERIFIER.config.width)
  state = rng.standard_normal(shape).astype(np.float32)
  whole = state @ np.asarray(VERIFIER.params['head']).T
  log_z = np.log(np.exp(whole).sum(-1))
  text = text.replace(
    distribution=training_types.Distribution(state, log_z.astype(np.float32))
  )
  options = loss_options.LOSSES[name](decay=4.5)
  loss = objective.make_loss(
    training.score_of(CONFIG),
    objective.Objective(making.make(name, options, 8), vocab_block=16),
    GAMMA,
  )
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  now = eagle.initial_from_verifier(CONFIG, jax.random.key(0), VERIFIER.params)
  assert not np.asarray(now['head']).any()
  found = []
  for number in range(6):
    (value, metrics), slope = step(now, VIEW, text, number)
    found.append(float(value))
    now = jax.tree.map(lambda x, g: x - 0.005 * jax.numpy.sign(g), now, slope)
  assert found[-1] < found[0] - 0.1, found
  assert metrics['targets'] == windows.targets(text, GAMMA)[1].sum()
  # All that is trained has a gradient.
  for name, x in jax.tree_util.tree_leaves_with_path(slope):
    assert np.abs(np.asarray(x)).max() > 0, name


def test_published_features():
  assert eagle.published_features(32) == (1, 15, 28)
  assert eagle.published_features(30) == (1, 14, 26)
  assert eagle.published_features(2) == (0, 1)


def test_sizes():
  verifier = presets.random('tiny', 'float32').config
  make = registry.network('eagle').sizes
  with pytest.raises(errors.InputError, match='features is'):
    make(options_lib.Options(features=(9,)), 4, verifier)
  made = make(options_lib.Options(layers=4, vocab=10**6), 4, verifier)
  assert made.layers == 1 and made.vocab == verifier.vocab_size
