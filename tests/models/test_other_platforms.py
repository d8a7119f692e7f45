"""Forms of an operation that other platforms take: same values, no detours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.models import cache
from specdiff_jax.models import layers

CACHE = (3, 2, 16, 4)


def draw(*shape, seed=0):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, jnp.bfloat16)


@pytest.mark.parametrize('start', [(0, 5, 11), (13, 2, 12)])
def test_rows_are_written_alike(start):
  """Also where a slice would run over the end, and is moved back."""
  old, new = draw(*CACHE), draw(3, 2, 5, 4, seed=1)
  one_by_one = cache._write_one_by_one(old, new, jnp.asarray(start), None)
  at_once = cache._write_all(old, new, jnp.asarray(start), None)
  assert (one_by_one == at_once).all()
  assert not (one_by_one == old).all()
  other = cache._write_all(old, new, jnp.asarray((1, 5, 11)), None)
  assert not (other == one_by_one).all()  # the control


@pytest.mark.parametrize('index', [None, 1])
def test_rows_of_stacked_layers_are_written_alike(index):
  old = draw(2, *CACHE)
  new = draw(1, 3, 2, 5, 4, seed=1) if index else draw(2, 3, 2, 5, 4, seed=1)
  start = jnp.asarray((0, 5, 12))
  one_by_one = cache._write_one_by_one(old, new, start, index)
  at_once = cache._write_all(old, new, start, index)
  assert (one_by_one == at_once).all()
  for layer in (0, 1) if index is None else (1,):
    part = new[0 if index else layer]
    alone = cache._write_all(old[layer], part, start, None)
    assert (alone == at_once[layer]).all()
  if index:
    assert (at_once[0] == old[0]).all()


@pytest.mark.parametrize('stacked', [False, True])
def test_paths_are_moved_alike(stacked):
  old = draw(2, *CACHE) if stacked else draw(*CACHE)
  path, start = jnp.asarray([[0, 2, 4, 0]] * 3), jnp.asarray((0, 5, 11))
  at_once = cache._move_at_once(old, path, start)
  by_row = jax.jit(cache._move_by_row, static_argnums=3)(old, path, start, 5)
  assert (by_row == at_once).all()
  assert not (by_row == old).all()
  for row in range(3):
    moved = old[..., row, :, int(start[row]) + 4, :]
    assert (by_row[..., row, :, int(start[row]) + 2, :] == moved).all()


@pytest.mark.parametrize('batch', [1, 3])
def test_only_a_cpu_writes_bits(batch):
  args = draw(batch, 2, 16, 4), draw(batch, 2, 5, 4), jnp.arange(batch)
  assert 'bitcast_convert' not in lowered(cache.write_rows, 'tpu', *args)
  assert 'bitcast_convert' in lowered(cache.write_rows, 'cpu', *args)


@pytest.mark.parametrize('start', [0, 7, 14, 15])
def test_a_single_slot_is_written_alone(start):
  """With a neighbour that keeps its bits, at the end too."""
  old, new = draw(1, *CACHE[1:]), draw(1, 2, 1, 4, seed=1)
  wanted = old.at[:, :, start].set(new[:, :, 0])
  got = cache.write_rows(old, new, jnp.asarray([start]))
  np.testing.assert_array_equal(got, wanted)
  tight = cache.write_rows(old[:, :, :1], new, jnp.zeros(1, jnp.int32))
  np.testing.assert_array_equal(tight, new)


def lowered(function, platform, *args):
  traced = jax.jit(function).trace(*args)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_only_a_cpu_doubles_a_single_row():
  args = draw(1, 4), draw(7, 4)
  assert 'concatenate' in lowered(layers.dense, 'cpu', *args)
  assert 'concatenate' not in lowered(layers.dense, 'tpu', *args)
  alone = args[0].astype(jnp.float32) @ args[1].T.astype(jnp.float32)
  np.testing.assert_allclose(layers.dense(*args), alone, rtol=1e-6)


def test_only_a_cpu_looks_up_bits():
  args = draw(7, 4), jnp.arange(3)
  assert 'bitcast_convert' not in lowered(layers.lookup, 'tpu', *args)
  assert 'bitcast_convert' in lowered(layers.lookup, 'cpu', *args)
