"""The sampling law against numpy, and what keys the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types

law = jax.jit(sampling_lib.warped)
choose = jax.jit(sampling_lib.choose)
gumbel = jax.jit(sampling_lib.gumbel, static_argnums=2)


def sampling(*rows):
  """Returns Sampling of rows (temperature, top_k, top_p)."""
  temperature, top_k, top_p = zip(*rows)
  return types.Sampling(
    jnp.array(temperature, jnp.float32),
    jnp.array(top_k, jnp.int32),
    jnp.array(top_p, jnp.float32),
  )


def reference(logits, temperature, top_k, top_p):
  """Returns probabilities [V] of one row of logits, in float64."""
  scaled = np.asarray(logits, np.float64) / temperature
  order = sorted(range(len(scaled)), key=lambda v: (-scaled[v], v))
  kept = order[: top_k or len(order)]
  weights = np.exp(scaled[kept] - scaled[kept].max())
  weights /= weights.sum()
  result, mass = np.zeros(len(scaled)), 0.0
  for token, weight in zip(kept, weights):
    if mass >= top_p:
      break
    result[token] = weight  # the token that crosses top_p is still kept
    mass += weight
  return result / result.sum()


def support(logits, *setting):
  got = law(logits[None, None], sampling(setting))
  return np.flatnonzero(np.isfinite(np.asarray(got)[0, 0])).tolist()


SETTINGS = (
  (1.0, 0, 1.0),
  (0.5, 0, 1.0),
  (1.7, 3, 1.0),
  (1.0, 1, 1.0),
  (0.8, 0, 0.6),
  (1.3, 0, 0.95),
  (0.9, 4, 0.7),
  (2.0, 100, 0.3),
)


def test_law_is_that_of_numpy_row_by_row():
  logits = np.random.default_rng(0).normal(size=(8, 5, 11)).astype(np.float32)
  logits *= 2
  got = jax.nn.softmax(law(logits, sampling(*SETTINGS)), -1)
  for row, setting in enumerate(SETTINGS):
    for i in range(5):
      wanted = reference(logits[row, i], *setting)
      np.testing.assert_allclose(got[row, i], wanted, atol=1e-6)
      np.testing.assert_array_equal(got[row, i] > 0, wanted > 0)


def test_a_row_does_not_depend_on_its_neighbours():
  logits = np.random.default_rng(1).normal(size=(8, 2, 11)).astype(np.float32)
  together = law(logits, sampling(*SETTINGS))
  for row, setting in enumerate(SETTINGS):
    alone = law(logits[row : row + 1], sampling(setting))
    np.testing.assert_array_equal(together[row], alone[0])


def test_top_p_keeps_the_token_that_crosses():
  logits = np.log([0.125, 0.5, 0.25, 0.125]).astype(np.float32)
  assert support(logits, 1.0, 0, 0.4) == [1]
  assert support(logits, 1.0, 0, 0.6) == [1, 2]
  assert support(logits, 1.0, 0, 0.8) == [0, 1, 2]
  assert support(logits, 1.0, 0, 0.99) == [0, 1, 2, 3]
  assert support(logits, 1.0, 0, 1e-6) == [1]


def test_top_p_acts_on_what_top_k_left():
  logits = np.log([0.125, 0.5, 0.25, 0.125]).astype(np.float32)
  # Two tokens are left with 2/3 and 1/3: 0.6 is reached by the first.
  assert support(logits, 1.0, 2, 0.6) == [1]
  assert support(logits, 1.0, 2, 0.7) == [1, 2]


def test_ties_break_to_the_lowest_id():
  logits = np.zeros(4, np.float32)
  assert support(logits, 1.0, 2, 1.0) == [0, 1]
  assert support(logits, 1.0, 0, 0.6) == [0, 1, 2]
  logits = np.array([0, 1, 2, 2, 2], np.float32)
  assert support(logits, 1.0, 2, 1.0) == [2, 3]
  greedy = choose(
    jnp.asarray(logits)[None, None],
    jnp.zeros((1, 1), jnp.int32),
    sampling((0.0, 0, 1.0)),
    sampling_lib.request_noise(0, jnp.zeros(1, jnp.int32)),
  )
  assert greedy.tolist() == [[2]]


@pytest.mark.slow
@pytest.mark.parametrize('neighbour', SETTINGS[1::3] + ((0.0, 0, 1.0),))
def test_temperature_zero_is_left_alone(neighbour):
  logits = np.random.default_rng(2).normal(size=(2, 50, 9)).astype(np.float32)
  both = sampling((0.0, 0, 1.0), neighbour)
  np.testing.assert_array_equal(law(logits, both)[0], logits[0])
  noise = sampling_lib.request_noise(3, jnp.arange(2))
  positions = jnp.broadcast_to(jnp.arange(50), (2, 50))
  token = choose(logits, positions, both, noise)
  np.testing.assert_array_equal(token[0], logits[0].argmax(-1))


def test_temperature_zero_ignores_filters():
  logits = np.random.default_rng(4).normal(size=(2, 50, 9)).astype(np.float32)
  noise = sampling_lib.request_noise(3, jnp.arange(2))
  positions = jnp.broadcast_to(jnp.arange(50), (2, 50))
  token = choose(
    logits, positions, sampling((0.0, 3, 0.5), (1.0, 3, 0.5)), noise
  )
  np.testing.assert_array_equal(token[0], logits[0].argmax(-1))
  assert (np.asarray(token[1]) != logits[1].argmax(-1)).any()


def test_noise_is_that_of_request_and_position_not_of_the_row():
  positions = jnp.array([[3, 4, 5], [4, 9, 4], [5, 3, 3]])
  g = gumbel(sampling_lib.request_noise(7, jnp.array([2, 5, 2])), positions, 13)
  for row, i, other, j in ((0, 0, 2, 1), (0, 2, 2, 0), (1, 0, 1, 2)):
    np.testing.assert_array_equal(g[row, i], g[other, j])
  alone = gumbel(
    sampling_lib.request_noise(7, jnp.array([5])), jnp.array([[9]]), 13
  )
  np.testing.assert_array_equal(g[1, 1], alone[0, 0])


def test_noise_is_that_of_jax():
  noise = sampling_lib.request_noise(7, jnp.array([2, 5]))
  positions = jnp.array([[3, 2**31 - 1, 0], [70_000, 4, 5]])
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
  draw = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (1000,))))
  wanted = draw(fold(noise.key, positions))
  np.testing.assert_array_equal(gumbel(noise, positions, 1000), wanted)
  some = jnp.array([999, 0, 17, 17])
  got = jax.jit(sampling_lib.gumbel)(noise, positions, some)
  np.testing.assert_array_equal(got, wanted[..., some])


@pytest.mark.parametrize(
  'x', [[1, 3, 3, 2], [-np.inf] * 3, [5], [-0.0, 0.0, -1], [0, np.inf, 1]]
)
def test_largest_is_argmax(x):
  x = jnp.array([x, x[::-1]], jnp.float32)
  got = jax.jit(sampling_lib.largest)(x)
  np.testing.assert_array_equal(got, jnp.argmax(x, -1))


def test_largest_of_what_is_no_number_is_an_index():
  assert 0 <= int(sampling_lib.largest(jnp.array([1, np.nan, 2]))) < 3


@pytest.mark.parametrize('span', [1, 3, 5])
def test_sharing_noise_within_a_span_changes_no_token(span):
  rng = np.random.default_rng(span)
  positions = 7 + rng.integers(0, span, (2, 5)).astype(np.int32)
  positions[:, 0] = 7
  given = (
    rng.normal(size=(2, 5, 50)).astype(np.float32),
    positions,
    sampling((1.0, 0, 1.0), (0.7, 5, 0.9)),
    sampling_lib.request_noise(3, jnp.arange(2)),
  )
  shared = jax.jit(sampling_lib.choose, static_argnums=4)(*given, span)
  np.testing.assert_array_equal(shared, choose(*given))


def test_noise_differs_by_position_request_and_seed():
  def draw(seed, request, position):
    noise = sampling_lib.request_noise(seed, jnp.array([request]))
    return tuple(np.asarray(gumbel(noise, jnp.array([[position]]), 4))[0, 0])

  seen = {
    draw(seed, request, position)
    for seed in range(3)
    for request in range(3)
    for position in range(3)
  }
  assert len(seen) == 27


def test_both_halves_of_a_number_key_the_noise():
  numbers = [5, 5 + 2**32, 5 + 2**63, 2**64 - 1, 2**32 - 1]
  low, high = sampling_lib.halves(numbers)
  assert [int(h) << 32 | int(l) for l, h in zip(low, high)] == numbers
  noise = sampling_lib.request_noise(3, low, high)
  drawn = gumbel(noise, jnp.zeros((5, 1), jnp.int32), 4)
  assert len({tuple(row) for row in np.asarray(drawn)[:, 0].tolist()}) == 5
  # Without high halves they are 0.
  alone = sampling_lib.request_noise(3, jnp.array([5]))
  np.testing.assert_array_equal(
    jax.random.key_data(alone.key)[0], jax.random.key_data(noise.key)[0]
  )
