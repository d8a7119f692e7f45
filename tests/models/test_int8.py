"""Int8 weights: close to what they round, exact in what they sum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import whole_text

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.models import int8
from specdiff_jax.models import layers


def drawn(*shape, seed=0):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, jnp.float32)


def widened(weight):
  """Returns an int8 weight as float64."""
  return np.float64(weight.values) * np.float64(weight.scale)[..., None]


@pytest.fixture
def weight():
  """Returns an int8 weight [40, 64] of outputs of very different sizes."""
  sizes = jnp.logspace(-3, 3, 40)[:, None]
  return int8.quantise({'query': drawn(40, 64) * sizes})['query']


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rounding_is_within_half_a_step_of_each_output(dtype):
  before = (drawn(40, 64) * jnp.logspace(-3, 3, 40)[:, None]).astype(dtype)
  before = before.at[3].set(0)
  after = int8.quantise({'head': before})['head']
  assert after.values.dtype == jnp.int8 and after.shape == (40, 64)
  step = np.abs(np.float64(before)).max(-1) / 127
  off = np.abs(widened(after) - np.float64(before)).max(-1)
  assert (off <= 0.501 * step).all()
  assert off.max() > 0.4 * step[off.argmax()]  # it does round
  np.testing.assert_array_equal(widened(after)[3], 0)


def test_what_is_a_matrix_and_what_is_not(tiny):
  config, params, _ = tiny
  after = int8.quantise(params)
  assert isinstance(after['embed'], int8.Int8)
  assert isinstance(after['head'], int8.Int8)
  for name, leaf in after['layer_1'].items():
    assert isinstance(leaf, int8.Int8) == (not name.endswith('norm')), name
  assert after['final_norm'] is params['final_norm']
  again = int8.quantise(after)
  assert again['embed'] is after['embed']
  bytes_of = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  assert bytes_of(after) < 0.35 * bytes_of(params)  # of float32
  assert config.tied_head is False


def test_products_with_integers_of_all_16_bits(weight):
  """Digits put every integer together again: no sum is ever rounded."""
  whole = np.arange(-32512, 32513)
  x = jnp.asarray(np.stack([np.full_like(whole, 32512), whole], 1), jnp.float32)
  one = int8.Int8(jnp.asarray([[0, 1]], jnp.int8), jnp.ones(1))
  np.testing.assert_array_equal(layers.dense(x, one)[:, 0], whole)


def test_products_are_finer_than_with_bf16_activations(weight):
  x = drawn(5, 64, seed=1)
  exact = np.float64(x) @ widened(weight).T
  scale = np.abs(exact).max(0)
  got = layers.dense(x, weight)
  assert (np.abs(got - exact) / scale).max() < 3e-4
  rounded = np.float64(x.astype(jnp.bfloat16)) @ widened(weight).T
  assert (np.abs(rounded - exact) / scale).max() > 1e-3
  # The negative control: one digit, as int8 activations would be.
  step = np.abs(np.float64(x)).max(-1, keepdims=True) / 127
  one_digit = np.round(np.float64(x) / step) * step @ widened(weight).T
  assert (np.abs(one_digit - exact) / scale).max() > 1e-3


def test_rows_are_independent_to_the_bit(weight):
  """Alone, among others, and at any place; also the row of zeros."""
  x = drawn(9, 64, seed=2).at[4].set(0)
  together = np.asarray(jax.jit(layers.dense)(x, weight))
  assert np.isfinite(together).all() and (together[4] == 0).all()
  for rows in (1, 2, 5):
    some = jax.jit(layers.dense)(x[-rows:], weight)
    np.testing.assert_array_equal(some, together[-rows:])
  batched = layers.dense(x.reshape(3, 3, 64), weight)
  np.testing.assert_array_equal(batched.reshape(9, 40), together)


def test_lookup(weight):
  ids = jnp.asarray([[3, 0], [39, 3]])
  expected = widened(weight)[np.asarray(ids)]
  np.testing.assert_allclose(layers.lookup(weight, ids), expected, rtol=1e-6)


@pytest.mark.parametrize('scanned', [False, True])
def test_a_transformer_runs_on_them(tiny, scanned):
  """It is the model of the rounded weights, to 1e-3 of its logits' range."""
  config, params, _ = tiny
  params = jax.tree.map(jnp.asarray, params)
  quantised = int8.quantise(params)
  rounded = int8.widen(quantised)
  np.testing.assert_allclose(
    rounded['embed'], widened(quantised['embed']), rtol=1e-6
  )
  if scanned:
    config = dataclasses.replace(config, scan_layers=True)
    layer = [quantised.pop(f'layer_{i}') for i in range(config.layers)]
    quantised['layers'] = jax.tree.map(lambda *x: jnp.stack(x), *layer)
  expected = logits(tiny[0], rounded)
  close = 1e-3 * np.ptp(expected)
  assert np.abs(logits(config, quantised) - expected).max() < close
  assert np.abs(logits(tiny[0], params) - expected).max() > close  # control


def logits(config, params):
  """Returns [T, V] of a fixed text."""
  ids = np.random.default_rng(1).integers(0, config.vocab_size, 12)
  return np.asarray(whole_text.logits(config, params, ids))


def test_every_matrix_of_a_model_is_known(tiny):
  """A weight that is left out would go unnoticed: it only stays large."""
  for name, leaf in params_lib.flatten(int8.quantise(tiny[1])):
    if not isinstance(leaf, int8.Int8):
      assert leaf.ndim == 1, name
