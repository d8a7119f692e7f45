"""What the contract's tests share."""

import pytest

from specdiff_jax.core import compilations as compilations_lib


@pytest.fixture(scope='session')
def compilations():
  """Returns a function that counts the programs compiled so far."""
  return compilations_lib.count
