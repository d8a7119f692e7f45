"""Settings of jax that users have for other programs change nothing here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.core import sampling as sampling_lib


def noise(seed=3):
  """Returns draws of two requests, one of a number above 32 bits.

  Those keyed by position, which are jax's by default, and those of a cycle.
  """
  keys = sampling_lib.request_noise(seed, *sampling_lib.halves([5, 2**40 + 5]))
  positions = jnp.array([[7], [7]])
  keyed = sampling_lib.gumbel(keys, positions, 3)
  cycle = sampling_lib.fresh(keys, sampling_lib.DRAFT, jnp.array([9, 9]))
  drawn = jax.vmap(lambda key: jax.random.gumbel(key, (3,)))(cycle)
  return np.concatenate([keyed[:, 0], drawn])


@pytest.fixture
def settings():
  """Sets settings of jax; they are as before after the test."""
  before = {}

  def change(name, value):
    before.setdefault(name, getattr(jax.config, name))
    jax.config.update(name, value)

  yield change
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.parametrize('implementation', ['rbg', 'unsafe_rbg'])
def test_the_default_implementation_decides_no_draw(implementation):
  wanted = noise()
  with jax.default_prng_impl(implementation):
    other = jax.random.key_data(jax.random.key(3))
    assert other.shape != jax.random.key_data(jax_settings.key(3)).shape
    np.testing.assert_array_equal(noise(), wanted)


CHANGING = (
  ('jax_enable_x64', True),
  ('jax_threefry_partitionable', False),
  ('jax_random_seed_offset', 5),
  ('jax_high_dynamic_range_gumbel', True),
)


@pytest.mark.parametrize('name, value', CHANGING)
def test_what_changes_draws_is_set_back_or_named(settings, name, value):
  jax_settings.check()
  wanted = noise()
  settings(name, value)
  if name != 'jax_enable_x64':
    assert (noise() != wanted).any()  # it matters
  with pytest.raises(errors.InputError, match=name):
    jax_settings.check()
  assert jax_settings.settle() == [f'{name}={value}']
  jax_settings.check()
  assert jax_settings.settle() == []
  np.testing.assert_array_equal(noise(), wanted)


@pytest.mark.parametrize(
  'name, value',
  [
    ('jax_numpy_dtype_promotion', 'strict'),
    ('jax_numpy_rank_promotion', 'raise'),
    ('jax_debug_nans', True),
  ],
)
def test_what_stops_programs_is_set_back(settings, name, value):
  settings(name, value)
  jax_settings.check()  # the library says nothing: jax will
  assert jax_settings.settle() == [f'{name}={value}']
