"""Every loss of a config on slots; the verifier's distribution; what windows show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import fields as field_lib
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.drafters.autoregressive import training as causal_training
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import training as diffusion_training
from specdiff_jax.losses import divergences
from specdiff_jax.losses import making
from specdiff_jax.losses import slots as slots_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import transformer
from specdiff_jax.models import views
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.training import features as features_lib
from specdiff_jax.training import objective

VERIFIER = config_lib.TransformerConfig(
    vocab_size=29, width=16, layers=3, heads=4, kv_heads=2, head_dim=4,
    mlp_width=24, tied_head=False,
)  # fmt: skip
GAMMA, T, W, TEMPERATURE = 3, 12, 2, 0.7
DIFFUSION = drafter_network.DrafterConfig(
    gamma=GAMMA, layers=1, features=(1, 2), trunk=8, vocab=20, ngram=1,
    verifier=VERIFIER,
)  # fmt: skip
CAUSAL = causal_network.CausalConfig(start=(0,), vocab=20, verifier=VERIFIER)
VOCAB = np.random.default_rng(3).permutation(29)[:20]


@pytest.fixture(scope='module')
def verifier():
  one = jnp.zeros((1, 1), jnp.int32)
  init = jax.jit(transformer.Transformer(VERIFIER).init)
  params = init(jax.random.key(0), one, one, one[None] == 0)['params']
  return jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return training_types.TrainBatch(
    tokens=rng.integers(0, 29, (2, T)).astype(np.int32),
    length=np.array([12, 9], np.int32),
    prompt_length=np.array([2, 2], np.int32),
    anchors=np.array([[3, 8], [2, 6]], np.int32),
    anchor_valid=np.ones((2, W), bool),
    record=np.array([0, 1], np.int32),
  )


@pytest.fixture(scope='module')
def known(verifier, batch):
  """The batch with features and distribution, as a run's first and second epoch see."""
  add = features_lib.Features(
      transformer.Transformer(VERIFIER), verifier, DIFFUSION.features, 9,
      TEMPERATURE,
  )  # fmt: skip
  first, again = add(batch), add(batch)
  for value, other in zip(
    jax.tree.leaves((first.features, first.distribution)),
    jax.tree.leaves((again.features, again.distribution)),
    strict=True,
  ):
    for row, length in enumerate(batch.length):
      np.testing.assert_array_equal(
        np.asarray(value[row, :length]), other[row, :length]
      )
  assert first.distribution is not None
  return jax.tree.map(jnp.asarray, first)


@jax.jit
def whole_distribution(verifier, batch):
  """log p [B, T, V] of the token after each position."""
  model = transformer.Transformer(VERIFIER)
  positions = jnp.broadcast_to(jnp.arange(T), batch.tokens.shape)
  mask = views.causal_mask(jnp.asarray(batch.length), T)
  params = {'params': verifier}
  x, _, _ = model.apply(params, batch.tokens, positions, mask)
  logits = model.apply(params, x, method='logits')
  return jax.nn.log_softmax(logits / TEMPERATURE)


def new_drafter(kind):
  """Returns (score, params) of a small random drafter."""
  if kind == 'diffusion':
    score, network, sizes = (
        diffusion_training.score_of(DIFFUSION), drafter_network, DIFFUSION,
    )  # fmt: skip
  else:
    score, network, sizes = (
        causal_training.score_of(CAUSAL), causal_network, CAUSAL,
    )  # fmt: skip
  init = jax.jit(network.initial, static_argnums=0)
  return score, init(sizes, jax.random.key(1))


@pytest.mark.parametrize('kind', ['diffusion', 'autoregressive'])
def test_the_distribution_is_the_verifiers(verifier, batch, known, kind):
  score, params = new_drafter(kind)
  view = objective.view(verifier, VOCAB)
  _, valid = windows.targets(batch, GAMMA)
  loss = slots_lib.Loss(
    None, {'agreement': divergences.log_agreement}, TEMPERATURE
  )

  @jax.jit
  def run(params):
    predictions = score(params, view, known, GAMMA)
    return predictions, [
      objective.slots(predictions, view, known, valid, loss, block)
      for block in (0, 6)
    ]

  predictions, (slots, blocked) = jax.device_get(run(params))
  states = np.asarray(predictions.states, np.float64)
  log_q = np.asarray(jax.nn.log_softmax(states @ np.asarray(view.head).T))
  log_p = np.asarray(whole_distribution(verifier, batch))
  inside, moved = 0, []
  for b, w, g in np.argwhere(valid):
    at = batch.anchors[b, w] + g
    token = batch.tokens[b, at + 1]
    q = log_q[b, predictions.place[b, w, g]]
    expected = np.log(np.exp(log_p[b, at][VOCAB] + q).sum())
    got = float(slots.statistics['agreement'][b, w, g])
    assert got == pytest.approx(expected, abs=1e-4)
    if token in VOCAB:
      inside += 1
      wanted = log_p[b, at, token]
      assert slots.log_p[b, w, g] == pytest.approx(wanted, abs=1e-4)
      q_token = q[list(VOCAB).index(token)]
      assert slots.log_q[b, w, g] == pytest.approx(q_token, abs=1e-4)
      moved.append(log_p[b, at - 1, token] - float(slots.log_p[b, w, g]))
    else:
      assert slots.log_q[b, w, g] == -np.inf
  assert inside > 3
  assert np.abs(moved).max() > 0.1  # the control: one position too early
  for a, b in zip(jax.tree.leaves(slots), jax.tree.leaves(blocked)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def settings(**values):
  return fields.typed(values)


def drawn_slots(score_params, names, rng):
  """Slots of a drafter of one array, as the loss of a config asks for."""
  shape = score_params.shape[:-1]
  index = jnp.asarray(rng.integers(-1, score_params.shape[-1], shape))
  log_q = jax.nn.log_softmax(score_params)
  log_p = jnp.log(
    jnp.asarray(
      rng.dirichlet(np.ones(score_params.shape[-1]), shape), jnp.float32
    )
  )
  lengths = rng.integers(1, 4, shape[:2] + (1,))
  valid = jnp.asarray(np.arange(shape[-1]) < lengths)
  at = jnp.maximum(index, 0)[..., None]
  picked = jnp.take_along_axis(log_q, at, -1)[..., 0]
  return slots_lib.Slots(
    log_q=jnp.where(index >= 0, picked, -jnp.inf),
    match=index == 0,
    valid=valid,
    log_p=jnp.take_along_axis(log_p, at, -1)[..., 0] * (index >= 0),
    statistics={name: f(log_q, log_p) for name, f in names.items()},
    confidence=score_params[..., 0],
  )


@pytest.mark.parametrize('name', making.LOSSES)
def test_every_loss_of_a_config(name):
  head = 'confidence' if name == 'confidence' else ''
  config = settings(
    loss=name, ce_fraction=0.5, steps=4, vocab_block=5, head_kind=head
  )
  build_losses.check(config)
  loss = build_losses.make(config).loss

  def value(params, step):
    slots = drawn_slots(params, loss.statistics, np.random.default_rng(0))
    if loss.show:
      shown = loss.show(jax.random.key(step), slots.valid.shape[:2], GAMMA)
      slots = slots.replace(shown=shown)
    return loss.value(slots, step)

  params = jnp.asarray(
    np.random.default_rng(1).standard_normal((3, 4, GAMMA, 6)), jnp.float32
  )
  step = 3  # past the warm-up
  run = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)
  (before, metrics), slope = run(params, step)
  (after, _), _ = run(params - 0.1 * slope / jnp.abs(slope).max(), step)
  assert np.isfinite(before) and np.isfinite(slope).all()
  assert after < before
  (worse, _), _ = run(params + 0.1 * slope / jnp.abs(slope).max(), step)
  assert worse > before  # the control: uphill
  assert all(np.shape(metric) == () for metric in metrics.values())
  # What decides a loss is a field, and fits in JSON; a newer one once changed.
  abouts = field_lib.abouts(type(config.loss))
  given = {n: v for n, v in vars(config.loss).items() if not abouts[n].newer}
  assert given.items() <= config.deciding('run').items()


@pytest.mark.parametrize(
  'values, words',
  [
    ({'loss': 'klx'}, ['klx', 'kl']),
    ({'dpace_smoothing': 1.0}, ['dpace_smoothing', 'below 1']),
    ({'prefix_base': 0.0}, ['prefix_base']),
    ({'law_temperature': 0.0}, ['law_temperature']),
    ({'noise_schedule': 'cosine'}, ['cosine', 'linear']),
    ({'vocab_block': -1}, ['vocab_block']),
    ({'loss': 'confidence'}, ['confidence', 'head_kind', 'both']),
    ({'head_kind': 'confidence'}, ['streak', 'confidence', 'both']),
    (
      {'loss': 'elbo', 'network': {'kind': 'autoregressive'}},
      ['elbo', 'autoregressive', 'diffusion'],
    ),
    (
      {'loss': 'variable_prefix', 'network': {'ngram': 0}},
      ['variable_prefix', 'ngram'],
    ),
  ],
)
def test_bad_settings(values, words):
  config = settings(**values)
  with pytest.raises(errors.InputError) as error:
    build_losses.check(config)
  assert all(word in str(error.value) for word in words), error.value


def test_expectations_want_drawn_trajectories():
  greedy = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}
  drawn = greedy | {'temperature': 1.0}
  for name in ('rejection', 'soft_streak'):
    build_losses.check_data(settings(loss=name), drawn, 'x')
    for header in (greedy, drawn | {'top_k': 5}):
      with pytest.raises(errors.InputError, match='collected with'):
        build_losses.check_data(settings(loss=name), header, 'x')
  build_losses.check_data(settings(loss='kl'), greedy, 'x')  # no expectation


def test_what_is_shown_of_a_row_goes_with_its_record(verifier, known):
  score, params = new_drafter('diffusion')
  view = objective.view(verifier, VOCAB)
  loss = build_losses.make(settings(loss='elbo'))
  function = jax.jit(objective.make_loss(score, loss, GAMMA))

  def run(batch):
    value, metrics = function(params, view, batch, 4)
    return float(value), float(metrics['masked'])

  moved = jax.tree.map(lambda x: x[::-1], known)
  assert run(moved) == pytest.approx(run(known), rel=1e-6)
  # The control: rows that are other records.
  other = run(known.replace(record=known.record + 1))
  assert abs(other[0] - run(known)[0]) > 1e-3


def test_a_drafter_sees_what_is_shown_and_nothing_else(verifier, batch, known):
  score, params = new_drafter('diffusion')
  params['matched'] = jnp.ones_like(params['matched'])
  view = objective.view(verifier, VOCAB)
  shown = jnp.zeros((2, W, GAMMA), bool).at[:, :, 0].set(True)

  @jax.jit
  def states(tokens, shown):
    # The features stay those of the first text.
    given = known.replace(tokens=tokens)
    out = score(params, view, given, GAMMA, shown).states
    return out.reshape(2, W, GAMMA, -1)[0, 0]

  tokens = jnp.asarray(batch.tokens)
  first = batch.anchors[0, 0] + 1  # the token of slot 1 of window (0, 0)
  other = tokens.at[0, first].set((tokens[0, first] + 1) % 29)
  behind = tokens.at[0, first + 1].set((tokens[0, first + 1] + 1) % 29)
  seen = states(tokens, shown)
  assert np.abs(states(other, shown) - seen).max() > 1e-3
  np.testing.assert_array_equal(states(behind, shown), seen)
  # Negative control: with nothing shown, the first token is unknown too.
  hidden = states(tokens, jnp.zeros_like(shown))
  np.testing.assert_array_equal(states(other, jnp.zeros_like(shown)), hidden)
  assert np.abs(hidden - seen).max() > 1e-3
