"""`choose` draws what the law says, by its counts.

The rules that use it are summed exactly in tests/decoding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types

DRAWS = 12000
LIMIT = {5: 26.0, 24: 60.0}  # chi-square above this: less than 1e-4 by chance


def draws(logits, temperature, top_k=0, top_p=1.0, seed=0):
  """Returns tokens [DRAWS, N] of as many requests at N positions."""
  positions = jnp.broadcast_to(jnp.arange(3, 5), (DRAWS, 2))
  one = jnp.ones(DRAWS)
  return np.asarray(
    jax.jit(sampling_lib.choose)(
      jnp.broadcast_to(jnp.asarray(logits), (DRAWS, 2, len(logits))),
      positions,
      types.Sampling(one * temperature, jnp.int32(one * top_k), one * top_p),
      sampling_lib.request_noise(seed, jnp.arange(DRAWS)),
    )
  )


def chi_square(counts, law):
  wanted = law * counts.sum()
  return ((counts - wanted)[law > 0] ** 2 / wanted[law > 0]).sum()


def softmax(x):
  e = np.exp(x - np.max(x))
  return e / e.sum()


LOGITS = np.array([0.3, -0.5, 1.1, 0.0, -1.2, 0.6], np.float32)


def test_choose_has_the_law():
  token = draws(LOGITS, 0.8)
  for i in range(2):
    counts = np.bincount(token[:, i], minlength=6)
    assert chi_square(counts, softmax(LOGITS / 0.8)) < LIMIT[5]
    # Negative controls: another temperature, another filter.
    assert chi_square(counts, softmax(LOGITS / 0.9)) > LIMIT[5]


def test_choose_has_the_filtered_law():
  token = draws(LOGITS, 1.0, top_k=4, top_p=0.8)
  counts = np.bincount(token[:, 0], minlength=6)
  law = np.zeros(6)
  law[[2, 5, 0]] = softmax(LOGITS[[2, 5, 0]])  # 0 crosses the threshold
  assert not counts[law == 0].any()
  assert chi_square(counts, law) < LIMIT[5]
  law[[2, 5, 0, 3]] = softmax(LOGITS[[2, 5, 0, 3]])
  assert chi_square(counts, law) > LIMIT[5]


def test_positions_and_seeds_are_independent():
  token = draws(LOGITS[:5], 1.0)
  p = softmax(LOGITS[:5])
  pairs = np.bincount(token[:, 0] * 5 + token[:, 1], minlength=25)
  assert chi_square(pairs, np.outer(p, p).ravel()) < LIMIT[24]
  other = draws(LOGITS[:5], 1.0, seed=1)
  pairs = np.bincount(token[:, 0] * 5 + other[:, 0], minlength=25)
  assert chi_square(pairs, np.outer(p, p).ravel()) < LIMIT[24]
  # Negative control: the same noise again.
  same = draws(LOGITS[:5], 1.0)
  pairs = np.bincount(token[:, 0] * 5 + same[:, 0], minlength=25)
  assert chi_square(pairs, np.outer(p, p).ravel()) > LIMIT[24]


@pytest.mark.parametrize('size', [5, 128, 300, 1000])
def test_drawn_inverts_the_cumulative_sum(size):
  """Beside float64 sums; draws of other probabilities are told apart."""
  rng = np.random.default_rng(size)
  log_p = rng.normal(size=(3, size)) * 3
  log_p[:, rng.random(size) < 0.3] = -np.inf
  upto = np.cumsum(np.exp(log_p), axis=-1)
  upto /= upto[:, -1:]
  uniform = rng.random((3, 4000))
  wanted = np.stack(
    [np.searchsorted(*row, 'right') for row in zip(upto, uniform)]
  )
  # Where a coin falls on a boundary, float32 may take either side.
  near = np.abs(upto[:, None] - uniform[..., None]).min(axis=-1) < 1e-6

  def found(log_p):
    coins = uniform.astype(np.float32)
    return np.asarray(sampling_lib.drawn(log_p.astype(np.float32), coins))

  np.testing.assert_array_equal(found(log_p)[~near], wanted[~near])
  assert near.mean() < 0.05
  assert (found(log_p / 2) != wanted)[~near].mean() > 0.1


def test_drawn_at_the_ends_takes_tokens_that_can_be():
  log_p = np.full((1, 400), -np.inf, np.float32)
  log_p[0, [3, 130, 131, 390]] = [0.0, -40.0, 0.1, -0.5]
  coins = np.array([[0.0, np.nextafter(np.float32(1), np.float32(0))]])
  index = np.asarray(sampling_lib.drawn(log_p, coins.astype(np.float32)))
  np.testing.assert_array_equal(index, [[3, 390]])
  # A point mass, as at temperature 0, whatever its scale.
  point = np.where(np.arange(400) == 257, -1e4, -np.inf)[None]
  index = np.asarray(sampling_lib.drawn(point.astype(np.float32), coins))
  np.testing.assert_array_equal(index, [[257, 257]])
