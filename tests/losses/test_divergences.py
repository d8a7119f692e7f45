"""Losses that know the verifier's law: scipy, enumeration, differences."""

import functools
import itertools

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance as scipy_distance
import scipy.special
import scipy.stats

from specdiff_jax.losses import divergences
from specdiff_jax.losses import windows

VOCAB, DRAFTED = 7, 5  # the drafter knows the first DRAFTED tokens
DIVERGENCES = {
  'kl': divergences.forward_kl,
  'reverse_kl': divergences.reverse_kl,
  'js': divergences.js,
  'tv': divergences.tv,
  'overlap': divergences.log_overlap,
  'agreement': divergences.log_agreement,
}


@pytest.fixture(scope='module', autouse=True)
def doubles():
  """In float64."""
  with jax.enable_x64(True):
    yield


@jax.jit
def all_of(log_q, log_p):
  return {name: f(log_q, log_p) for name, f in DIVERGENCES.items()}


def two_laws(seed=0, rows=3):
  """Returns logits of q [rows, DRAFTED] and p [rows, VOCAB]."""
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(VOCAB), rows)
  return rng.standard_normal((rows, DRAFTED)), p


def scipys(q, p):
  """Returns the divergences of whole laws, by scipy."""
  inside = p[:, :DRAFTED]
  mass = inside.sum(-1)
  return {
    'kl': mass * scipy.stats.entropy(inside, q[:, :DRAFTED], axis=-1),
    'reverse_kl': scipy.stats.entropy(q, p, axis=-1),
    'js': scipy_distance.jensenshannon(p, q, axis=-1) ** 2,
    'tv': np.abs(p - q).sum(-1) / 2,
    'overlap': np.log(np.minimum(p, q).sum(-1)),
    'agreement': np.log((p * q).sum(-1)),
  }


def test_divergences_are_those_of_scipy():
  logits, p = two_laws()
  log_q = jax.nn.log_softmax(jnp.asarray(logits))
  log_p = jnp.log(jnp.asarray(p[:, :DRAFTED]))
  q = np.pad(np.exp(log_q), ((0, 0), (0, VOCAB - DRAFTED)))
  expected = scipys(q, p)
  for name, got in all_of(log_q, log_p).items():
    np.testing.assert_allclose(got, expected[name], rtol=1e-12, err_msg=name)
  # Negative control: the other way round is another divergence.
  wrong = divergences.forward_kl(log_p, log_q)
  assert np.abs(wrong - expected['kl']).min() > 1e-3
  # So is a law whose mass outside the draft vocabulary is forgotten.
  inside = jax.nn.log_softmax(log_p)
  assert np.abs(divergences.js(log_q, inside) - expected['js']).min() > 1e-3


def test_gradients():
  logits, p = two_laws()
  log_p = jnp.log(jnp.asarray(p[:, :DRAFTED]))

  def totals(logits):
    found = all_of(jax.nn.log_softmax(logits), log_p)
    return jnp.stack([jnp.sum(found[name]) for name in DIVERGENCES])

  got = jax.jit(jax.jacobian(totals))(jnp.asarray(logits))
  expected = gradients.finite_differences(totals, logits)
  for row, name in enumerate(DIVERGENCES):
    assert gradients.distance(got[row], expected[row]) <= 1e-8, name
    # Negative control: another divergence has another gradient.
    assert gradients.distance(got[row - 1], expected[row]) > 0.1, name


def test_a_point_mass_is_cross_entropy():
  """The verifier at temperature 0: every KL is -log q of its one token."""
  logits, _ = two_laws()
  log_q = jax.nn.log_softmax(jnp.asarray(logits))
  log_p = jnp.full_like(log_q, -jnp.inf).at[:, 2].set(0.0)
  found = all_of(log_q, log_p)
  np.testing.assert_allclose(found['kl'], -log_q[:, 2])
  assert np.isinf(found['reverse_kl']).all()
  finite = [name for name in DIVERGENCES if name != 'reverse_kl']

  def values(x):
    found = all_of(jax.nn.log_softmax(x), log_p)
    return {name: found[name] for name in finite}

  slopes = jax.jit(jax.jacfwd(values))(jnp.asarray(logits))
  for name in finite:
    assert np.isfinite(slopes[name]).all(), name
    assert np.abs(slopes[name]).max() > 0, name


def test_decayed_kl_by_hand():
  divergence = np.array([[0.1, 0.4, 0.5], [0.2, 0.3, 9.0]])
  log_q = np.log([[0.5, 0.2, 0.1], [0.3, 0.2, 0.9]])
  log_q[1, 1] = -np.inf
  valid = np.ones((2, 3), bool)
  loss, told = divergences.decayed_kl(divergence, log_q, valid, 4.0)
  # Behind a target that cannot be drafted nothing counts.
  weight = np.exp(-np.arange(3) / 4) * [[1, 1, 1], [1, 1, 0]]
  wanted = (weight * divergence).sum() / weight.sum()
  np.testing.assert_allclose(loss, wanted)
  assert told['windows'] == 2


def test_lk_mixes_with_a_constant_share():
  logits, p = two_laws()
  log_p = jnp.log(jnp.asarray(p[:, :DRAFTED]))
  ones = jnp.ones((3,), bool)

  @jax.jit
  def value(logits, share=None):
    log_q = jax.nn.log_softmax(logits)
    kl, overlap = (
      divergences.forward_kl(log_q, log_p),
      1 - divergences.tv(log_q, log_p),
    )
    if share is not None:
      return jnp.mean(share * kl + (1 - share) * (1 - overlap))
    return divergences.lk_loss(kl, overlap, jnp.zeros(3), ones, 3.0)[0]

  x = jnp.asarray(logits)
  share = jnp.exp(-3.0 * (1 - divergences.tv(jax.nn.log_softmax(x), log_p)))
  got = jax.jit(jax.grad(value))(x)
  expected = gradients.finite_differences(lambda x: value(x, share), logits)
  np.testing.assert_allclose(value(x), value(x, share), rtol=1e-12)
  assert gradients.distance(got, expected) <= 1e-8
  # Negative control: a share that moves with the drafter.
  wrong = gradients.finite_differences(value, logits)
  assert gradients.distance(got, wrong) > 0.01


class Toy:
  """Every trajectory of a random verifier, and a drafter's marginals."""

  def __init__(self, vocab=3, gamma=3, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda: rng.dirichlet(np.ones(vocab))
    tree = {
      prefix: draw()
      for depth in range(gamma)
      for prefix in itertools.product(range(vocab), repeat=depth)
    }
    self.q = np.stack([draw() for _ in range(gamma)])
    self.logits = np.log(self.q)
    self.x = np.array(list(itertools.product(range(vocab), repeat=gamma)))
    self.p = np.array(
      [[tree[tuple(x[:j])] for j in range(gamma)] for x in self.x]
    )  # [X, G, V] the law at each slot of each trajectory
    self.weight = np.prod(self._at(self.p), axis=-1)  # P(x)

  def _at(self, laws_XxGxV):
    return np.take_along_axis(laws_XxGxV, self.x[..., None], -1)[..., 0]

  @functools.partial(jax.jit, static_argnums=0)
  def slots(self, logits):
    """Returns (log_q, log_p, agreement, overlap), each [X, G]."""
    log_q = jax.nn.log_softmax(logits)[None]
    log_p = jnp.log(self.p)
    at = jnp.asarray(self.x)[..., None]
    whole = jnp.broadcast_to(log_q, log_p.shape)
    return (
      jnp.take_along_axis(whole, at, -1)[..., 0],
      jnp.take_along_axis(log_p, at, -1)[..., 0],
      divergences.log_agreement(log_q, log_p),
      divergences.log_overlap(log_q, log_p),
    )

  def accepted(self, accept):
    """E[accepted] over drafts x ~ Q; accept(p, q) of tokens [X, G]."""
    q = self._at(np.broadcast_to(self.q, self.p.shape))
    draft = np.prod(q, axis=-1)
    return draft @ np.cumprod(accept(self._at(self.p), q), -1).sum(-1)


def test_rejection_is_the_length_that_rejection_accepts():
  toy = Toy()
  log_q, log_p, _, overlap = toy.slots(jnp.asarray(toy.logits))
  valid = jnp.ones(log_q.shape, bool)
  log_factor = jnp.minimum(log_q - log_p, 0)
  value, soft_value = (
    jax.jit(windows.streak_value),
    jax.jit(divergences.soft_value),
  )
  j = np.exp(value(log_factor, valid))
  soft = np.exp(soft_value(log_factor, overlap, valid))
  expected = toy.accepted(lambda p, q: np.minimum(1, p / q))
  assert toy.weight @ j == pytest.approx(expected, rel=1e-12)
  assert toy.weight @ soft == pytest.approx(expected, rel=1e-12)
  assert variance(toy, soft) < 0.5 * variance(toy, j)
  # Negative controls: the ratio upside down; the streak, which is the length
  # under rule M instead.
  wrong = np.exp(value(jnp.minimum(log_p - log_q, 0), valid))
  assert abs(toy.weight @ wrong - expected) > 0.05
  streak = np.exp(value(log_q, valid))
  assert abs(toy.weight @ streak - expected) > 0.05
  by_match = toy.accepted(lambda p, q: p)
  assert toy.weight @ streak == pytest.approx(by_match, rel=1e-12)


def variance(toy, values):
  mean = toy.weight @ values
  return toy.weight @ (values - mean) ** 2


def test_a_soft_last_factor_has_less_variance_and_its_own_gradient():
  toy = Toy()
  valid = jnp.ones(toy.x.shape, bool)

  def each(logits):
    log_q, _, agreement, _ = toy.slots(logits)
    return jnp.exp(
      jnp.stack(
        [
          windows.streak_value(log_q, valid),
          divergences.soft_value(log_q, agreement, valid),
        ]
      )
    )

  x = jnp.asarray(toy.logits)
  (hard, soft), slopes = jax.device_get(
    jax.jit(lambda x: (each(x), jax.jacobian(each)(x)))(x)
  )
  assert toy.weight @ hard == pytest.approx(toy.weight @ soft, rel=1e-12)
  assert variance(toy, soft) < 0.5 * variance(toy, hard)
  # Their expected gradients agree as well; a single window's do not.
  means = [np.tensordot(toy.weight, slope, 1) for slope in slopes]
  assert gradients.distance(means[0], means[1]) <= 1e-12
  assert gradients.distance(slopes[0][0], slopes[1][0]) > 0.1
  expected = gradients.finite_differences(
    lambda x: each(x)[1] @ toy.weight, toy.logits
  )
  assert gradients.distance(means[1], expected) <= 1e-8


def test_gradients_of_lengths():
  toy = Toy(gamma=2)
  valid = np.ones(toy.x.shape, bool)
  valid[::3, 1] = False
  valid = jnp.asarray(valid)

  def values(logits):
    log_q, log_p, agreement, overlap = toy.slots(logits)
    return jnp.stack(
      [
        value
        for beta in (0.0, 1.0)
        for value in (
          divergences.soft_streak_loss(log_q, agreement, valid, beta)[0],
          divergences.rejection_loss(log_q, log_p, valid, beta, overlap)[0],
          windows.streak_loss(log_q, valid, beta)[0],
        )
      ]
    )

  got = jax.jit(jax.jacobian(values))(jnp.asarray(toy.logits))
  expected = gradients.finite_differences(values, toy.logits)
  for row in range(len(expected)):
    assert gradients.distance(got[row], expected[row]) <= 1e-8, row
    # Negative control: each has another gradient than the others.
    assert gradients.distance(got[row - 1], expected[row]) > 0.05, row


def test_impossible_targets_and_padding():
  log_q = jnp.log(jnp.array([[0.0, 0.5], [0.5, 0.0], [0.5, 0.5], [0.1, 0.1]]))
  valid = jnp.array([[1, 1], [1, 1], [1, 0], [0, 0]], bool)
  last = jnp.log(jnp.full((4, 2), 0.25))

  def loss(log_q, last):
    return divergences.soft_streak_loss(log_q, last, valid, 0.0)[0]

  value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(log_q, last)
  expected = -np.log([0.25, 0.25 + 0.5 * 0.25, 0.25]).mean()
  assert value == pytest.approx(expected)
  assert all(np.isfinite(slope).all() for slope in slopes)
  # The law speaks where the target is impossible, and nowhere behind it.
  assert slopes[1][0, 0] != 0 and slopes[1][0, 1] == 0 and slopes[1][1, 1] != 0
  assert slopes[1][2, 1] == 0 and not slopes[1][3].any()
  divergence = jnp.array([[1.0, 9.0], [2.0, 3.0], [4.0, 9.0], [9.0, 9.0]])
  mean, _ = jax.jit(divergences.distillation)(divergence, log_q, valid)
  assert mean == pytest.approx((1 + 2 + 3 + 4) / 4)
  log_p = jnp.where(log_q > -jnp.inf, -0.3, 0.0)
  slope = jax.jit(
    jax.grad(
      lambda x: divergences.rejection_loss(x, log_p, valid, 0.0, last)[0]
    )
  )(log_q)
  assert np.isfinite(slope).all()


def test_stored_top_k():
  vocab = np.array([2, 5, 7, 9])
  index = np.full(12, -1)
  index[vocab] = np.arange(4)
  got = divergences.from_top_k(
    jnp.array([[7, 2], [11, 5]]),
    jnp.log(jnp.array([[0.6, 0.3], [0.5, 0.5]])),
    jnp.asarray(index),
    4,
  )
  expected = [[0.3, 0.01, 0.6, 0.01], [0, 0.5, 0, 0]]
  np.testing.assert_allclose(np.exp(got), expected, atol=1e-15)
  assert np.isfinite(got).all()  # where all of the law is stored as well


def test_truncation_is_bounded_by_what_is_not_stored():
  rng = np.random.default_rng(2)
  p, q = rng.dirichlet(np.full(40, 0.2), (2, 16))
  tv, from_top_k = (
    jax.jit(divergences.tv),
    jax.jit(divergences.from_top_k, static_argnums=3),
  )
  whole = tv(jnp.log(q), jnp.log(p))
  ids = np.argsort(-p, axis=-1)
  for k in (2, 20):
    top = np.take_along_axis(p, ids[:, :k], -1)
    stored = from_top_k(ids[:, :k], np.log(top), np.arange(40), 40)
    np.testing.assert_allclose(np.exp(stored).sum(-1), 1)
    error = np.abs(tv(np.log(q), stored) - whole)
    assert (error <= 1 - top.sum(-1) + 1e-12).all()
  assert error.max() < 0.01  # the bound is not met by being everywhere wide
