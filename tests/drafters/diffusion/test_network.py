"""The drafter's network: serving is training, and windows see what they may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import family
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.drafters.diffusion import layer as drafter_layer
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import windows as drafter_windows
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.models import views
from specdiff_jax.verifiers import causal

VERIFIER = config_lib.TransformerConfig(
  vocab_size=29,
  width=16,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=4,
  mlp_width=24,
  tied_head=False,
)
CONFIG = drafter_network.DrafterConfig(
  gamma=4,
  layers=2,
  features=(0, 2),
  trunk=24,
  vocab=20,
  ngram=2,
  verifier=VERIFIER,
)
BUCKET, NEW = 8, 20


def random(shapes, seed, scale):
  """Returns params: norms near 1, the rest of this scale."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    value = rng.standard_normal(leaf.shape).astype(np.float32)
    return 1 + 0.1 * value if 'norm' in str(path[-1]) else scale * value

  return jax.tree_util.tree_map_with_path(one, shapes)


@pytest.fixture(scope='module')
def verifier():
  shapes = {
    name: jax.ShapeDtypeStruct(shape, 'float32')
    for name, shape in networks.shapes(VERIFIER).items()
  }
  return random(params_lib.nest(shapes), 0, 0.3)


@pytest.fixture(scope='module')
def drafter(verifier):
  ids = np.random.default_rng(3).permutation(29)[: CONFIG.vocab]
  network = random(CONFIG.shapes(), 1, 0.2)
  return family.DrafterParams(network, ids, verifier['head'][ids])


@jax.jit
def windows(network, embed, head, tokens, features, anchors):
  states = drafter_windows.window_states(
    CONFIG, network, embed, tokens, features, anchors
  )
  return layers_lib.dense(states, head)


def verifier_features(params, tokens):
  """Returns what the verifier's layers say of whole texts [B, T, F, E]."""
  rows, length = tokens.shape
  return transformer.Transformer(VERIFIER).apply(
    {'params': params},
    tokens,
    jnp.broadcast_to(jnp.arange(length), tokens.shape),
    views.causal_mask(jnp.full(rows, length), length),
    features=CONFIG.features,
  )[2]


def test_serving_logits_are_those_of_training(verifier, drafter):
  """Replays decoding: each draft is a window over the finished text."""
  system = diffusion.MaskedDiffusion(
    CONFIG, CONFIG.gamma, strategies.Chain(mode='shared_noise')
  )
  engine = engine_lib.Engine(
    causal.CausalVerifier(transformer.Transformer(VERIFIER)),
    system,
    accept.SampleAndMatch(),
    NEW,
  )
  state = session_lib.Session(
    engine,
    verifier,
    drafter,
    request_lib.Settings(temperature=1.5, max_new_tokens=NEW),
    3,
    (BUCKET,),
  ).start([request_lib.Request(i, list(range(i, 2 * i + 2))) for i in range(3)])

  @jax.jit
  def serve(params, embed, state):
    x = drafter_windows.fill(
      CONFIG,
      params.network,
      lambda ids: layers_lib.lookup(embed, ids),
      state.tokens,
      (state.length - 1)[:, None],
      state.drafter.last[:, None],
      state.drafter.context.layers,
    )
    return layers_lib.dense(x, params.head)[:, 0]

  served = []  # (row, anchor, logits) of every cycle
  while not state.done.all():
    live, anchors = ~np.asarray(state.done), np.asarray(state.length) - 1
    logits = np.asarray(serve(drafter, verifier['embed'], state))
    served += [(b, anchors[b], logits[b]) for b in np.flatnonzero(live)]
    state = engine.decode(verifier, drafter, state, np.int32(1))
  assert (np.asarray(state.stats.accepted)[:, 1:].sum(0)[:2] > 0).all()

  features = jax.jit(verifier_features)(verifier, state.tokens)
  size = state.tokens.shape[1]
  trained = np.asarray(
    windows(
      drafter.network,
      verifier['embed'],
      drafter.head,
      state.tokens,
      features,
      jnp.broadcast_to(jnp.arange(size), (3, size)),
    )
  )
  for row, anchor, logits in served:
    np.testing.assert_allclose(logits, trained[row, anchor], atol=1e-4)
  # Negative control: the window of the next anchor says something else.
  row, anchor, logits = served[0]
  assert np.abs(logits - trained[row, anchor + 1]).max() > 0.1


@pytest.fixture(scope='module')
def text(verifier):
  """Returns tokens [1, 16] that repeat themselves, and random features."""
  tokens = np.array([[3, 4, 5, 6, 3, 4, 7, 8, 3, 4, 9, 5, 6, 3, 4, 2]])
  features = np.random.default_rng(5).standard_normal((1, 16, 2, 16))
  return tokens, features.astype(np.float32)


ANCHORS = np.array([[5, 9, 2, 14]])


@pytest.fixture(scope='module')
def call(verifier, drafter):
  """Returns (tokens, features, anchors) -> logits [N, G, vocab]."""

  def run(tokens, features, anchors=ANCHORS, embed=verifier['embed']):
    return windows(
      drafter.network, embed, drafter.head, tokens, features, anchors
    )[0]

  return run


def test_a_window_reads_the_features_before_its_anchor(call, text):
  tokens, features = text

  def summed(features):  # one number for each window
    return jnp.sin(call(tokens, features)).sum((1, 2))

  gradient = np.abs(jax.jit(jax.jacrev(summed))(features))
  reach = gradient.max((1, 3, 4)) > 0  # [N, T]
  for window, anchor in enumerate(ANCHORS[0]):
    assert not reach[window, anchor:].any()
    assert reach[window, :anchor].all()  # negative control


def test_a_window_sees_no_other_window(call, text):
  tokens, features = text
  together = call(tokens, features)
  for window, anchor in enumerate(ANCHORS[0]):
    others = np.full((1, 4), 11)
    others[0, window] = anchor
    got = call(tokens, features, others)
    np.testing.assert_allclose(got[window], together[window], atol=1e-6)
    # Negative control: the other windows did move.
    assert np.abs(got - together).max() > 0.1


def test_a_window_reads_no_embedding_of_later_anchors(call, text, verifier):
  """By gradient: only tokens up to the anchor are embedded."""
  tokens, features = text

  def summed(embed):
    logits = call(tokens, features, ANCHORS, embed)
    return jnp.sin(logits).sum((1, 2))

  gradient = jax.jit(jax.jacrev(summed))(jnp.asarray(verifier['embed']))
  reach = np.abs(gradient).max(2) > 0  # [N, V]
  for window, anchor in enumerate(ANCHORS[0]):
    assert reach[window, tokens[0, anchor]]
    unseen = np.setdiff1d(np.arange(29), tokens[0, : anchor + 1])
    assert not reach[window, unseen].any()


def test_later_tokens_change_nothing(call, text):
  tokens, features = text
  before = np.asarray(call(tokens, features))
  for window, anchor in enumerate(ANCHORS[0]):
    changed = tokens.copy()
    changed[0, anchor + 1 :] = tokens[0, anchor]
    got = np.asarray(call(changed, features))
    np.testing.assert_array_equal(got[window], before[window])
  # Negative control: 7 follows the match of "3 4" that the window at 9 copies.
  changed = tokens.copy()
  changed[0, 6] = 1
  got = np.asarray(call(changed, features))
  assert np.abs(got[1] - before[1]).max() > 1e-3
  np.testing.assert_array_equal(got[0], before[0])


def test_hints_are_what_lookup_copies(text):
  tokens, _ = text
  copied, matched = drafter_windows.hints(
    CONFIG, jnp.asarray(tokens), jnp.asarray(ANCHORS)
  )
  np.testing.assert_array_equal(matched, [[2, 2, 0, 2]])
  np.testing.assert_array_equal(copied[0, 0], [5, 6, 3, 4])
  np.testing.assert_array_equal(copied[0, 1], [7, 8, 3, 4])
  np.testing.assert_array_equal(copied[0, 3], [9, 5, 6, 3])


def test_slots_see_each_other_in_both_directions(call, drafter, text, verifier):
  """What only the last slot starts from reaches the logits of the first."""
  tokens, features = text

  def first(shift):
    network = drafter.network | {'slot_shift': shift}
    logits = windows(
      network, verifier['embed'], drafter.head, tokens, features, ANCHORS
    )
    return jnp.sin(logits[0, 0, 0]).sum()

  shift = jnp.asarray(drafter.network['slot_shift'])
  gradient = jax.jit(jax.grad(first))(shift)
  assert (np.abs(gradient).max(1) > 0).all()


def test_one_softmax_over_context_and_window():
  """Against a softmax over the keys of both, laid side by side."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  query = draw(2, 3, 4, 4, 6)  # [B, N, G, H, Dh]
  context = draw(2, 2, 9, 6), draw(2, 2, 9, 6)
  own = draw(2, 3, 2, 4, 6), draw(2, 3, 2, 4, 6)
  mask = rng.random((2, 3, 9)) < 0.5
  mask[0, 0] = False  # a window without a context
  got = jax.jit(drafter_layer.window_attention)(query, context, own, mask)
  for b, n in np.ndindex(2, 3):
    for head in range(4):
      kept = mask[b, n]
      key, value = (
        np.concatenate([c[b, head // 2, kept], w[b, n, head // 2]])
        for c, w in zip(context, own)
      )
      weight = np.exp(query[b, n, :, head] @ key.T)
      wanted = weight / weight.sum(-1, keepdims=True) @ value
      np.testing.assert_allclose(
        got[b, n, :, head * 6 : head * 6 + 6], wanted, atol=1e-5
      )


def test_initial_layers_are_the_verifiers_last(verifier):
  network = jax.jit(drafter_network.initial_from_verifier, static_argnums=0)(
    CONFIG, jax.random.key(0), verifier
  )
  shapes = CONFIG.shapes()
  assert jax.tree.map(jnp.shape, network) == jax.tree.map(
    lambda x: x.shape, shapes
  )
  for i in range(2):
    jax.tree.map(
      np.testing.assert_array_equal,
      dict(network[f'layer_{i}']),
      verifier[f'layer_{i + 1}'],
    )
