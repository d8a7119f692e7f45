"""Features of plain cycles read late: the drafter ends where it would have."""

import functools

import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np
import prefilled
import pytest

from specdiff_jax.core import chunks
from specdiff_jax.core import protocols
from specdiff_jax.core import types
from specdiff_jax.drafters import deferred_features
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.models import cache as cache_lib

ROOM, SLOTS = 24, 48
COUNTS = np.array([0, 3, 17, 20])  # plain cycles of each row
FIRST = np.array([6, 9, 5, 11])  # its length before them


@pytest.fixture(scope='module')
def drafter():
  config, params = systems.diffusion_params()
  return diffusion.MaskedDiffusion(config, 4, strategies.Chain()), params


def features_of(drafter, size, seed):
  config = drafter.config
  shape = (len(COUNTS), size, len(config.features), config.verifier.width)
  return jax.random.normal(jax.random.key(seed), shape)


def context(length):
  cache = cache_lib.Cache(((jnp.zeros((len(COUNTS), 1, SLOTS, 1)),) * 2,))
  tokens = jnp.zeros((len(COUNTS), SLOTS), jnp.int32)
  return protocols.Context(tokens, jnp.asarray(length), cache, None, None)


@functools.partial(jax.jit, static_argnums=0)
def observed(drafter, params, state, length, features):
  verdict = types.Verdict(*jnp.zeros((3, len(COUNTS)), jnp.int32))
  return drafter.observe(params, state, context(length), verdict, features, 1)


def read_at_once(drafter, params, state, features):
  """A row's token after each plain cycle, as an engine without choice does."""
  for cycle in range(COUNTS.max()):
    old = state
    now = features[:, cycle, None]
    state = observed(drafter, params, old, FIRST + cycle, now)
    going = cycle < COUNTS

    def pick(new, old, going=going):
      return jnp.where(going.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    state = jax.tree.map(pick, state, old)
  return state


def empty(prompt):
  """Returns the buffer after a prompt."""
  room = jnp.zeros((len(COUNTS), ROOM, *prompt.shape[2:]))
  last = chunks.last(room[:, 0], prompt, jnp.asarray(FIRST - 2))
  return room.at[:, 0].set(last)


def read_late(drafter, params, state, prompt, features, size):
  buffer = empty(prompt)
  for cycle in range(COUNTS.max()):
    count = jnp.minimum(cycle, COUNTS)
    kept = deferred_features.keep(buffer, features[:, cycle], count)
    buffer = jnp.where((cycle < COUNTS)[:, None, None, None], kept, buffer)

  now, count = context(FIRST + COUNTS), jnp.asarray(COUNTS)
  return deferred_features.read(
    drafter, params, state, now, buffer, count, size
  )


def seen(state):
  """Returns what drafting looks at: keys before the root, and the last."""
  before = (np.arange(SLOTS) < (FIRST + COUNTS - 1)[:, None])[:, None, :, None]
  keys = jax.tree.map(lambda x: np.where(before, x, 0), state.context)
  return jax.tree.leaves((keys, state.last))


@pytest.fixture(scope='module')
def reading(drafter):
  """Returns prompt, features, state, and what reading at once makes of them."""
  drafter, params = drafter
  prompt = features_of(drafter, 12, 0)
  features = features_of(drafter, COUNTS.max(), 1)
  state = prefilled.prefilled(drafter, params, context(FIRST), prompt)
  expected = seen(read_at_once(drafter, params, state, features))
  return prompt, features, state, expected


@pytest.mark.parametrize('size', [1, 5, 8, ROOM])
def test_read_late_is_read(drafter, reading, size):
  drafter, params = drafter
  prompt, features, state, expected = reading
  found = seen(read_late(drafter, params, state, prompt, features, size))
  for a, b in zip(expected, found, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  # The control: one token's features differ.
  other = features.at[2, 7].add(1.0)
  found = seen(read_late(drafter, params, state, prompt, other, size))
  assert any(
    np.abs(a - b).max() > 1e-2 for a, b in zip(expected, found, strict=True)
  )
  for row in (0, 1, 3):
    for a, b in zip(expected, found, strict=True):
      np.testing.assert_allclose(a[row], b[row], atol=1e-5)


def test_nothing_unread_is_no_work(drafter):
  """The state is returned as it is where no row has anything."""
  drafter, params = drafter
  prompt = features_of(drafter, 12, 0)
  state = prefilled.prefilled(drafter, params, context(FIRST), prompt)
  buffer = empty(prompt)
  none = jnp.zeros(len(COUNTS), jnp.int32)

  class Spoiling:
    def observe(self, *_):
      return jax.tree.map(lambda x: x * jnp.nan, state)

  found = deferred_features.read(
    Spoiling(), params, state, context(FIRST), buffer, none, 5
  )
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
    np.testing.assert_array_equal(a, b)
