"""Heads: their equations, by hand; what they train on; files that do not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import training_types
from specdiff_jax.core import types
from specdiff_jax.data import windows
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import options
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.diffusion import network
from specdiff_jax.losses import making
from specdiff_jax.losses import options as loss_options
from specdiff_jax.testing import models
from specdiff_jax.training import objective

B, G, W, K, R, E = 3, 5, 12, 4, 6, 24
IDS = np.random.default_rng(9).permutation(models.VOCAB)[:W].astype(np.int32)


def made(kind, scale=0.7, rank=R):
  """Returns a head over the tiny verifier, and its random params."""
  kinds = heads.KINDS | heads.CONFIDENCES
  head = kinds[kind](rank, W, models.tiny_config())
  return head, models.random_params(head.shapes(), 4, scale)


def drafted(params=None, seed=0):
  rng = np.random.default_rng(seed)
  return marginals.Marginals(
    logits=jnp.asarray(rng.normal(0, 1.5, (B, G, W)), jnp.float32),
    ids=jnp.asarray(IDS),
    root=jnp.asarray(rng.integers(0, models.VOCAB, B), jnp.int32),
    length=jnp.full(B, 5, jnp.int32),
    vocab_size=models.VOCAB,
    states=jnp.asarray(rng.normal(size=(B, G, E)), jnp.float32),
    edges=params,
  )


def edge(kind, p, state, token):
  """Returns e(h, x) by the equations of the module."""
  before = p['predecessor'][token]
  if kind == 'markov':
    return before
  if kind == 'selector':
    return before * (p['hidden'] @ state)
  gate = p['gate'] @ np.concatenate([state, before]) + p['gate_bias']
  return scipy.special.expit(gate) * before


def test_all_kinds_have_a_name():
  assert tuple(heads.KINDS) == options.HEADS
  every = heads.KINDS | heads.CONFIDENCES
  assert all(name == kind.kind for name, kind in every.items())
  assert set(every) == {*options.HEADS, options.CONFIDENCE}


@pytest.mark.parametrize('kind', options.HEADS)
def test_rows_are_those_of_the_equations(kind):
  head, params = made(kind)
  m = drafted()
  scores = np.asarray(m.logits)
  index = np.argsort(-scores, axis=-1)[..., :K]
  scale = np.array([1.0, 0.5, 2.0], np.float32)
  start, trans = jax.jit(head)(params, m, scores, index, scale)
  assert start.shape == (B, K) and trans.shape == (B, G - 1, K, K)

  def row(b, slot, parent):
    added = params['successor'] @ edge(kind, params, m.states[b, slot], parent)
    score = scores[b, slot] + scale[b] * added
    if head.over_candidates:
      return scipy.special.log_softmax(score[index[b, slot]])
    return scipy.special.log_softmax(score)[index[b, slot]]

  for b in range(B):
    np.testing.assert_allclose(start[b], row(b, 0, m.root[b]), atol=1e-4)
    for slot in range(1, G):
      for k in range(K):
        parent = IDS[index[b, slot - 1, k]]
        np.testing.assert_allclose(
          trans[b, slot - 1, k], row(b, slot, parent), atol=1e-4
        )
  assert max(start.max(), trans.max()) <= 0


def setting(temperature, top_p=1.0):
  one = jnp.ones(B)
  return types.Sampling(temperature * one, jnp.int32(0 * one), top_p * one)


def tree_of(strategy, m, **sampling):
  noise = sampling_lib.request_noise(0, jnp.arange(B))
  return compiled(strategy)(m, setting(**sampling), noise)


@functools.cache
def compiled(strategy):
  return jax.jit(functools.partial(strategy, slots=strategy.slots(G)))


@pytest.mark.parametrize('temperature', [0.0, 0.8])
def test_without_a_source_all_candidates_are_the_best_first_tree(temperature):
  m = drafted()
  found = tree_of(lattice.Lattice(9, 8, W), m, temperature=temperature)
  wanted = tree_of(strategies.BestFirst(9), m, temperature=temperature)
  found, wanted = (x.replace(candidates=None) for x in (found, wanted))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize('kind', ['markov', 'gated'])
def test_a_new_head_changes_nothing(kind):
  head, _ = made(kind)
  params = head.initial(jax.random.key(0))
  assert {n: x.shape for n, x in params.items()} == {
    n: x.shape for n, x in head.shapes().items()
  }
  assert np.abs(params['predecessor']).min() > 0  # gradients begin to flow
  m = drafted(params)
  wanted = lattice.Lattice(9, 8, K)
  found = lattice.Lattice(9, 8, K, head)
  for temperature in (0.0, 0.8):
    a, b = (tree_of(x, m, temperature=temperature) for x in (found, wanted))
    jax.tree.map(np.testing.assert_array_equal, a, b)
  # The control: one that was trained does.
  _, params = made(kind)
  other = tree_of(found, drafted(params), temperature=0.0)
  assert (np.asarray(other.token) != np.asarray(b.token)).any()


@pytest.mark.parametrize('kind', options.HEADS)
def test_trees_under_the_verifiers_noise_are_closed(kind):
  """Whatever is filtered: every slot's parent is the one a token shallower."""
  head, params = made(kind, 1.5)
  for seed in range(10):
    tree = tree_of(
      lattice.Lattice(16, 15, K, head),
      drafted(params, seed),
      temperature=1.2,
      top_p=0.9,
    )
    depth, parent = np.asarray(tree.depth), np.asarray(tree.parent)
    above = np.take_along_axis(depth, parent, axis=1)
    assert ((depth == above + 1) | ~np.asarray(tree.valid))[:, 1:].all()
    assert np.asarray(tree.valid)[:, :K].all()


@pytest.mark.parametrize(
  'values, words',
  [
    ({'budget': 1}, 'budget is 1.* at least 2'),
    ({'budget': 9, 'frontier': 0}, 'frontier is 0.* at least 1'),
    ({'budget': 9, 'candidates': 0}, 'candidates is 0.* at least 1'),
    ({'budget': 9, 'candidates': W + 1}, 'candidates is 13.* has 12 tokens'),
  ],
)
def test_bad_sizes_are_refused(values, words):
  with pytest.raises(errors.InputError, match=words):
    tree_of(lattice.Lattice(**values), drafted(), temperature=0.0)


# What a head is trained on.

WINDOWS = np.array([[2, 4], [1, 6], [3, 5]])


def plain_score(params, view, batch, gamma, shown=None):
  """The score of a drafter of which params are the states of its slots."""
  del view, shown
  position = scores.places(batch.anchors, gamma)
  rows, places = position.shape[0], position[0].size
  place = np.arange(places).reshape(position.shape[1:])
  return scores.Predictions(
    params.reshape(rows, places, -1),
    position.reshape(rows, -1),
    jnp.broadcast_to(jnp.asarray(place), position.shape),
  )


@pytest.mark.parametrize('kind', options.HEADS)
def test_training_sees_the_trajectorys_own_token_before(kind):
  head, params = made(kind)
  rng, gamma = np.random.default_rng(1), 3
  tokens = rng.choice(IDS, (B, 12)).astype(np.int32)
  batch = training_types.TrainBatch(
    tokens=jnp.asarray(tokens),
    length=jnp.full(B, 12),
    prompt_length=jnp.ones(B, jnp.int32),
    anchors=jnp.asarray(WINDOWS),
    anchor_valid=jnp.ones(WINDOWS.shape, bool),
    record=jnp.arange(B),
  )
  rows_of_head = rng.normal(size=(W, E)).astype(np.float32)
  place_of = np.full(models.VOCAB, -1, np.int32)
  place_of[IDS] = np.arange(W)
  view = training_types.VerifierView(
    jnp.zeros((models.VOCAB, E)), jnp.asarray(rows_of_head), place_of
  )
  states = rng.normal(size=(B, 2, gamma, E)).astype(np.float32)
  score = heads.score_of(head, plain_score)
  _, valid = windows.targets(batch, gamma)
  both = {'drafter': jnp.asarray(states), 'head': params}
  found = objective.slots(score(both, view, batch, gamma), view, batch, valid)
  for b in range(B):
    for w in range(2):
      for j in range(gamma):
        before, target = tokens[b, WINDOWS[b, w] + j : WINDOWS[b, w] + j + 2]
        added = params['successor'] @ edge(
          kind, params, states[b, w, j], before
        )
        log_q = scipy.special.log_softmax(
          rows_of_head @ states[b, w, j] + added
        )
        got, at = found.log_q[b, w, j], place_of[target]
        np.testing.assert_allclose(got, log_q[at], atol=1e-4)
        assert bool(found.match[b, w, j]) == (log_q.argmax() == at)


def test_the_dspark_loss_by_hand():
  log_q = np.log([[0.5, 0.2, 0.1], [0.3, 0.6, 0.9]]).astype(np.float32)
  distance = np.array([[0.1, 0.4, 0.5], [0.2, 0.3, 0.9]], np.float32)
  valid = np.array([[True, True, True], [True, True, False]])
  weight = np.exp(-np.arange(3) / 4) * valid
  ce = (weight * -log_q).sum() / weight.sum()
  l1 = (weight * 2 * distance).sum() / weight.sum()
  loss = making.LOSSES['dspark']
  assert loss.options is loss_options.Dspark
  value, told = loss.function(
    distance=distance, log_q=log_q, valid=valid, decay=4.0, ce_share=0.1
  )
  np.testing.assert_allclose(value, 0.1 * ce + 0.9 * l1, rtol=1e-5)
  np.testing.assert_allclose([told['ce'], told['l1']], [ce, l1], rtol=1e-5)


# Files.


@functools.cache
def drafter(seed=2):
  config = network.DrafterConfig(
    gamma=G, layers=1, features=(0, 1), trunk=8, vocab=W, ngram=1,
    verifier=models.tiny_config(),
  )  # fmt: skip
  params = models.random_params(config.shapes(), seed, 0.1)
  return family.Trained(config, params, IDS, f'drafter {seed}')


# Confidence.


def sureness(p, state, token):
  """Returns c(h, x) by its equation."""
  read = np.concatenate([state, p['predecessor'][token]])
  return scipy.special.expit(p['weights'] @ read + p['bias'][0])


def test_drafts_are_cut_where_the_product_of_confidences_falls():
  head, params = made('confidence', 0.3)
  m = drafted()
  token = IDS[np.argmax(m.logits, axis=-1)]
  parent = np.concatenate([m.root[:, None], token[:, :-1]], axis=1)
  chance = np.array(
    [
      [sureness(params, m.states[b, k], parent[b, k]) for k in range(G)]
      for b in range(B)
    ]
  )
  product = np.cumprod(chance, axis=1)
  found = []
  for threshold in np.sort(product.ravel())[1::3] - 1e-4:
    kept = jax.jit(head.kept)(params, m, token, threshold)
    np.testing.assert_array_equal(kept, (product >= threshold).sum(1))
    found.append(kept.tolist())
  assert len(set(map(tuple, found))) > 2
  assert (head.kept(params, m, token, 0.0) == G).all()
  assert (head.kept(params, m, token, 1.0) == 0).all()
  # A new one says a half of everything.
  new = head.initial(jax.random.key(0))
  assert {n: x.shape for n, x in new.items()} == {
    n: x.shape for n, x in head.shapes().items()
  }
  assert head.kept(new, m, token, 0.25).tolist() == [2] * B
  # The control: another token before it, another confidence.
  other = head.logits(params, m.states, jnp.asarray(np.roll(parent, 1, axis=0)))
  assert np.abs(jax.nn.sigmoid(other) - chance).max() > 1e-2


def test_confidence_is_trained_after_the_trajectorys_own_token():
  head, params = made('confidence')
  rng, gamma = np.random.default_rng(1), 3
  tokens = rng.choice(IDS, (B, 12)).astype(np.int32)
  batch = training_types.TrainBatch(
    tokens=jnp.asarray(tokens),
    length=jnp.full(B, 12),
    prompt_length=jnp.ones(B, jnp.int32),
    anchors=jnp.asarray(WINDOWS),
    anchor_valid=jnp.ones(WINDOWS.shape, bool),
    record=jnp.arange(B),
  )
  view = training_types.VerifierView(
    jnp.zeros((models.VOCAB, E)),
    jnp.asarray(rng.normal(size=(W, E)), jnp.float32),
    np.arange(models.VOCAB) % (W + 1) - 1,
  )
  states = jnp.asarray(rng.normal(size=(B, 2, gamma, E)), jnp.float32)
  _, valid = windows.targets(batch, gamma)
  given = {'drafter': states, 'head': params}
  score = heads.score_of(head, plain_score)
  found = objective.slots(score(given, view, batch, gamma), view, batch, valid)
  plain = plain_score(states, view, batch, gamma)
  plain = objective.slots(plain, view, batch, valid)
  np.testing.assert_array_equal(found.log_q, plain.log_q)  # tokens as before
  assert plain.confidence is None
  for b, w, j in np.ndindex(B, 2, gamma):
    wanted = sureness(params, states[b, w, j], tokens[b, WINDOWS[b, w] + j])
    got = jax.nn.sigmoid(found.confidence[b, w, j])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_confidence_loss_by_hand():
  chance = np.array([[0.9, 0.6, 0.2], [0.5, 0.1, 0.7]])
  distance = np.array([[0.1, 0.4, 0.5], [0.2, 0.3, 0.9]], np.float32)
  valid = np.array([[True, True, True], [True, True, False]])
  target, weight = 1 - distance, np.exp(-np.arange(3) / 4) * valid
  bce = -(target * np.log(chance) + (1 - target) * np.log(1 - chance))
  given = {
    'confidence': jnp.asarray(scipy.special.logit(chance), jnp.float32),
    'log_q': jnp.zeros(valid.shape), 'valid': valid, 'decay': 4.0,
  }  # fmt: skip
  loss = making.LOSSES['confidence'].function
  value, told = loss(distance=distance, **given)
  wanted = (weight * bce).sum() / weight.sum()
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  np.testing.assert_allclose(told['overlap'], target[valid].mean(), rtol=1e-5)
  error = np.abs(chance - target)[valid].mean()
  np.testing.assert_allclose(told['confidence_error'], error, rtol=1e-5)
  # It is least where c is 1 - TV; the distance learns nothing.
  least = given | {'confidence': scipy.special.logit(target)}
  slope = jax.grad(
    lambda c: loss(distance=distance, **least | {'confidence': c})[0]
  )
  assert np.abs(slope(jnp.asarray(least['confidence']))).max() < 1e-6
  slope = jax.grad(lambda d: loss(distance=d, **given)[0])
  assert not slope(jnp.asarray(distance)).any()


def saved(tmp_path, kind='markov', **facts):
  head, params = made(kind)
  path = str(tmp_path / 'head.safetensors')
  facts = {'drafter': heads.fingerprint(drafter())} | facts
  verifier = models.tiny_verifier()
  drafter_file.save(path, head, params, IDS, verifier, facts)
  return path, head, params


@pytest.mark.parametrize('kind', [*options.HEADS, options.CONFIDENCE])
def test_a_head_comes_back(tmp_path, kind):
  path, head, params = saved(tmp_path, kind)
  kinds = heads.KINDS | heads.CONFIDENCES
  found, loaded = heads.load(path, drafter(), models.tiny_verifier(), kinds)
  assert found == head
  for name, value in params.items():
    np.testing.assert_allclose(loaded[name], value, rtol=1e-2)


def test_a_head_of_something_else_is_refused(tmp_path):
  verifier = models.tiny_verifier()
  path, _, params = saved(tmp_path)
  with pytest.raises(errors.InputError, match='trained on the drafter with'):
    heads.load(path, drafter(seed=3), verifier)
  one = drafter()
  for vocab in (IDS[::-1], IDS[:-1]):
    other = family.Trained(one.config, one.params, vocab, 'other')
    with pytest.raises(
      errors.InputError, match='draft vocabulary of 12 .*other'
    ):
      heads.load(path, other, verifier)
  file = str(tmp_path / 'drafter.safetensors')
  drafter_file.save(file, one.config, one.params, IDS, verifier, {})
  with pytest.raises(errors.InputError, match="kind 'diffusion', but a head"):
    heads.load(file, one, verifier)
  # And a head as a drafter.
  with pytest.raises(errors.InputError, match="kind 'markov', but"):
    drafter_file.load(path, verifier, network.DrafterConfig)
  # And one that scores tokens where one that scores slots is wanted.
  with pytest.raises(errors.InputError, match="'markov'.*kind confidence"):
    heads.load(path, one, verifier, heads.CONFIDENCES)
  # Tensors of another rank than the config's.
  head, _ = made('markov', rank=R + 1)
  drafter_file.save(path, head, params, IDS, verifier, {})
  with pytest.raises(errors.InputError, match='shape .61, 6., .* .61, 7.'):
    heads.load(path, one, verifier)
