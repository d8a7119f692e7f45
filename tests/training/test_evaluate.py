"""Acceptance curves and simulated serving."""

import numpy as np
import pytest

from specdiff_jax.training import evaluate

MATCH = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
VALID = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)


def test_curves():
  got = evaluate.curves(MATCH, VALID)
  assert got['windows'] == 4
  assert got['agree'] == pytest.approx([3 / 4, 3 / 4, 2 / 3])
  assert got['cond'] == pytest.approx([3 / 4, 2 / 3, 0 / 1])
  assert got['surv'] == pytest.approx([3 / 4, 2 / 4, 0])
  assert got['accepted'] == pytest.approx(sum(got['surv']))
  counts = evaluate.accepted_counts(MATCH, VALID)
  np.testing.assert_array_equal(counts, [2, 1, 0, 2, 0])
  assert got['accepted'] == counts[:4].mean()


def test_curves_of_nothing():
  got = evaluate.curves(MATCH[:0], VALID[:0])
  assert got['windows'] == 0
  assert np.isnan(got['accepted']) and np.isnan(got['agree']).all()


def test_simulated_serving_visits_what_the_loop_visits():
  rng = np.random.default_rng(0)
  for _ in range(50):
    accepted = rng.integers(0, 4, rng.integers(0, 12))
    emitted, calls = evaluate.simulate(accepted)
    # The decode loop, token by token.
    left, position, cycles = len(accepted), 0, 0
    while left > 0:
      cycles += 1
      step = min(left, accepted[position] + 1)
      left, position = left - step, position + step
    assert (emitted, calls) == (len(accepted), cycles)


def test_simulate_tau():
  assert evaluate.simulate([1, 0, 0]) == (3, 2)
  assert evaluate.simulate_tau([[1, 0, 0], [0, 0]]) == 5 / 4
  # Negative control: the mean over all anchors is another number.
  assert 1 + np.mean([1, 0, 0, 0, 0]) != 5 / 4
  assert np.isnan(evaluate.simulate_tau([]))
