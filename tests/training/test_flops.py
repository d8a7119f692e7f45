"""Counted FLOPs are those of the program, loops included."""

import jax
import jax.numpy as jnp
import pytest

from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.drafters.diffusion import windows as drafter_windows
from specdiff_jax.models import config as config_lib
from specdiff_jax.training import flops

X, W = jnp.ones((2, 3)), jnp.ones((3, 3))
ONE = 2 * 2 * 3 * 3  # of X @ W


def test_products_of_all_kinds():
  assert flops.count(jnp.dot, X, W) == ONE
  assert flops.count(jax.jit(jnp.dot), X, W) == ONE
  batched = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4))
  assert flops.count(jnp.matmul, *batched) == 2 * 5 * 2 * 3 * 4
  assert flops.count(lambda x: x + jnp.exp(x), X) == 0


def test_loops_and_what_is_made_again():
  def looped(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]

  assert flops.count(looped, X, W) == 7 * ONE

  def chain(x, w):
    return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

  both = jax.grad(chain, (0, 1))
  assert flops.count(both, X, W) == 6 * ONE  # forward, by x, by w
  again = jax.grad(jax.checkpoint(chain), (0, 1))
  assert flops.count(again, X, W) == 8 * ONE
  branches = lambda x, w: jax.lax.cond(
    x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w
  )
  assert flops.count(branches, X, W) == 2 * ONE


def test_a_drafter_against_the_compilers_count():
  verifier = config_lib.TransformerConfig(
      vocab_size=99, width=64, layers=3, heads=4, kv_heads=2, head_dim=16,
      mlp_width=256,
  )  # fmt: skip
  config = drafter_network.DrafterConfig(
      gamma=4, layers=2, features=(1, 2), trunk=128, vocab=64, ngram=2,
      verifier=verifier,
  )  # fmt: skip

  def loss(params, embed, tokens, features, anchors):
    states = drafter_windows.window_states(
      config, params, embed, tokens, features, anchors
    )
    return jnp.sum(states @ embed.T)

  shaped = jax.ShapeDtypeStruct
  arguments = (
      config.shapes(), shaped((99, 64), 'float32'), shaped((2, 24), 'int32'),
      shaped((2, 24, 2, 64), 'float32'), shaped((2, 6), 'int32'),
  )  # fmt: skip
  step = jax.jit(jax.grad(loss))
  theirs = step.lower(*arguments).cost_analysis()['flops']
  # They count norms and the like too.
  assert flops.count(step, *arguments) == pytest.approx(theirs, rel=0.1)
  assert flops.count(step, *arguments) < theirs
