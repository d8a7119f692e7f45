"""Merged weights: the same model in fewer products, and back again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import whole_text

from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import int8
from specdiff_jax.models import transformer_layer

# What changes which tensors a layer has, and what is done to its products.
FORMS = {
  'plain': {},
  'biases': {'qkv_bias': True},
  'norms': {'qk_norm': True, 'post_norms': True, 'activation': 'gelu_tanh'},
}


def model(tiny, form, scanned=False):
  """Returns sizes and params of a form, its biases not 0."""
  config = dataclasses.replace(tiny[0], **FORMS[form])
  params = tiny_model.random_params(config, seed=3)
  if scanned:
    config = dataclasses.replace(config, scan_layers=True)
    layer = [params.pop(f'layer_{i}') for i in range(config.layers)]
    params['layers'] = jax.tree.map(lambda *x: np.stack(x), *layer)
  return config, params


def logits(config, params):
  ids = np.random.default_rng(1).integers(0, config.vocab_size, 12)
  return np.asarray(whole_text.logits(config, params, ids))


@pytest.mark.parametrize('rounded', [False, True])
@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_merged_weights_come_apart_to_the_same_bits(
  tiny, form, scanned, rounded
):
  config, params = model(tiny, form, scanned)
  params = int8.quantise(params) if rounded else params
  joint = transformer_layer.merged(params)
  layer = joint['layers' if scanned else 'layer_1']
  assert not set(layer) & {'query', 'key', 'value', 'gate', 'up', 'key_bias'}
  assert isinstance(layer['gate_up'], int8.Int8) == rounded
  assert joint['final_norm'] is params['final_norm']
  back = transformer_layer.parted(config, joint)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  # What is not merged, or is already, stays as it is.
  for one, same in (
    (params, transformer_layer.parted(config, params)),
    (joint, transformer_layer.merged(joint)),
  ):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True)
    assert all(a is b for a, b in leaves)


@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_merged_weights_are_the_same_model(tiny, form, scanned):
  config, params = model(tiny, form, scanned)
  wanted = logits(config, params)
  joint = transformer_layer.merged(params)
  np.testing.assert_allclose(logits(config, joint), wanted, atol=2e-5)
  # The control: every row of a merged weight has a place of its own.
  name = 'layers' if scanned else 'layer_1'
  for weight in ('query_key_value', 'gate_up'):
    layer = {**joint[name], weight: jnp.roll(joint[name][weight], 1, -2)}
    other = logits(config, {**joint, name: layer})
    assert np.abs(other - wanted).max() > 1e-2


def test_merging_and_rounding_go_in_either_order(tiny):
  first = transformer_layer.merged(int8.quantise(tiny[1]))
  last = int8.quantise(transformer_layer.merged(tiny[1]))
  jax.tree.map(np.testing.assert_array_equal, first, last)


def test_a_drafter_takes_a_part_of_merged_weights(tiny):
  """Its context needs keys and values, and no queries."""
  config = drafter_network.DrafterConfig(
    gamma=3, layers=1, features=(0, 1), trunk=8, vocab=9, ngram=0,
    verifier=dataclasses.replace(tiny[0], qkv_bias=True),
  )  # fmt: skip
  params = tiny_model.drafter_params(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params
  )
  features = rng.standard_normal((1, 5, 2, 32)).astype(np.float32)

  def context(params):
    return drafter_network.DrafterNetwork(config).apply(
      {'params': params}, features, jnp.arange(5)[None], method='context'
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    context(transformer_layer.merged(params)),
    context(params),
  )


def test_a_drafter_starts_from_a_merged_verifier(tiny):
  config = drafter_network.DrafterConfig(
    gamma=3, layers=1, features=(0, 1), trunk=8, vocab=9, ngram=0,
    verifier=tiny[0],
  )  # fmt: skip
  start = lambda verifier: drafter_network.initial_from_verifier(
    config, jax.random.key(0), verifier
  )
  found = start(transformer_layer.merged(tiny[1]))
  jax.tree.map(np.testing.assert_array_equal, found, start(tiny[1]))
