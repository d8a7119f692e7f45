"""Training of DFlash: packed blocks are those that are served."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectory

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.dflash import drafter as block
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.drafters.dflash import options as options_lib
from specdiff_jax.drafters.dflash import training
from specdiff_jax.losses import making
from specdiff_jax.losses import options as loss_options
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import networks
from specdiff_jax.models import views
from specdiff_jax.recipes import training as recipes
from specdiff_jax.testing import contract
from specdiff_jax.testing import models
from specdiff_jax.training import objective
from specdiff_jax.verifiers import causal

VERIFIER = models.tiny_verifier()
VERIFIER = dataclasses.replace(
  VERIFIER, params=jax.tree.map(jnp.asarray, VERIFIER.params)
)
GAMMA, TOKENS, MASK = 3, 14, models.VOCAB - 1
CONFIG = dflash.TrainedConfig(
  gamma=GAMMA,
  layers=2,
  features=(0, 1),
  mask_id=MASK,
  vocab=models.VOCAB,
  window=0,
  verifier=VERIFIER.config,
)
SLIDING = dataclasses.replace(CONFIG, window=4, layers=1)
SECOND = dataclasses.replace(CONFIG, taps=2, layers=1)  # DFlash 2
ANCHORED = dataclasses.replace(CONFIG, from_anchor=1, layers=1)
SIZES = {
  'full': CONFIG, 'sliding': SLIDING, 'conv': SECOND, 'from_anchor': ANCHORED,
}  # fmt: skip
ANCHORS = np.array([[1, 6, 9, 10], [3, 4, 8, 12]])


@functools.cache
def params(config, seed=2):
  return models.random_params(config.shapes(), seed, 0.15)


def batch(seed=0, **changes):
  rng = np.random.default_rng(seed)
  made = training_types.TrainBatch(
    tokens=rng.integers(0, MASK, (2, TOKENS)).astype(np.int32),
    length=np.array([TOKENS, TOKENS - 1], np.int32),
    prompt_length=np.ones(2, np.int32),
    anchors=ANCHORS.astype(np.int32),
    anchor_valid=np.ones(ANCHORS.shape, bool),
    record=np.arange(2),
    features=rng.standard_normal((2, TOKENS, 2, 24)).astype(np.float32),
  )
  return made.replace(**changes)


VIEW = objective.view(VERIFIER.params, np.arange(models.VOCAB))


@functools.partial(jax.jit, static_argnums=0)
def _packed(config, params, batch, shown):
  found = training.score_of(config)(params, VIEW, batch, config.gamma, shown)
  return found.states @ VIEW.head.T


def packed(config, batch, shown=None):
  """Returns the logits [B, W, G, V] of a batch's windows."""
  found = np.asarray(_packed(config, params(config), batch, shown))
  return found.reshape(*ANCHORS.shape, config.gamma, -1)


@functools.partial(jax.jit, static_argnums=0)
def _served(config, params, context, features, token, shown):
  one = block.Block(config.run_as, config.gamma)
  params = family_lib.DrafterParams(params)
  state = one.init(params, context)
  start = jnp.zeros_like(context.length)
  state = one.read(params, state, context, features, start)
  return one.branches(params, state, context, token, shown).logits


def served(config, batch, window, token=None, shown=None):
  """Returns the logits [B, K, G, V] of a draft at the anchors of a window."""
  size = cache_lib.rounded(TOKENS, TOKENS)
  room = cache_lib.Cache(((jnp.zeros((2, 1, size, 2)),) * 2,))
  verifier = causal.CausalVerifier(networks.network(VERIFIER.config))
  context = protocols.Context(
    jnp.asarray(batch.tokens), jnp.asarray(batch.anchors[:, window] + 1), room,
    VERIFIER.params, verifier,
  )  # fmt: skip
  return np.asarray(
    _served(config, params(config), context, batch.features, token, shown)
  )


def but_mask(logits):
  return logits[..., np.arange(models.VOCAB) != MASK]


@pytest.mark.parametrize('config', SIZES.values(), ids=SIZES)
def test_packed_blocks_are_served_ones(config):
  text = batch()
  whole = packed(config, text)
  for window in range(ANCHORS.shape[1]):
    one = served(config, text, window)[:, 0]
    np.testing.assert_allclose(
      but_mask(whole[:, window]), but_mask(one), atol=1e-5
    )
    assert (one[..., MASK] == -np.inf).all()
  # Negative control: another window's.
  assert np.abs(but_mask(whole[:, 0]) - but_mask(one)).max() > 1e-2


@pytest.mark.parametrize('config', SIZES.values(), ids=SIZES)
def test_a_block_sees_nothing_from_its_anchor_on(config):
  text = batch()
  before, other = packed(config, text), batch(1)
  for row, window in np.ndindex(*ANCHORS.shape):
    anchor = ANCHORS[row, window]
    tokens, features = text.tokens.copy(), text.features.copy()
    features[row, anchor:] = other.features[row, anchor:]
    tokens[row, anchor + 1 :] = other.tokens[row, anchor + 1 :]
    changed = text.replace(tokens=tokens, features=features)
    got = packed(config, changed)[row, window]
    np.testing.assert_array_equal(got, before[row, window])
    # Negative control: the token before the anchor, by its features.
    features[row, anchor - 1] = 0
    got = packed(config, text.replace(features=features))[row, window]
    assert np.abs(got - before[row, window]).max() > 1e-4


def test_sliding_layers_see_a_window_and_nothing_behind():
  text = batch()
  before = packed(SLIDING, text)[0, 2]  # its anchor is at 9
  for position in range(9):
    features = text.features.copy()
    features[0, position] = 0
    got = packed(SLIDING, text.replace(features=features))[0, 2]
    moved = np.abs(got - before).max(-1) > 1e-6
    seen = position > 9 + 1 + np.arange(GAMMA) - SLIDING.window
    np.testing.assert_array_equal(moved, seen)
  tokens = text.tokens
  for slot in range(GAMMA):  # what is shown there is seen from there on
    shown = np.zeros((2, 4, GAMMA), bool)
    shown[0, 2, slot] = True
    got = packed(SLIDING, text.replace(tokens=tokens), shown)[0, 2]
    moved = np.abs(got - before).max(-1) > 1e-6
    np.testing.assert_array_equal(moved, np.arange(GAMMA) >= slot)


def test_convolutions_by_hand():
  """Weights of the slot and the one before, by group, and zeros before."""
  rng = np.random.default_rng(0)
  x, kernels = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 2, 6))
  got = dflash.convolution(jnp.asarray(x), jnp.asarray(kernels))
  before = np.concatenate([np.zeros((2, 1, 6)), x[:, :-1]], axis=1)
  wanted = kernels[:, :, 0] * x + kernels[:, :, 1] * before
  np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_new_convolutions_change_nothing():
  """And those of a block end at its beginning, with weights of groups."""
  config = SECOND
  assert config.run_as.group == 8 and config.run_as.network.width == 24
  start = dflash.initial(config, jax.random.key(0))
  plain = dataclasses.replace(config, taps=0)
  rest = {
    name: {k: v for k, v in one.items() if 'conv' not in k}
    if name.startswith('layer')
    else one
    for name, one in start.items()
  }
  score = lambda config, params: (
    training.score_of(config)(params, VIEW, batch(), GAMMA).states
  )
  np.testing.assert_allclose(
    score(config, start), score(plain, rest), atol=1e-5
  )
  # The control: what is learnt.
  drawn = params(config)
  rest['layer_0'] = {
    k: v for k, v in drawn['layer_0'].items() if 'conv' not in k
  }
  drawn = {**rest, 'layer_0': drawn['layer_0']}
  other = np.abs(score(config, drawn) - score(plain, rest)).max()
  assert other > 1e-2


def test_the_anchors_output_is_the_first_draft():
  """Fewer slots are computed, and each output is of the slot before."""
  assert ANCHORED.run_as.block == GAMMA and ANCHORED.run_as.gamma == GAMMA
  plain = dataclasses.replace(ANCHORED, from_anchor=0, gamma=GAMMA - 1)
  assert plain.run_as.block == ANCHORED.run_as.block
  both = packed(ANCHORED, batch()), packed(plain, batch())
  np.testing.assert_allclose(both[0][:, :, 1:], both[1], atol=1e-5)


def test_a_slot_sees_the_shown_prefix_alone():
  """What D2SD's second drafter learns: masks behind a prefix of real tokens."""
  text, other = batch(), batch(1)
  for length in range(GAMMA):
    shown = np.broadcast_to(np.arange(GAMMA) < length, (2, 4, GAMMA))
    before = packed(CONFIG, text, shown)
    targets, valid = windows.targets(text, GAMMA)
    for window in range(4):
      one = served(
        CONFIG, text, window, targets[:, window : window + 1],
        (shown & valid)[:, window : window + 1],
      )[:, 0]  # fmt: skip
      np.testing.assert_allclose(
        but_mask(before[:, window]), but_mask(one), atol=1e-5
      )
      tokens = text.tokens.copy()
      for row in range(2):
        behind = ANCHORS[row, window] + 1 + length
        tokens[row, behind:] = other.tokens[row, behind:]
      got = packed(CONFIG, text.replace(tokens=tokens), shown)
      np.testing.assert_array_equal(got[:, window], before[:, window])
    if length:  # the control: the last shown token
      tokens = text.tokens.copy()
      tokens[0, ANCHORS[0, 1] + length] += 1
      got = packed(CONFIG, text.replace(tokens=tokens), shown)
      assert np.abs(got[0, 1] - before[0, 1]).max() > 1e-4


def test_a_few_steps_lower_the_loss():
  text = batch()
  made = making.make('decayed_ce', loss_options.Decayed(4.0), 8)
  loss = objective.make_loss(
    training.score_of(CONFIG, remat=True), objective.Objective(made), GAMMA
  )
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  now = dflash.initial_from_verifier(CONFIG, jax.random.key(0), VERIFIER.params)
  found = []
  for number in range(8):
    (value, metrics), slope = step(now, VIEW, text, number)
    found.append(float(value))
    now = jax.tree.map(lambda x, g: x - 0.1 * jnp.sign(g) * 0.05, now, slope)
  assert found[-1] < found[0] - 0.1, found
  assert metrics['targets'] == windows.targets(text, GAMMA)[1].sum()


def test_what_was_trained_is_what_is_served(tmp_path):
  """Logits after a prompt that the engine read, from the file of a run."""
  path = str(tmp_path / 'drafter.safetensors')
  vocab = np.random.default_rng(0).permutation(models.VOCAB)[:40]
  sizes = dataclasses.replace(CONFIG, vocab=40)
  drafter_file.save(path, sizes, params(sizes), vocab, VERIFIER, {})
  found = drafter_file.load(path, VERIFIER, dflash.TrainedConfig)
  assert found[0] == sizes
  serving = family_lib.Serving(GAMMA, strategies.Chain())
  one, made = registry.family('dflash').drafter(
    {'drafter': family_lib.Trained(*found, path)}, VERIFIER, serving
  )
  session = contract.Contract(one, made, VERIFIER).session(contract.GREEDY)
  prompt = contract.requests(models.VOCAB)[4].prompt
  state = session.start([request_lib.Request(0, prompt)] * contract.BATCH)
  length = int(state.length[0])
  assert length == len(prompt) + 1  # prefill yields a token
  logits = jax.jit(one.branches)(
    made, state.drafter, session.engine.context(VERIFIER.params, state)
  ).logits[0, 0]
  text = np.asarray(state.tokens[:1])
  # As `training.features` reads them, but that it keeps 16 bits.
  index = jnp.arange(text.shape[1])[None]
  mask = views.causal_mask(jnp.array([length]), text.shape[1])
  _, _, read = networks.apply(
    networks.network(VERIFIER.config), VERIFIER.params, text, index, mask,
    features=CONFIG.features,
  )  # fmt: skip
  row = training_types.TrainBatch(
    text, np.array([length]), np.array([1]), np.array([[length - 1]]),
    np.ones((1, 1), bool), np.zeros(1, int), read,
  )  # fmt: skip
  view = objective.view(VERIFIER.params, vocab)
  states = training.score_of(sizes)(made.network, view, row, GAMMA).states[0]
  wanted = np.where(vocab == MASK, -np.inf, states @ view.head.T)
  np.testing.assert_allclose(logits, wanted, atol=1e-5)
  assert wanted.max() > 0.1


def test_published_features():
  assert dflash.published_features(36) == (1, 9, 17, 25, 33)
  assert dflash.published_features(24) == (1, 6, 11, 16, 21)
  assert dflash.published_features(30) == (1, 8, 14, 20, 27)  # half to even
  assert dflash.published_features(30, 1) == (15,)
  assert dflash.published_features(6) == (1, 2, 3)
  assert dflash.published_features(2) == (1,)


def test_a_mask_that_a_text_holds_is_refused():
  texts = [trajectory.trajectory([1, 2], [3, 4], id='b')]
  recipes.check_mask(5, texts)
  for mask_id in (1, 4):
    with pytest.raises(errors.InputError, match="mask_id.*'b' holds"):
      recipes.check_mask(mask_id, texts)


def test_sizes_that_are_refused():
  verifier = presets.random('tiny', 'float32').config
  make = registry.network('dflash').sizes
  for options, word in (
    (options_lib.Options(layers=9, mask_id=1), 'layers is 9'),
    (options_lib.Options(layers=1, features=(7,), mask_id=1), 'features is'),
    (options_lib.Options(layers=1, mask_id=10**6), 'mask_id is 1000000'),
  ):
    with pytest.raises(errors.InputError, match=word):
      make(options, 4, verifier)
  made = make(options_lib.Options(layers=1, mask_id=1), 4, verifier)
  assert made.run_as.block == 5 and made.run_as.network.qk_norm
