"""The transformer: cache, trees, scan, causality, and its compiled form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import none
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.models import views
from specdiff_jax.testing import models
from specdiff_jax.verifiers import causal

SLOTS = 24  # of the cache


def sizes(**changes):
  return config_lib.TransformerConfig(
    **(
      dict(
        vocab_size=37,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=6,
        mlp_width=24,
        tied_head=False,
      )
      | changes
    )
  )


def stacked(params, layers):
  """Returns the params of the scanned form."""
  rest = {k: v for k, v in params.items() if not k.startswith('layer_')}
  each = [params[f'layer_{i}'] for i in range(layers)]
  return rest | {'layers': jax.tree.map(lambda *x: np.stack(x), *each)}


def score(config, params, *args):
  """Returns logits, cache and features."""
  model = transformer.Transformer(config)
  x, cache, features = model.apply({'params': params}, *args)
  logits = model.apply({'params': params}, x, method='logits')
  return logits, cache, features


score = jax.jit(score, static_argnums=(0, 7))


@pytest.fixture(scope='module')
def model():
  config = sizes()
  return config, tiny_model.random_params(config, scale=0.3)


def text(rows, length, seed=0):
  return np.random.default_rng(seed).integers(0, 37, (rows, length))


def full(config, params, tokens, features=None):
  """Scores whole sequences without a cache."""
  rows, length = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
  mask = views.causal_mask(jnp.full(rows, length), length)
  return score(
    config, params, tokens, positions, mask, None, None, features or ()
  )


def prefill(config, params, tokens, length, features=()):
  """Fills a cache with prompts of uneven lengths."""
  rows, bucket = tokens.shape
  cache = cache_lib.empty(config, rows, SLOTS, jnp.float32)
  mask = views.causal_mask(jnp.asarray(length), bucket)
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, SLOTS - bucket)))
  positions = jnp.broadcast_to(jnp.arange(bucket), tokens.shape)
  start = jnp.zeros(rows, jnp.int32)
  return score(config, params, tokens, positions, mask, cache, start, features)


def test_logits_of_a_transformer_written_in_numpy(model):
  """An independent forward pass of one row, in float64."""
  config, params = model
  tokens = text(1, 7)[0]
  p = jax.tree.map(lambda x: x.astype(np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

  def turn(x):  # pairs (i, i + Dh/2) as complex numbers
    half = config.head_dim // 2
    z = x[..., :half] + 1j * x[..., half:]
    angle = np.arange(len(x))[:, None, None] * 10000.0 ** (
      -np.arange(half) * 2 / config.head_dim
    )
    z = z * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)

  x = p['embed'][tokens]
  for i in range(config.layers):
    w = p[f'layer_{i}']
    h = norm(x, w['attention_norm'])
    q = turn((h @ w['query'].T).reshape(7, 4, 6))
    k = turn((h @ w['key'].T).reshape(7, 2, 6))
    v = (h @ w['value'].T).reshape(7, 2, 6)
    out = np.zeros((7, 4, 6))
    for t in range(7):
      for head in range(4):
        s = k[: t + 1, head // 2] @ q[t, head] / np.sqrt(6)
        s = np.exp(s - s.max())
        out[t, head] = s / s.sum() @ v[: t + 1, head // 2]
    x = x + out.reshape(7, 24) @ w['output'].T
    h = norm(x, w['mlp_norm'])
    gate = h @ w['gate'].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w['up'].T)) @ w['down'].T
  wanted = norm(x, p['final_norm']) @ p['head'].T
  got, _, _ = full(config, params, tokens[None])
  np.testing.assert_allclose(got[0], wanted, atol=2e-4)


def test_cached_decoding_of_uneven_rows_is_the_full_pass(model):
  config, params = model
  tokens, length = text(3, 12), np.array([2, 5, 7])
  wanted, _, outputs = full(config, params, tokens, (0, 1))
  logits, cache, features = prefill(
    config, params, tokens[:, :7], length, (0, 1)
  )
  for row in range(3):
    seen = slice(0, length[row])
    np.testing.assert_allclose(logits[row, seen], wanted[row, seen], atol=1e-5)
    np.testing.assert_allclose(
      features[row, seen], outputs[row, seen], atol=1e-5
    )
  rows = np.arange(3)
  for step in range(5):  # one token of each row at its own position
    place = length + step
    mask = jnp.arange(SLOTS)[None, None] <= place[:, None, None]
    logits, cache, _ = score(
      config,
      params,
      tokens[rows, place][:, None],
      place[:, None],
      mask,
      cache,
      jnp.asarray(place, jnp.int32),
      (),
    )
    np.testing.assert_allclose(logits[:, 0], wanted[rows, place], atol=1e-5)


def test_padding_does_not_reach_the_tokens(model):
  config, params = model
  tokens, length = text(2, 7), np.array([4, 7])
  first, _, _ = prefill(config, params, tokens, length)
  tokens[0, 4:] = 1
  second, _, _ = prefill(config, params, tokens, length)
  np.testing.assert_array_equal(first[0, :4], second[0, :4])
  np.testing.assert_array_equal(first[1], second[1])


PARENTS = np.array([[0, 0, 0, 1, 2, 2, 5], [0, 0, 1, 2, 3, 4, 0]])


def branches():
  """Yields (row, slot, slots from the root to it) of the trees of PARENTS."""
  for row, parent in enumerate(PARENTS):
    for slot in range(len(parent)):
      line = [slot]
      while line[-1]:
        line.append(int(parent[line[-1]]))
      yield row, slot, line[::-1]


@pytest.mark.parametrize('scan', [False, True])
def test_a_tree_is_scored_as_each_of_its_branches(model, scan):
  _, params = model
  config = sizes(scan_layers=scan)
  params = stacked(params, 2) if scan else params
  length = np.array([3, 6])  # committed, the last of them is the root
  prompt = text(2, 6)
  _, cache, _ = prefill(config, params, prompt, length - 1)
  drafted = text(2, 7, seed=1)
  drafted[[0, 1], 0] = prompt[[0, 1], length - 1]
  depth = np.array([[0, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5, 1]])
  tree = types.DraftTree(
    drafted, jnp.asarray(PARENTS), depth, np.ones_like(drafted, bool)
  )
  start = jnp.asarray(length - 1, jnp.int32)

  def verify(mask):
    return score(
      config, params, drafted, start[:, None] + depth, mask, cache, start, ()
    )[0]

  mask = tree_lib.cache_mask(tree, jnp.asarray(length), SLOTS)
  logits = verify(mask)
  flat = verify(
    jnp.broadcast_to(
      jnp.arange(SLOTS) <= (start[:, None] + jnp.arange(7))[..., None],
      mask.shape,
    )
  )
  worst = 0.0
  for row, slot, line in branches():
    whole = np.concatenate([prompt[row, : length[row] - 1], drafted[row, line]])
    padded = np.pad(whole, (0, 12 - len(whole)))[None]
    wanted = full(sizes(), model[1], padded)[0][0, len(whole) - 1]
    np.testing.assert_allclose(logits[row, slot], wanted, atol=1e-5)
    worst = max(worst, np.abs(flat[row, slot] - wanted).max())
  assert worst > 0.01  # negative control: a plain causal mask is not a tree


def test_scan_is_the_unrolled_form(model):
  config, params = model
  tokens, length = text(2, 7), np.array([4, 7])
  plain = prefill(config, params, tokens, length, (1, 0))
  scanned = prefill(
    sizes(scan_layers=True), stacked(params, 2), tokens, length, (1, 0)
  )
  np.testing.assert_allclose(scanned[0], plain[0], atol=1e-5)
  np.testing.assert_allclose(scanned[2], plain[2], atol=1e-5)
  for which in (0, 1):
    np.testing.assert_allclose(
      scanned[1].layers[which],
      np.stack([layer[which] for layer in plain[1].layers]),
      atol=1e-5,
    )


def influence(config, params, mask):
  """Returns [T, T]: how far the logits at i react to the embedding at j."""
  size = mask.shape[-1]
  ids = jnp.arange(size)[None]  # each token once: a row of the table is a place

  def logits(table):
    replaced = params | {'embed': table}
    return score(config, replaced, ids, ids, mask, None, None, ())[0][0]

  jacobian = jax.jit(jax.jacrev(logits))(jnp.asarray(params['embed']))
  return np.abs(jacobian).max((1, 3))[:, :size]


def test_causality_by_gradient(model):
  config, params = model
  causal = views.causal_mask(jnp.array([6]), 6)
  got = influence(config, params, causal)
  np.testing.assert_array_equal(got > 0, np.tril(np.ones((6, 6), bool)))
  # Negative control: with a full mask the future is seen.
  everything = influence(config, params, jnp.ones((1, 6, 6), bool))
  assert (everything > 0).all()


# The compiled form. Sizes of weights are told from all else by their size.

WIDE = sizes(vocab_size=1024, width=96, heads=6, head_dim=16, mlp_width=320)


def widened(text):
  """Returns the conversions to float32 of arrays as large as a weight."""
  weights = {
    int(np.prod(s)) for s in networks.shapes(WIDE).values() if len(s) > 1
  }
  found = re.findall(r'= f32\[([\d,]+)\]\S* convert\(', text)
  shapes = [tuple(map(int, dims.split(','))) for dims in found]
  return [shape for shape in shapes if int(np.prod(shape)) in weights]


def compiled_decode(slots, cache_dtype='bfloat16'):
  """Returns the HLO of bf16 decoding of one row by trees of `slots`."""
  engine = engine_lib.Engine(
    causal.CausalVerifier(
      transformer.Transformer(WIDE, jnp.bfloat16), cache_dtype
    ),
    none.NoDraft(slots),
    accept.SampleAndMatch(),
    24,
  )

  def leaf(*shape, dtype='int32'):
    return jax.ShapeDtypeStruct(shape, dtype)

  params = params_lib.nest(
    {
      name: leaf(*shape, dtype='bfloat16')
      for name, shape in networks.shapes(WIDE).items()
    }
  )
  real = leaf(1, dtype='float32')
  law = types.Sampling(temperature=real, top_k=leaf(1), top_p=real)
  noise = jax.eval_shape(lambda n: sampling_lib.request_noise(0, n), leaf(1))
  state = jax.eval_shape(
    engine.prefill,
    params,
    (),
    types.Prompt(leaf(1, 16), leaf(1)),
    leaf(1),
    leaf(1),
    law,
    noise,
  )
  lowered = engine_lib.Engine.decode.lower(engine, params, (), state, leaf())
  return lowered.compile().as_text()


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='a rule of the CPU backend'
)
@pytest.mark.parametrize('slots', [1, 2, 5])
def test_bf16_decoding_widens_no_weight(slots):
  text = compiled_decode(slots)
  assert 'bf16[320,96]' in text  # the weights are there, as they are stored
  assert not widened(text)


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='a rule of the CPU backend'
)
def test_a_cycle_of_one_token_copies_no_cache(monkeypatch):
  copied = re.compile(r'= f32\[1,2,41,16\]\S* copy\(')
  assert not copied.search(compiled_decode(1, 'float32'))
  # The control: a plain update, as longer chains are written.
  monkeypatch.setattr(
    cache_lib,
    '_write_slot',
    lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, 2),
  )
  jax.clear_caches()
  assert copied.search(compiled_decode(1, 'float32'))


@pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='a rule of the CPU backend'
)
@pytest.mark.parametrize('rows', [1, 5])
def test_a_naive_product_widens_its_weight(rows):
  """Negative control."""
  x = jax.ShapeDtypeStruct((rows, 96), 'bfloat16')
  w = jax.ShapeDtypeStruct((96, 320), 'bfloat16')
  text = jax.jit(lambda x, w: x @ w).lower(x, w).compile().as_text()
  assert widened(text) == [(96, 320)]


@pytest.mark.parametrize('shape', [(1, 8), (5, 8), (2, 3, 8), (1, 1, 8)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dense_is_a_product_with_the_transpose(shape, dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal(shape), dtype)
  w = jnp.asarray(rng.standard_normal((5, 8)), dtype)
  got = layers_lib.dense(x, w)
  wanted = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rows_are_looked_up_and_written_bit_by_bit(dtype):
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.standard_normal((9, 4)), dtype)
  ids = jnp.array([[3, 8], [0, 3]])
  np.testing.assert_array_equal(
    layers_lib.lookup(table, ids), table.astype(jnp.float32)[ids]
  )
  for rows in (1, 3):
    cache = jnp.asarray(rng.standard_normal((rows, 2, 7, 4)), dtype)
    new = rng.standard_normal((rows, 2, 3, 4)).astype(np.float32)
    start = np.array([4, 0, 2])[:rows]
    wanted = np.array(cache)
    for row in range(rows):
      wanted[row, :, start[row] : start[row] + 3] = new[row]
    got = cache_lib.write_rows(cache, jnp.asarray(new), jnp.asarray(start))
    assert got.dtype == cache.dtype
    np.testing.assert_array_equal(got, wanted)


def test_which_keys_are_near():
  """A tree's keys lie slot after slot; how far they are goes by depth."""
  positions = jnp.array([[3, 4, 4, 5], [0, 1, 2, 2]])
  start = jnp.array([3, 0])
  got = views.near(positions, 8, start, 2)
  where = np.array([[0, 1, 2, 3, 4, 4, 5, 7], [0, 1, 2, 2, 4, 5, 6, 7]])
  wanted = np.abs(positions[:, :, None] - where[:, None]) < 2
  np.testing.assert_array_equal(got, wanted)
  alone = views.near(positions, 4, None, 2)
  np.testing.assert_array_equal(
    alone, np.abs(positions[:, :, None] - positions[:, None]) < 2
  )


def test_stacked_params_are_those_of_the_scanned_form():
  plain, scanned = (models.tiny_verifier(scan) for scan in (False, True))
  given = dict(plain.params)
  config, params = transformer.stacked(plain.config, given)
  assert config == scanned.config and not any(map('layer_0'.__eq__, given))
  jax.tree.map(np.testing.assert_array_equal, params, scanned.params)
