"""The streak objective against brute force and finite differences."""

import itertools

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.losses import windows as losses


def draws(windows=6, gamma=5, seed=0):
  rng = np.random.default_rng(seed)
  log_q = np.log(rng.uniform(0.05, 0.95, (windows, gamma)))
  valid = np.arange(gamma) < rng.integers(1, gamma + 1, (windows, 1))
  valid[0] = True
  return log_q, valid


def brute_force_j(q, valid):
  """E[accepted]: each slot is the target with probability q, else not."""
  total = 0.0
  for hits in itertools.product([True, False], repeat=len(q)):
    probability = np.prod([p if hit else 1 - p for p, hit in zip(q, hits)])
    accepted = 0
    for hit, ok in zip(hits, valid):
      if not (hit and ok):
        break
      accepted += 1
    total += probability * accepted
  return total


def test_value_is_the_expected_accepted_count():
  with jax.enable_x64(True):
    log_q, valid = draws()
    got = np.exp(losses.streak_value(jnp.asarray(log_q), jnp.asarray(valid)))
  expected = [brute_force_j(q, v) for q, v in zip(np.exp(log_q), valid)]
  np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_reached_takes_in_the_first_impossible_target():
  log_q = jnp.log(jnp.array([[0.5, 0.0, 0.9, 0.9], [0.0, 0.5, 0.5, 0.5]]))
  valid = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
  got = losses.reached(log_q, valid)
  np.testing.assert_array_equal(got, [[1, 1, 0, 0], [1, 0, 0, 0]])
  live = losses.live_prefix(log_q, valid)
  np.testing.assert_array_equal(live, [[1, 0, 0, 0], [0, 0, 0, 0]])


def test_short_window_masks_terms_of_the_sum():
  log_q = jnp.log(jnp.array([[0.5, 0.4, 0.9]]))
  valid = jnp.array([[True, True, False]])
  j = float(jnp.exp(losses.streak_value(log_q, valid))[0])
  assert j == pytest.approx(0.5 + 0.5 * 0.4)
  # Negative control: setting q = 1 past the end would count it.
  assert j != pytest.approx(0.5 + 0.5 * 0.4 + 0.5 * 0.4)
  one = jnp.array([[0.0, -jnp.inf, 0.0]])
  assert float(jnp.exp(losses.streak_value(one, valid))[0]) == 1.0


@pytest.mark.parametrize('beta', [0.0, 1e-3, 0.5, 1.0])
def test_gradient_against_finite_differences(beta):
  with jax.enable_x64(True):
    log_q, valid = draws()
    mask = jnp.asarray(valid)

    def loss(x):
      return losses.streak_loss(x, mask, beta)[0]

    got = jax.jit(jax.grad(loss))(jnp.asarray(log_q))
    expected = gradients.finite_differences(loss, log_q)
    assert gradients.distance(got, expected) <= 1e-8


def test_gradient_weights_are_w():
  """dJ / d log q_j = W_j; the weights S_{j-1} fail the same check."""
  with jax.enable_x64(True):
    log_q, valid = draws()
    mask = jnp.asarray(valid)
    expected = gradients.finite_differences(
      lambda x: losses.streak_loss(x, mask, 1.0)[0], log_q
    )
    s = np.cumprod(np.exp(log_q), axis=-1) * valid
    w = np.cumsum(s[:, ::-1], axis=-1)[:, ::-1]
    assert gradients.distance(-w / len(w), expected) <= 1e-8
    wrong = jax.grad(lambda x: losses.ce_streak(x, mask)[0])
    assert gradients.distance(wrong(jnp.asarray(log_q)), expected) > 0.1


def test_ce_streak_weights():
  log_q = jnp.log(jnp.array([[0.5, 0.4, 0.9]]))
  valid = jnp.ones((1, 3), bool)
  gradient = jax.jit(jax.grad(lambda x: losses.ce_streak(x, valid)[0]))(log_q)
  np.testing.assert_allclose(gradient[0], [-1.0, -0.5, -0.2], rtol=1e-6)


def test_suffix_weights():
  """Of three slots; base^(R - j) averaged over R = 1, 2, 3."""
  log_q = jnp.log(jnp.array([[0.5, 0.4, 0.9]]))
  valid = jnp.ones((1, 3), bool)
  w = np.array([1 + 1.5 + 1.5**2, 1 + 1.5, 1]) / 3
  loss = lambda x: losses.suffix(x, valid, 1.5)[0]
  value, gradient = jax.jit(jax.value_and_grad(loss))(log_q)
  np.testing.assert_allclose(value, -(w * log_q[0]).sum() / w.sum(), rtol=1e-6)
  np.testing.assert_allclose(gradient[0], -w / w.sum(), rtol=1e-6)
  # An impossible target ends the window.
  ended = losses.suffix(log_q.at[0, 1].set(-jnp.inf), valid, 1.5)[0]
  np.testing.assert_allclose(ended, -log_q[0, 0], rtol=1e-6)


def test_box_cox_ends():
  log_q, valid = (jnp.asarray(a) for a in draws())
  log_j = losses.streak_value(log_q, valid)
  loss = jax.jit(losses.streak_loss)
  at_0, at_1, near_0 = (loss(log_q, valid, b)[0] for b in (0.0, 1.0, 1e-4))
  np.testing.assert_allclose(at_0, -jnp.mean(log_j), rtol=1e-6)
  np.testing.assert_allclose(at_1, -jnp.mean(jnp.exp(log_j) - 1), rtol=1e-5)
  np.testing.assert_allclose(near_0, at_0, rtol=1e-3)


def dpace_gradient(log_q, valid, smoothing):
  valid = jnp.asarray(valid)
  slope = jax.grad(lambda x, a: losses.dpace(x, valid, a)[0])
  return jax.jit(slope)(jnp.asarray(log_q), smoothing)


def test_dpace_at_0_is_the_streak():
  with jax.enable_x64(True):
    log_q, valid = draws()
    expected = gradients.finite_differences(
      lambda x: losses.streak_loss(x, jnp.asarray(valid), 1.0)[0], log_q
    )
    got = dpace_gradient(log_q, valid, 0.0)
    assert gradients.distance(got, expected) <= 1e-8
    # Negative control: smoothed confidences are another gradient.
    wrong = dpace_gradient(log_q, valid, 0.5)
    assert gradients.distance(wrong, expected) > 0.1


def test_dpace_weights():
  """W~_j = sum_{m>=j} prod_{i<=m} q~_i by hand, of a short window too."""
  with jax.enable_x64(True):
    q = np.array([[0.5, 0.2, 0.1], [0.3, 0.9, 0.9]])
    valid = np.array([[1, 1, 1], [1, 0, 0]], bool)
    got = dpace_gradient(np.log(q), valid, 0.5)
    a, b, c = 0.5 * q[0] + 0.5
    w = [a + a * b + a * b * c, a * b + a * b * c, a * b * c]
    expected = -np.array([w, [0.65, 0, 0]]) / 2
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
  'name', ['streak', 'ce', 'ce_streak', 'warmed', 'dpace']
)
def test_impossible_targets_give_no_nan(name):
  log_q = jnp.log(jnp.array([[0.0, 0.5], [0.5, 0.0], [0.5, 0.5], [0.1, 0.1]]))
  valid = jnp.array([[1, 1], [1, 1], [1, 1], [0, 0]], bool)
  loss_fn = {
    'streak': lambda x, v: losses.streak_loss(x, v, 0.0),
    'ce': lambda x, v: losses.decayed_ce(x, v, 7.0),
    'ce_streak': losses.ce_streak,
    'dpace': lambda x, v: losses.dpace(x, v, 0.5),
    'warmed': lambda x, v: losses.warmed(
      losses.streak_loss(x, v, 0.5), x, v, ce_weight=0.5, decay=7.0
    ),
  }[name]
  run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, metrics), gradient = run(log_q, valid)
  assert np.isfinite(loss)
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[0], 0)  # outside the vocabulary
  np.testing.assert_array_equal(gradient[3], 0)  # padding
  assert gradient[1, 0] != 0 and gradient[1, 1] == 0
  assert metrics['streak'] == pytest.approx((0 + 0.5 + 0.75) / 3)
  assert metrics['outside'] == pytest.approx(1 / 3)
  assert metrics['windows'] == 3
  # Alone, such windows still give a zero loss and no NaN.
  _, gradient = run(log_q[:1], valid[:1])
  np.testing.assert_array_equal(gradient, 0)


def test_negative_control_naive_objective_gives_nan():
  log_q = jnp.array([[-jnp.inf, -0.7]])
  naive = lambda x: -jax.nn.logsumexp(jnp.cumsum(x, axis=-1))
  assert np.isnan(jax.grad(naive)(log_q)).any()


def test_decayed_ce_is_a_weighted_mean():
  log_q = jnp.log(jnp.array([[0.5, 0.25, 0.1], [0.2, 0.9, 0.9]]))
  valid = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
  w = np.exp(-np.arange(3) / 7)
  nll = -np.log([0.5, 0.25, 0.1, 0.2])
  weights = np.array([*w, w[0]])
  decayed_ce = jax.jit(losses.decayed_ce)
  loss, _ = decayed_ce(log_q, valid, 7.0)
  np.testing.assert_allclose(loss, (weights @ nll) / weights.sum(), rtol=1e-6)
  plain, _ = decayed_ce(log_q, valid, np.inf)
  np.testing.assert_allclose(plain, nll.mean(), rtol=1e-6)


def test_tiny_probabilities_keep_their_gradient():
  log_q = jnp.full((2, 16), -60.0)  # J = e^-60, S_16 = e^-960
  gradient = jax.jit(
    jax.grad(lambda x: losses.streak_loss(x, jnp.ones_like(x, bool), 0.0)[0])
  )(log_q)
  np.testing.assert_allclose(gradient[:, 0], -0.5, rtol=1e-6)
  # Negative control: the product itself underflows.
  assert float(jnp.exp(jnp.sum(log_q[0]))) == 0.0


def test_schedules():
  beta = [float(losses.anneal(s, 2, 6)) for s in (0, 2, 4, 6, 9)]
  assert beta == [0.0, 0.0, 0.5, 1.0, 1.0]
  assert float(losses.anneal(9, 2, 6, final=0.3)) == pytest.approx(0.3)
  assert [float(losses.warmup_weight(s, 2)) for s in (1, 2)] == [1.0, 0.0]
