"""D2SD: which prefixes stay, and branches that share one context."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import window
from specdiff_jax.drafters.d2sd import drafter as d2sd
from specdiff_jax.drafters.dflash import drafter as block
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.drafters.diffusion import network as diffusion_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import networks
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems
from specdiff_jax.testing import models
from specdiff_jax.verifiers import causal

VERIFIER = models.tiny_verifier()
VERIFIER = dataclasses.replace(
  VERIFIER, params=jax.tree.map(jnp.asarray, VERIFIER.params)
)
GAMMA, BRANCHES, ROOM = 4, 3, 14


def test_misses_by_hand():
  """Of confidences .9, .5, .8 and .25."""
  got = d2sd.misses(jnp.array([[0.9, 0.5, 0.8, 0.25]]))
  wanted = [0.1, 0.9 * 0.5, 0.9 * 0.5 * 0.2, 0.9 * 0.5 * 0.8 * 0.75]
  np.testing.assert_allclose(got[0], wanted, rtol=1e-6)
  # What is left of 1 is a draft without a miss.
  assert got.sum() + 0.9 * 0.5 * 0.8 * 0.25 == pytest.approx(1)
  prefixes = lambda k: d2sd.prefixes(jnp.array([[0.9, 0.5, 0.8, 0.25]]), k)
  assert prefixes(1).tolist() == [[1]]
  assert prefixes(3).tolist() == [[1, 3, 0]]
  assert sorted(prefixes(4)[0].tolist()) == [0, 1, 2, 3]
  ties = d2sd.prefixes(jnp.array([[1.0, 1.0, 0.5, 1.0]]), 3)
  assert ties.tolist() == [[2, 0, 1]]


@dataclasses.dataclass(frozen=True)
class Told(window.SharedContext):
  """Fills slots with told logits, whatever is shown; keeps what was shown."""

  gamma: int
  features: tuple[int, ...] = ()
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()

  def branches(self, params, state, context, token=None, shown=None):
    logits = params[:, None]
    if shown is not None:
      # Behind a prefix of l tokens it drafts l + 1 more than it was told.
      turn = shown.sum(-1, keepdims=True)[..., None] + 1
      logits = jnp.broadcast_to(logits, (*shown.shape, 8))
      place = jnp.broadcast_to((jnp.arange(8) - turn) % 8, logits.shape)
      logits = jnp.take_along_axis(logits, place, axis=-1)
    return marginals_lib.Marginals(
      logits, jnp.arange(8), context.last, context.length, 8
    )


def tree_of(one):
  """Returns the paths of a draft that is sure of its 1st and its 3rd token."""
  sure = [0.9, 0.5, 0.8, 0.25]
  logits = np.zeros((1, 4, 8), np.float32)
  for slot, p in enumerate(sure):
    logits[0, slot] = np.log((1 - p) / 7)
    logits[0, slot, slot + 1] = np.log(p)
  context = protocols.Context(
    jnp.array([[5, 0]]), jnp.array([1]), None, None, None
  )
  like = jnp.zeros(1)
  tree = one.draft(
    (jnp.asarray(logits), jnp.asarray(logits)),
    ((), ()),
    context,
    types.Sampling(like, like.astype(int), like + 1),
    sampling_lib.request_noise(0, jnp.arange(1)),
    one.buckets[0],
  )[0]
  paths = set()
  for slot in np.flatnonzero(tree.valid[0]):
    path = []
    while slot:
      path.append(int(tree.token[0, slot]))
      slot = int(tree.parent[0, slot])
    paths.add(tuple(path[::-1]))
  return paths


def beginnings(chains):
  return {chain[:n] for chain in chains for n in range(5)}


def test_the_tree_of_a_first_draft_and_its_branches():
  """First draft 1 2 3 4: branches at 1, 3 and 0."""
  one = d2sd.Dual((Told(4), Told(4)), 4, 3, budget=99)
  assert one.buckets == (1 + 16 - 3,) and one.max_depth == 4
  chains = [(1, 2, 3, 4), (1, 4, 5, 6), (1, 2, 3, 0), (2, 3, 4, 5)]
  assert tree_of(one) == beginnings(chains)


def test_a_longer_second_draft_goes_on_from_the_whole_first_one():
  """First draft 1 2: branches at 2, 1 and 0."""
  one = d2sd.Dual((Told(2), Told(4)), 4, 2, budget=99)
  assert one.buckets == (1 + 12 - 1,) and one.max_depth == 4
  chains = [(1, 2, 6, 7), (1, 4, 5, 6), (2, 3, 4, 5)]
  assert tree_of(one) == beginnings(chains)


def first_and_second(kind):
  """Returns a drafter of windows and its params, of random weights."""
  c = VERIFIER.config
  if kind == 'dflash':
    sizes = dflash.TrainedConfig(GAMMA + 1, 2, (0, 1), 60, c.vocab_size, 0, c)
    one = block.Block(sizes.run_as, GAMMA)
    params = models.random_params(sizes.shapes(), 3, 0.15)
    return one, family_lib.DrafterParams(params)
  sizes = diffusion_network.DrafterConfig(
    GAMMA + 1, 1, (1,), 24, c.vocab_size, 2, c
  )
  params = models.random_params(sizes.shapes(), 4, 0.1)
  one = diffusion.MaskedDiffusion(sizes, GAMMA)
  ids = jnp.arange(c.vocab_size)
  return one, family_lib.DrafterParams(params, ids, VERIFIER.params['head'])


def context_of(rows):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 60, (2, ROOM))
  cache = cache_lib.Cache(((jnp.zeros((2 * rows, 1, ROOM, 2)),) * 2,))
  return protocols.Context(
    jnp.asarray(np.repeat(tokens, rows, 0)),
    jnp.asarray(np.repeat([9, 6], rows)),
    cache,
    VERIFIER.params,
    causal.CausalVerifier(networks.network(VERIFIER.config)),
  )


@functools.partial(jax.jit, static_argnums=0)
def filled(one, params, context, features, token, shown):
  state = one.init(params, context)
  start = jnp.zeros_like(context.length)
  state = one.read(params, state, context, features, start)
  return one.branches(params, state, context, token, shown).logits


@pytest.mark.parametrize('kind', ['dflash', 'diffusion'])
def test_branches_of_one_row_are_rows(kind):
  one, params = first_and_second(kind)
  rng = np.random.default_rng(1)
  features = rng.standard_normal((2, 8, len(one.features), 24))
  features = features.astype(np.float32)
  token = rng.integers(0, 60, (2, BRANCHES, GAMMA))
  shown = np.arange(GAMMA) < np.array([[[0], [2], [3]], [[1], [3], [0]]])
  whole = filled(one, params, context_of(1), features, token, shown)
  apart = filled(
    one, params, context_of(BRANCHES), np.repeat(features, BRANCHES, 0),
    token.reshape(-1, 1, GAMMA), shown.reshape(-1, 1, GAMMA),
  )  # fmt: skip
  apart = np.asarray(apart).reshape(whole.shape)
  apart, whole = (np.nan_to_num(x, neginf=0.0) for x in (apart, whole))
  np.testing.assert_allclose(whole, apart, atol=1e-5)
  # The keys of the context are those of a row, not of each branch.
  state = jax.eval_shape(one.init, params, context_of(1))
  assert all(x.shape[0] == 2 for x in jax.tree.leaves(state))
  # Negative controls: branches differ, and each sees its own prefix.
  assert np.abs(apart[:, 0] - apart[:, 1]).max() > 1e-3
  token[:, 1] = (token[:, 1] + 1) % 60
  other = filled(one, params, context_of(1), features, token, shown)
  other = np.nan_to_num(other, neginf=0.0)
  moved = np.abs(other - apart).max((-1, -2)) > 1e-4
  assert moved.tolist() == [[False, True, False]] * 2


def test_each_reads_its_own_features():
  parts = {'first': first_and_second('diffusion')}
  parts['second'] = first_and_second('dflash')
  one, params = d2sd.make(parts, BRANCHES, 32)
  assert one.features == (0, 1)
  context = context_of(1)
  rng = np.random.default_rng(1)
  features = rng.standard_normal((2, 8, 2, 24)).astype(np.float32)
  start = jnp.zeros(2, jnp.int32)
  state = one.init(params, context)
  state = one.read(params, state, context, features, start)
  for kept, (drafter, given), own in zip(
    state, parts.values(), (features[:, :, 1:], features), strict=True
  ):
    alone = drafter.read(
      given, drafter.init(given, context), context, own, start
    )
    for got, wanted in zip(
      jax.tree.leaves(kept), jax.tree.leaves(alone), strict=True
    ):
      np.testing.assert_allclose(got, wanted, atol=1e-6)


def refused(word, **options):
  base = {'network': {'layers': 1, 'trunk': 24, 'vocab': 40}, 'gamma': 4}
  with pytest.raises(errors.InputError, match=word):
    recipe = decoding.told(['d2sd'], base | options)
    systems.parts('d2sd', recipe.systems['d2sd'], VERIFIER)


def test_what_is_refused(tmp_path):
  refused('branches is 5.*4 prefixes', drafter='random', branches=5)
  refused('second_gamma is 2.*gamma=4', drafter='random', second_gamma=2)
  plain = {'layers': 1, 'trunk': 24, 'vocab': 40, 'ngram': 0}
  refused('second has no input', drafter='random', network=plain)
  recipe = decoding.told(['d2sd'], {}, drafters={'d2sd': {'second': 'random'}})
  with pytest.raises(errors.InputError, match='drafters.d2sd.first is empty'):
    systems.parts('d2sd', recipe.systems['d2sd'], VERIFIER)
  with pytest.raises(errors.InputError, match='share no context'):
    d2sd.make({'first': (Other(), ()), 'second': (Told(4), ())}, 2, 9)


class Other(window.Window):
  """Has windows, but each has a pass of its own."""
