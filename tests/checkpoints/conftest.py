"""What the tests of files share."""

import dataclasses

import fetch_gemma
import hf_reference
import jax
import jax.numpy as jnp
import pytest
from tiny_model import tiny  # a fixture

from specdiff_jax.checkpoints import weights

__all__ = ['directory', 'gemma', 'tiny']


@pytest.fixture
def directory(tiny, tmp_path):
  """Returns the path of a sound directory of Hugging Face."""
  path = str(tmp_path / 'model')
  hf_reference.write_directory(path, *tiny)
  return path


@pytest.fixture(scope='module')
def gemma():
  """Returns Gemma 3 270M in float32, or skips."""
  if not fetch_gemma.PATH.exists():
    pytest.skip('Gemma is not here: python tests/programs/fetch_gemma.py')
  checkpoint = weights.load(str(fetch_gemma.PATH), 'float32')
  params = jax.tree.map(jnp.asarray, checkpoint.params)
  return dataclasses.replace(checkpoint, params=params)
