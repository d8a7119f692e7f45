"""What the contract's tests share."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def compile_quickly(quick_compilation):
  """All of these tests are mostly compilation."""


@pytest.fixture(scope='session')
def compilations():
  """Returns a function that counts the programs compiled so far."""
  seen = []

  def listen(event, duration, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      seen.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return lambda: len(seen)
