"""What the contract's tests share."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """Halves the time that compiling takes, which is most of these tests."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='session')
def compilations():
  """Returns a function that counts the programs compiled so far."""
  seen = []

  def listen(event, duration, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      seen.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return lambda: len(seen)
