"""What the contract's tests share."""

import pytest

from specdiff_jax.core import compilations as compilations_lib


@pytest.fixture(scope='module', autouse=True)
def compile_quickly(quick_compilation):
  """All of these tests are mostly compilation."""


@pytest.fixture(scope='session')
def compilations():
  """Returns a function that counts the programs compiled so far."""
  return compilations_lib.count
