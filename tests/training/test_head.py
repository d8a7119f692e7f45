"""Block by block comes to the same as at once."""

import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.models import head as head_lib

V, E = 23, 6


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  states = rng.standard_normal((2, 5, E)).astype(np.float32)
  head = 3 * rng.standard_normal((V, E)).astype(np.float32)
  index = rng.integers(-1, V, (2, 5)).astype(np.int32)
  index[0, 0], index[0, 1], index[1, 0] = -1, V - 1, 0
  return states, head, index


def loss(states, head, index, block):
  log_q, match = head_lib.targets(states, head, index, block)
  return jnp.sum(jnp.where(log_q > -jnp.inf, log_q, 0)), (log_q, match)


@pytest.mark.parametrize('block', [5, 23])
def test_blocks_give_the_same(arrays, block):
  states, head, index = arrays
  value = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)
  (_, (log_q, match)), slope = value(states, head, index, 0)
  (_, (got, same)), got_slope = value(states, head, index, block)
  there = index >= 0
  assert (got[~there] == -np.inf).all()
  assert gradients.distance(got[there], log_q[there]) <= 1e-6
  assert gradients.distance(got_slope, slope) <= 1e-6
  np.testing.assert_array_equal(same, match)
  log_z = jax.jit(head_lib.log_z, static_argnums=2)
  z = log_z(states, head, block, 0.7)
  expected = jax.nn.logsumexp(states @ head.T / 0.7, axis=-1)
  assert gradients.distance(z, expected) <= 1e-6
  # Negative control: without the rows of the last block.
  wrong = log_z(states, head[:20], block, 0.7)
  assert gradients.distance(wrong, expected) > 1e-3


def test_targets_have_a_log_softmax(arrays):
  states, head, index = arrays
  log_q, match = jax.jit(head_lib.targets, static_argnums=3)(states, head, index, 5)
  log_q, match = np.asarray(log_q), np.asarray(match)
  logits = states @ head.T
  whole = np.asarray(jax.nn.log_softmax(logits))
  for at in np.ndindex(index.shape):
    if index[at] < 0:
      assert log_q[at] == -np.inf and not match[at]
    else:
      assert log_q[at] == pytest.approx(float(whole[at][index[at]]), abs=1e-5)
      assert match[at] == (logits[at].argmax() == index[at])


def test_ties_go_to_the_lowest_index():
  head = jnp.ones((6, 2))
  index = jnp.array([[0, 3]])
  for block in (0, 2):
    _, match = head_lib.targets(jnp.ones((1, 2, 2)), head, index, block)
    np.testing.assert_array_equal(match, [[True, False]])


def test_no_array_of_all_logits_is_made(arrays):
  """What blocks are for: the largest array of the gradient's program."""
  del arrays
  states, head = jnp.ones((64, E)), jnp.ones((512, E))
  index = jnp.zeros(64, jnp.int32)

  def largest(block):
    jaxpr = jax.make_jaxpr(jax.grad(lambda s: loss(s, head, index, block)[0]))
    return _largest(jaxpr(states).jaxpr)

  assert largest(0) == 64 * 512  # the control
  assert largest(32) <= 512 * E + 64 * 32


def _largest(jaxpr) -> int:
  sizes = [int(np.prod(v.aval.shape)) for e in jaxpr.eqns for v in e.outvars]
  for eqn in jaxpr.eqns:
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        sizes.append(_largest(inner))
  return max(sizes, default=0)
