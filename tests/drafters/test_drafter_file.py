"""Drafters whose matrices are stored rounded."""

import jax
import ml_dtypes
import numpy as np
import pytest

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters.diffusion import network
from specdiff_jax.testing import models
from specdiff_jax.tools.inspect import describe

VERIFIER = models.tiny_verifier()
SIZES = network.DrafterConfig(4, 1, (0, 1), 24, 40, 2, VERIFIER.config)
PARAMS = models.random_params(SIZES.shapes(), 3, 0.1)


def save(path, params=PARAMS, **more):
  path = str(path)
  drafter_file.save(path, SIZES, params, np.arange(40), VERIFIER, {}, **more)
  return path


def test_rounded_matrices_are_near_and_take_half(tmp_path):
  plain = save(tmp_path / 'plain.safetensors')
  small = save(tmp_path / 'small.safetensors', int8=True)
  tensors, _ = safetensors_io.load(small)
  stored = jax.tree.leaves(tensors['network'], is_leaf=drafter_file.is_rounded)
  assert [drafter_file.is_rounded(x) for x in stored] == [
    x.ndim > 1 for x in jax.tree.leaves(PARAMS)
  ]
  found = drafter_file.load(small, VERIFIER, network.DrafterConfig)[1]
  for got, wanted in zip(
    jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True
  ):
    assert got.dtype == ml_dtypes.bfloat16 and got.shape == wanted.shape
    got, wanted = np.asarray(got, np.float32), np.asarray(wanted)
    most = np.abs(wanted).max(-1, keepdims=True)
    # Half a level of 127, and what bfloat16 rounds.
    assert (np.abs(got - wanted) <= most * (0.5 / 127 + 2**-8)).all()
  weights = lambda path: describe.describe(path)['bytes']
  assert 0.5 < weights(small) / weights(plain) < 0.75
  assert describe.describe(small)['fault'] == ''


def test_a_row_of_zeros_stays_one(tmp_path):
  params = jax.tree.map(np.zeros_like, PARAMS)
  path = save(tmp_path / 'zeros.safetensors', params, int8=True)
  found = drafter_file.load(path, VERIFIER, network.DrafterConfig)[1]
  assert not any(np.any(x) for x in jax.tree.leaves(found))


def test_parts_within_parts_are_refused(tmp_path):
  path = save(tmp_path / 'one.safetensors', int8=True)
  tensors, metadata = safetensors_io.load(path)
  name = next(
    n for n, x in tensors['network'].items() if drafter_file.is_rounded(x)
  )
  tensors['network'][name]['int8'] = {'a': tensors['network'][name]['int8']}
  safetensors_io.save(path, tensors, metadata)
  with pytest.raises(errors.InputError):
    drafter_file.load(path, VERIFIER, network.DrafterConfig)


@pytest.mark.parametrize('part', ['scale', 'int8'])
def test_parts_that_do_not_belong_together_are_refused(tmp_path, part):
  path = save(tmp_path / 'one.safetensors', int8=True)
  tensors, metadata = safetensors_io.load(path)
  rounded = next(
    x
    for x in jax.tree.leaves(
      tensors['network'], is_leaf=drafter_file.is_rounded
    )
    if drafter_file.is_rounded(x)
  )
  wrong = {'scale': rounded['scale'][1:], 'int8': rounded['scale'][..., None]}
  rounded[part] = wrong[part]
  safetensors_io.save(path, tensors, metadata)
  with pytest.raises(errors.InputError, match='do not belong'):
    drafter_file.load(path, VERIFIER, network.DrafterConfig)
