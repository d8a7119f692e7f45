"""Top-k and top-p by a searched threshold against sorting the vocabulary."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types

VOCAB = 37
warped = jax.jit(lambda *args: sampling_lib.warped(*args))

settings = hypothesis.settings(
  max_examples=150,
  deadline=None,
  derandomize=True,
  database=None,
  phases=[hypothesis.Phase.generate],
)
# Few values, so that many are equal; some tokens that cannot be drawn.
VALUES = np.array([-np.inf, -30, -2.5, -1, -0.0, 0, 0.1, 3], np.float32)


@st.composite
def logits(draw):
  """Draws [VOCAB] of some of the values, or of any."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  some = rng.choice(VALUES, draw(st.integers(1, len(VALUES))))
  x = rng.choice(some, VOCAB)
  anywhere = rng.random(VOCAB) < draw(st.sampled_from([0, 0, 0.3, 1]))
  x = np.where(anywhere, 3 * rng.standard_normal(VOCAB), x)
  x[rng.integers(VOCAB)] = 2.0
  return x.astype(np.float32)


def sampling(top_k, top_p):
  one = jnp.ones(1)
  return types.Sampling(one, jnp.int32(one * top_k), one * np.float32(top_p))


def kept(logits, top_k, top_p):
  """Returns the tokens that can be drawn."""
  x = jnp.asarray(logits, jnp.float32)[None, None]
  return np.isfinite(np.asarray(warped(x, sampling(top_k, top_p)))[0, 0])


def by_sorting(logits, top_k, top_p):
  """Returns the tokens that are kept, and what lies before each, in float64."""
  x = np.asarray(logits, np.float32).astype(np.float64)
  order = np.argsort(-x, kind='stable')
  p = np.where(
    np.arange(VOCAB) < (top_k or VOCAB), np.exp(x - x.max())[order], 0
  )
  before = np.empty(VOCAB)
  before[order] = (np.cumsum(p) - p) / p.sum()
  keep = np.isfinite(x) & (np.argsort(order) < (top_k or VOCAB))
  return keep & ((before < top_p) | (top_p >= 1)), before


@settings
@hypothesis.given(
  logits(),
  st.sampled_from([0, 1, 2, 5, VOCAB - 1, VOCAB, VOCAB + 1, 10**9]),
  st.sampled_from([1e-9, 0.25, 0.5, 0.9, 1.0])
  | st.integers(1, 2**20).map(lambda n: n / 2**20),
)
def test_what_is_kept_is_what_sorting_keeps(logits, top_k, top_p):
  wanted, before = by_sorting(logits, top_k, np.float32(top_p))
  differ = kept(logits, top_k, top_p) != wanted
  # Only where the mass before a token is the threshold, within rounding.
  assert (np.abs(before - np.float32(top_p))[differ] < 1e-6).all()


def test_a_threshold_on_the_border_is_exact():
  same = np.zeros(VOCAB, np.float32)
  same[32:] = -np.inf
  for count in (1, 2, 5, 16, 31):
    assert kept(same, 0, count / 32).nonzero()[0].tolist() == list(range(count))
    assert kept(same, 0, (count + 0.01) / 32).sum() == count + 1
    assert kept(same, count, 1.0).nonzero()[0].tolist() == list(range(count))


@pytest.mark.parametrize('size', [1, 2, 16, 17, 5000])
def test_any_size_of_vocabulary(size):
  x = np.random.default_rng(size).normal(size=size).astype(np.float32)
  got = np.asarray(warped(jnp.asarray(x)[None, None], sampling(3, 1.0)))[0, 0]
  best = np.sort(np.argsort(-x, kind='stable')[:3])
  np.testing.assert_array_equal(np.flatnonzero(np.isfinite(got)), best)


def test_the_order_in_which_masses_are_added_changes_nothing():
  """Float sums would: a cumulative one of these reaches 0.9 elsewhere."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(50, VOCAB)).astype(np.float32)
  shuffled = np.argsort(rng.random(x.shape), axis=1)
  y = np.take_along_axis(x, shuffled, axis=1)
  setting = jax.tree.map(lambda v: jnp.repeat(v, 50), sampling(0, 0.9))
  keep, moved = (
    np.isfinite(np.asarray(warped(jnp.asarray(rows)[:, None], setting)))[:, 0]
    for rows in (x, y)
  )
  np.testing.assert_array_equal(
    moved, np.take_along_axis(keep, shuffled, axis=1)
  )


BROKEN = {
  'equal tokens by the highest id': lambda first: (
    lambda order, weight, goal: first(
      order[..., ::-1], weight[..., ::-1], goal
    )[..., ::-1]
  ),
  'one token too few': lambda first: (
    lambda order, weight, goal: first(order, weight, goal - 1)
  ),
  'top-p not renormalised': lambda first: (
    lambda order, weight, goal: first(
      order, weight, goal + (goal > 2**20) * 2**26
    )
  ),
}


@pytest.mark.parametrize('broken', BROKEN)
def test_what_is_broken_is_noticed(broken, monkeypatch):
  """The negative controls."""
  real = sampling_lib._first
  monkeypatch.setattr(sampling_lib, '_first', BROKEN[broken](real))
  monkeypatch.setitem(
    globals(), 'warped', jax.jit(lambda *args: sampling_lib.warped(*args))
  )
  with pytest.raises(AssertionError):
    test_what_is_kept_is_what_sorting_keeps()


@pytest.mark.parametrize('top', [7.0, 18.0, 20.0])
def test_a_large_vocabulary_with_one_likely_token(top):
  """The tail of 150,000 tokens weighs what it does, however flat it is."""
  x = np.random.default_rng(0).normal(0, 0.1, 151936).astype(np.float32)
  x[5] = top
  p = np.exp(x.astype(np.float64) - x.max())
  p /= p.sum()
  order = np.argsort(-x.astype(np.float64), kind='stable')
  before = np.cumsum(p[order]) - p[order]
  for part in (0.3, 0.5, 0.9):
    top_p = np.float32(p[5] + part * (1 - p[5]))
    mass = p[kept(x, 0, top_p)].sum()
    wanted = p[order[before < top_p]].sum()
    assert abs(mass - wanted) < 1e-4
    if top == 18.0:  # where it is told from keeping one token, or all
      assert 1e-4 < mass - p[5] < 1 - p[5] - 1e-4
