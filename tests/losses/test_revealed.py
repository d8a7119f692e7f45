"""Variable prefixes by hand; the diffusion bound by enumeration."""

import itertools

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.losses import revealed
from specdiff_jax.losses import slots
from specdiff_jax.losses import windows


def test_prefixes_are_drawn_as_told():
  shown = revealed.draw_prefixes(jax.random.key(0), (4000,), 4, 0.5)
  length = np.asarray(shown.mask).sum(-1)
  assert (np.asarray(shown.mask) == (np.arange(4) < length[:, None])).all()
  found = np.bincount(length, minlength=5) / 4000
  expected = 0.5 ** np.arange(4)
  expected = np.append(expected / expected.sum(), 0.0)
  np.testing.assert_allclose(found, expected, atol=0.03)


def test_variable_prefix_by_hand():
  q = np.array([[0.5, 0.4, 0.3, 0.2], [0.6, 0.7, 0.8, 0.9], [0.1] * 4])
  valid = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
  shown = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
  w = np.exp(-np.arange(4) / 7)
  first = w[:2] @ -np.log([0.3, 0.2]) / w[:2].sum()
  second = w[:3] @ -np.log([0.6, 0.7, 0.8]) / w[:3].sum()
  with jax.enable_x64(True):
    log_q = np.log(q)

    @jax.jit
    def loss(x):
      seen = slots.Shown(jnp.asarray(shown), jnp.ones(len(shown)))
      return revealed.variable_prefix(x, jnp.asarray(valid), seen, 7.0)[0]

    got = loss(jnp.asarray(log_q))
    assert got == pytest.approx((first + second) / 2, rel=1e-12)
    # Negative control: weights that are counted from the window's start.
    wrong = np.exp(-2 / 7) * first
    assert got != pytest.approx((wrong + second) / 2, rel=1e-3)
    slope = np.asarray(jax.grad(loss)(jnp.asarray(log_q)))
    expected = gradients.finite_differences(loss, log_q)
  assert gradients.distance(slope, expected) <= 1e-8
  assert (slope[shown] == 0).all() and (slope[2] == 0).all()


def test_pooled_prefixes():
  """One sum of weights; without a prefix it is DFlash's loss."""
  q = np.random.default_rng(0).uniform(0.1, 0.9, (3, 4))
  valid = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
  log_q = jnp.log(q)

  def loss(lengths, pooled=True):
    mask = jnp.arange(4) < jnp.asarray(lengths)[:, None]
    seen = slots.Shown(mask, jnp.ones(3))
    return revealed.variable_prefix(log_q, valid, seen, 5.0, pooled)[0]

  plain = windows.decayed_ce(log_q, valid, 5.0)[0]
  np.testing.assert_allclose(loss([0, 0, 0]), plain, rtol=1e-6)
  assert abs(loss([0, 0, 0], False) - plain) > 1e-3  # the control
  w = np.exp(-np.arange(4) / 5)
  nll = -np.log(q)
  sums = w[:2] @ nll[0, 2:], w[:3] @ nll[1, :3]
  wanted = sum(sums) / (w[:2].sum() + w[:3].sum())
  np.testing.assert_allclose(loss([2, 0, 1]), wanted, rtol=1e-6)


def test_a_shown_token_need_not_be_drafted():
  log_q = jnp.log(jnp.array([[0.0, 0.5, 0.0, 0.5]]))
  valid = jnp.ones((1, 4), bool)
  shown = slots.Shown(jnp.array([[1, 0, 0, 0]], bool), jnp.ones(1))

  def loss(x):
    return revealed.variable_prefix(x, valid, shown, 7.0)[0]

  value, slope = jax.jit(jax.value_and_grad(loss))(log_q)
  assert value == pytest.approx(-np.log(0.5))  # until the next one outside
  np.testing.assert_allclose(slope, [[0, -1, 0, 0]], atol=1e-7)


@pytest.mark.parametrize('name', revealed.SCHEDULES)
def test_schedules(name):
  time = jnp.linspace(0.01, 1.0, 50)
  mask = revealed.SCHEDULES[name](time)
  full = {'linear': 1.0, 'log_linear': 0.999}[name]
  np.testing.assert_allclose(mask, full * time, rtol=1e-5)
  weight = revealed.elbo_weight(revealed.SCHEDULES[name], time)
  np.testing.assert_allclose(weight, 1 / time, rtol=1e-5)


def test_masks_are_drawn_as_told():
  shown = revealed.draw_masks(jax.random.key(0), (4000,), 6, revealed.linear)
  masked = 1 - np.asarray(shown.mask, float)
  assert masked.mean() == pytest.approx(0.5, abs=0.02)
  # E[1{masked} m' / m] = m(1): what makes the bound one.
  weighed = (masked * np.asarray(shown.weight)[:, None]).mean()
  assert weighed == pytest.approx(1.0, abs=0.1)
  assert masked.std(0).min() > 0.4  # each token has its own coin
  assert np.corrcoef(masked[:, 0], masked[:, 1])[0, 1] > 0.1  # and one time


elbo = jax.jit(revealed.elbo)


def bound(joint, x, schedule, weight=revealed.elbo_weight):
  """Integrates the loss over time and all masks of a text x of two tokens.

  The drafter is exact: it gives the joint law's conditionals.
  """
  nodes, scale = np.polynomial.legendre.leggauss(24)
  total = 0.0
  for node, dt in zip((nodes + 1) / 2, scale / 2):
    time = jnp.asarray([node])
    masked_p = float(schedule(time)[0])
    for mask in itertools.product([False, True], repeat=2):
      chance = np.prod([masked_p if m else 1 - masked_p for m in mask])
      log_q = np.zeros((1, 2))
      for i in range(2):
        other = 1 - i
        table = joint if i == 0 else joint.T
        law = table.sum(1) if mask[other] else table[:, x[other]]
        log_q[0, i] = np.log(law[x[i]] / law.sum())
      shown = slots.Shown(~jnp.asarray([mask]), weight(schedule, time))
      loss, _ = elbo(jnp.asarray(log_q), jnp.ones((1, 2), bool), shown)
      total += dt * chance * float(loss) * 2  # per token -> per text
  return total


def test_the_bound_is_tight_for_exact_conditionals():
  joint = np.array([[0.4, 0.1], [0.2, 0.3]])
  with jax.enable_x64(True):
    for x in ((0, 0), (1, 0)):
      exact = -np.log(joint[x])
      got = bound(joint, x, revealed.linear)
      assert got == pytest.approx(exact, rel=1e-10)
      # At t = 1 one token in a thousand is still seen.
      got = bound(joint, x, revealed.log_linear)
      assert got == pytest.approx(exact, rel=3e-3)
      # Negative control: without the weight it is no bound at all.
      wrong = bound(
        joint, x, revealed.linear, lambda _, time: jnp.ones_like(time)
      )
      assert wrong < 0.9 * exact


def test_elbo_by_hand():
  log_q = np.log([[0.5, 0.4, 0.25], [0.2, 0.1, 0.1]])
  log_q[0, 2] = -np.inf  # outside the draft vocabulary
  valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
  shown = np.array([[0, 1, 0], [0, 0, 0]], bool)
  weight = np.array([2.0, 1.25])
  with jax.enable_x64(True):
    given = slots.Shown(jnp.asarray(shown), jnp.asarray(weight))

    def loss(x):
      return revealed.elbo(x, jnp.asarray(valid), given)[0]

    got, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(log_q))
  expected = -(2.0 * np.log(0.5) + 1.25 * np.log(0.2 * 0.1)) / 4
  assert got == pytest.approx(expected, rel=1e-12)
  by_hand = -np.array([[2.0, 0, 0], [1.25, 1.25, 0]]) / 4
  np.testing.assert_allclose(slope, by_hand, rtol=1e-12)
