"""Training in part: what is held stays to the bit, and has no state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from specdiff_jax.training import optimizer as optimizer_lib
from specdiff_jax.training import trainable_subset

PARAMS = {
  'layer_0': {'query': jnp.ones((3, 2)), 'norm': jnp.full(2, 0.3)},
  'head': jnp.full((4, 3), -0.7),
}


def after(optimizer, steps=3, held='.'):
  """Params and optimizer state after steps of a loss that all params move."""

  @jax.jit
  def one(params, state):
    def loss(params):
      return sum(
        jnp.sum((x - 2) ** 2)
        for x in jax.tree.leaves(trainable_subset.held(params, held))
      )

    grads = jax.grad(loss)(params)
    updates, state = optimizer.update(grads, state, params, value=0.0)
    return optax.apply_updates(params, updates), state, grads

  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(steps):
    params, state, grads = one(params, state)
  return params, state, grads


def test_held_params_stay_and_have_no_state():
  whole = optimizer_lib.make_optimizer(0.1, 10, weight_decay=0.1)
  part = optimizer_lib.make_optimizer(
    0.1, 10, weight_decay=0.1, trained='query'
  )
  params, state, grads = after(part, held='query')
  for get in (lambda tree: tree['layer_0']['norm'], lambda tree: tree['head']):
    np.testing.assert_array_equal(get(params), get(PARAMS))
    assert not get(grads).any()
  assert np.abs(params['layer_0']['query'] - 1).min() > 1e-3
  shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert shapes == [(3, 2), (3, 2)]  # Adam's two moments of one matrix
  # The control: an optimizer of all of them.
  params, state, _ = after(whole)
  assert np.abs(params['head'] - PARAMS['head']).min() > 1e-3
  assert len([x for x in jax.tree.leaves(state) if x.ndim]) == 6


def test_what_is_trained_is_trained_as_if_alone():
  """Clipping and decay do not see what is held."""
  settings = {'weight_decay': 0.1}
  whole = optimizer_lib.make_optimizer(0.1, 10, **settings)
  part = optimizer_lib.make_optimizer(0.1, 10, **settings, trained='query')
  params, _, _ = after(part)
  alone = {'query': PARAMS['layer_0']['query']}
  state = whole.init(alone)
  for _ in range(3):
    grads = jax.tree.map(lambda x: 2 * (x - 2), alone)
    updates, state = whole.update(grads, state, alone, value=0.0)
    alone = optax.apply_updates(alone, updates)
  np.testing.assert_allclose(
    params['layer_0']['query'], alone['query'], rtol=1e-6
  )
