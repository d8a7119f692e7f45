"""Chains of several drafters in one tree."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import window
from specdiff_jax.drafters.mixture import drafter as mixture
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems
from specdiff_jax.testing import models


@dataclasses.dataclass(frozen=True)
class Told(window.Window):
  """Likes what its params say, and has no state."""

  gamma: int
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()
  features: tuple[int, ...] = ()

  def denoise(self, params, state, context, sampling, noise):
    logits = jnp.where(jnp.arange(8) == jnp.array(params)[:, None], 3.0, 0.0)
    return marginals_lib.Marginals(
      logits[None], jnp.arange(8), context.last, context.length, 8
    ), state

  def observe(self, params, state, context, verdict, features, slots):
    assert features is None or self.features
    return state


def paths(tree):
  found = set()
  for slot in np.flatnonzero(tree.valid[0]):
    path = []
    while slot:
      path.append(int(tree.token[0, slot]))
      slot = int(tree.parent[0, slot])
    found.add(tuple(path[::-1]))
  return found


def test_the_tree_of_three_chains():
  chains = [(1, 2, 3), (1, 4, 3), (5, 2, 3)]
  parts = {str(i): (Told(3), chain) for i, chain in enumerate(chains)}
  one, params = mixture.make(parts, 3, 99)
  assert one.buckets == (10,) and one.max_depth == 3
  context = protocols.Context(
    jnp.array([[7, 0]]), jnp.array([1]), None, None, None
  )
  like = jnp.zeros(1)
  tree, state = one.draft(
    params,
    ((), (), ()),
    context,
    types.Sampling(like, like.astype(int), like + 1),
    sampling_lib.request_noise(0, jnp.arange(1)),
    10,
  )
  assert paths(tree) == {chain[:n] for chain in chains for n in range(4)}
  assert state == ((), (), ())


@dataclasses.dataclass(frozen=True)
class Reads(Told):
  """Reads features, which it keeps."""

  features: tuple[int, ...] = (1,)

  def read(self, params, state, context, features, start):
    return features

  def observe(self, params, state, context, verdict, features, slots):
    return features


def test_each_reads_its_own_features_or_none():
  both, _ = mixture.make({'0': (Told(3), ()), '1': (Reads(3), ())}, 3, 99)
  features = jnp.ones((1, 2, 1, 4))
  given = ((), ()), ((), ()), None
  for state in (
    both.read(*given, features, 0), both.observe(*given, None, features, 4),
  ):  # fmt: skip
    assert state[0] == () and state[1].shape == features.shape
  none, _ = mixture.make({'0': (Told(3), ()), '1': (Told(3), ())}, 3, 99)
  assert none.features == ()
  assert none.observe(*given, None, None, 4) == ((), ())


BASE = {
  'network': {'layers': 1, 'trunk': 24, 'vocab': 40},
  'gamma': 4,
  'budget': 99,
}
OF_ONE = {k: v for k, v in BASE.items() if k != 'budget'} | {
  'drafter': 'random'
}


def build(**paths):
  recipe = decoding.told(['mixture'], BASE, drafters={'mixture': paths})
  return systems.parts(
    'mixture', recipe.systems['mixture'], models.tiny_verifier()
  )


def test_the_third_may_be_left_out():
  two = build(first='random', second='random')
  three = build(first='random', second='random', third='random')
  assert two.drafter.buckets == (9,) and three.drafter.buckets == (13,)
  with pytest.raises(errors.InputError, match='mixture.second is empty'):
    build(first='random')


def test_what_is_refused():
  with pytest.raises(errors.InputError, match='second is a int.*no windows'):
    mixture.make({'first': (Told(3), ()), 'second': (1, ())}, 3, 9)
  recipe = decoding.told(['dflash'], OF_ONE)
  with pytest.raises(errors.InputError, match='no DFlash drafter'):
    systems.parts('dflash', recipe.systems['dflash'], models.tiny_verifier())
