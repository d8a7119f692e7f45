"""Drafters whose layers attend by the kernel: what they yield without it."""

import dataclasses

import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.drafters.diffusion import network as diffusion
from specdiff_jax.models import networks

BATCH, ROOM, SEEN = 2, 24, (5, 17)


def draw(*shape, seed):
  return jax.random.normal(jax.random.key(seed), shape)


def context(config, layers):
  shape = BATCH, config.kv_heads, ROOM, config.head_dim
  return tuple(
    (draw(*shape, seed=2 * i), draw(*shape, seed=2 * i + 1))
    for i in range(layers)
  )


def compare(run):
  """Compares run(form, mask) with the kernel and without."""
  seen = jnp.arange(ROOM) < jnp.asarray(SEEN)[:, None]
  wanted, found = (
    jax.jit(run, static_argnums=0)(form, seen) for form in ('', 'kernel')
  )
  np.testing.assert_allclose(found, wanted, atol=3e-5)
  kernels = [
    str(jax.make_jaxpr(run, static_argnums=0)(form, seen)).count('pallas_call')
    for form in ('', 'kernel')
  ]
  assert kernels[0] == 0 < kernels[1]
  # The control: the context matters.
  other = jax.jit(run, static_argnums=0)('kernel', seen.at[:, 2].set(False))
  assert np.abs(other - wanted).max() > 1e-3


def test_windows():
  config, params = systems.diffusion_params()
  weights = jax.tree.map(jnp.asarray, params.network)
  c, gamma = config.verifier, config.gamma
  features = draw(BATCH, 1, len(config.features), c.width, seed=10)
  anchor = draw(BATCH, 1, c.width, seed=11)
  hint = draw(BATCH, 1, gamma, c.width, seed=12)
  positions = jnp.asarray(SEEN)[:, None, None] + jnp.arange(gamma)

  def run(form, seen):
    sizes = dataclasses.replace(
      config, verifier=dataclasses.replace(c, attention=form)
    )
    return networks.apply(
      diffusion.DrafterNetwork(sizes), weights, features, anchor, hint,
      jnp.zeros((BATCH, 1, gamma), jnp.int32), context(c, config.layers),
      seen[:, None], positions, serving=True,
    )  # fmt: skip

  compare(run)


def test_blocks():
  config, params = systems.block_params()
  weights = jax.tree.map(jnp.asarray, getattr(params, 'network', params))
  c = config.network

  def run(form, seen):
    sizes = dataclasses.replace(
      config, network=dataclasses.replace(c, attention=form)
    )
    return networks.apply(
      dflash.DFlash(sizes), weights, draw(BATCH, 1, 5, c.width, seed=10),
      seen.sum(1, keepdims=True), context(c, c.layers), serving=True,
    )  # fmt: skip

  compare(run)
