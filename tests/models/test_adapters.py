"""Adapters: the model that is adapted, until they are trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.checkpoints import lora
from specdiff_jax.models import adapters

PARAMS = {
  'layer_0': {
    'query': np.random.default_rng(0).standard_normal((6, 4), np.float32),
    'norm': np.ones(4, np.float32),
  },
  'stacked': np.random.default_rng(1).standard_normal((3, 5, 4), np.float32),
}


def trained(rank=2):
  """Adapters that are no longer where they began."""
  found = adapters.initial(
    PARAMS, adapters.names(PARAMS), rank, jax.random.key(0)
  )
  for adapter in found.values():
    adapter['b'] = jax.random.normal(jax.random.key(1), adapter['b'].shape)
  return found


def test_new_ones_change_nothing():
  assert adapters.names(PARAMS) == ['layer_0/query', 'stacked']
  new = adapters.initial(PARAMS, ['stacked'], 2, jax.random.key(0))
  shapes = {name: leaf.shape for name, leaf in new['stacked'].items()}
  assert shapes == {'a': (3, 2, 4), 'b': (3, 5, 2)} and len(new) == 1
  got = adapters.merged(PARAMS, new)
  assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(PARAMS)))
  changed = adapters.merged(PARAMS, trained())  # the control
  assert np.abs(changed['stacked'] - PARAMS['stacked']).max() > 0.1


def test_merged_is_base_and_adapter():
  new, x = trained(), np.random.default_rng(2).standard_normal((7, 4), 'f4')
  merged = adapters.merged(PARAMS, new)
  np.testing.assert_array_equal(
    merged['layer_0']['norm'], PARAMS['layer_0']['norm']
  )
  one = new['layer_0/query']
  apart = x @ PARAMS['layer_0']['query'].T + (x @ one['a'].T) @ one['b'].T
  together = x @ merged['layer_0']['query'].T
  assert np.abs(together - apart).max() <= 1e-6 * np.abs(apart).max()
  plain = x @ PARAMS['layer_0']['query'].T  # the control
  assert np.abs(plain - apart).max() > 0.1
  for i in range(3):
    one = jax.tree.map(lambda leaf: leaf[i], new['stacked'])
    expected = PARAMS['stacked'][i] + one['b'] @ one['a']
    np.testing.assert_allclose(merged['stacked'][i], expected, rtol=1e-5)


def test_it_is_what_files_of_adapters_say():
  one = trained()['layer_0/query']
  update = lora.Update(np.asarray(one['b']), np.asarray(one['a']), 1.0)
  expected = update.added(0, PARAMS['layer_0']['query'])
  merged = adapters.merged(PARAMS, {'layer_0/query': one})
  np.testing.assert_allclose(merged['layer_0']['query'], expected, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dtypes_stay(dtype):
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
  merged = adapters.merged(params, trained())
  assert {leaf.dtype.name for leaf in jax.tree.leaves(merged)} == {dtype}
