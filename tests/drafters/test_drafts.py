"""What drafters propose, apart from the loop that judges it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import prefilled
import pytest
import tiny_model

from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import family
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import none
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import transformer
from specdiff_jax.verifiers import causal

TOKENS = jnp.array([[5, 6, 7, 5, 6, 0, 0, 0], [1, 2, 3, 0, 0, 0, 0, 0]])
CACHE = cache_lib.Cache(((jnp.zeros((2, 1, 16, 8)),) * 2,))
VERIFIER = config_lib.TransformerConfig(
  vocab_size=50,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
)
CONTEXT = protocols.Context(
  TOKENS,
  jnp.array([5, 3]),
  CACHE,  # only its size matters here
  {},
  causal.CausalVerifier(transformer.Transformer(VERIFIER)),
)


def sampling(temperature):
  return types.Sampling(
    jnp.full(2, temperature), jnp.zeros(2, jnp.int32), jnp.ones(2)
  )


def test_no_draft_is_the_root_and_padding():
  drafter = none.NoDraft(3)
  tree, _ = drafter.draft((), (), CONTEXT, None, None, 3)
  np.testing.assert_array_equal(tree.token[:, 0], [6, 3])
  np.testing.assert_array_equal(tree.valid, [[True, False, False]] * 2)
  assert (drafter.buckets, drafter.max_depth) == ((3,), 0)


def test_lookup_copies_and_says_where_it_cannot():
  drafter = lookup.PromptLookup(gamma=4)
  tree, _ = drafter.draft((), (), CONTEXT, None, None, 5)
  np.testing.assert_array_equal(tree.token[0], [6, 7, 5, 6, 7])
  np.testing.assert_array_equal(tree.valid[0], [True] * 5)
  np.testing.assert_array_equal(tree.valid[1], [True] + [False] * 4)
  np.testing.assert_array_equal(tree.depth, [[0, 1, 2, 3, 4]] * 2)


@pytest.fixture(scope='module')
def drafts():
  """Returns mode, temperature, seed -> (tree, ids) of a random drafter."""
  config = drafter_network.DrafterConfig(
    gamma=6,
    layers=1,
    features=(1,),
    trunk=8,
    vocab=20,
    ngram=0,
    verifier=VERIFIER,
  )
  ids = np.random.default_rng(0).permutation(50)[:20]
  head = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
  embed = jnp.asarray(np.random.default_rng(2).standard_normal((50, 16)))
  network = tiny_model.drafter_params(config)
  network['stream'] = 0.02 * network['stream']  # flat laws
  params = family.DrafterParams(network, jnp.asarray(ids), jnp.asarray(head))
  features = jnp.ones((2, 8, 1, 16))
  context = CONTEXT.replace(params={'embed': embed})

  @functools.cache
  def compiled(mode, gamma):
    drafter = diffusion.MaskedDiffusion(
      config, gamma, strategies.Chain(mode=mode)
    )

    @jax.jit
    def run(params, law, noise):
      state = prefilled.prefilled(drafter, params, context, features)
      return drafter.draft(params, state, context, law, noise, gamma + 1)[0]

    return run

  def draft(mode, temperature, seed=0, gamma=5):
    noise = sampling_lib.request_noise(seed, jnp.array([4, 9]))
    return compiled(mode, gamma)(params, sampling(temperature), noise), ids

  return draft


@pytest.mark.parametrize('mode', ['argmax', 'sample', 'shared_noise'])
def test_diffusion_drafts_a_chain_of_its_vocabulary(drafts, mode):
  tree, ids = drafts(mode, 1.0)
  assert tree.token.shape == (2, 6)  # a shorter window than it was made for
  np.testing.assert_array_equal(tree.token[:, 0], [6, 3])
  np.testing.assert_array_equal(tree.parent, [[0, 0, 1, 2, 3, 4]] * 2)
  assert np.isin(tree.token[:, 1:], ids).all()
  assert np.asarray(tree.valid).all()


def test_modes_agree_at_temperature_zero_and_differ_above(drafts):
  greedy = np.asarray(drafts('argmax', 0.0)[0].token)
  for mode in ('sample', 'shared_noise'):
    np.testing.assert_array_equal(drafts(mode, 0.0)[0].token, greedy)
    assert (np.asarray(drafts(mode, 1.0)[0].token) != greedy).any()
  np.testing.assert_array_equal(drafts('argmax', 1.0)[0].token, greedy)


def test_shared_noise_is_the_verifiers_own(drafts):
  """A temperature so high that only the noise speaks: its argmax is drafted."""
  tree, ids = drafts('shared_noise', 1e6)
  positions = CONTEXT.length[:, None] + jnp.arange(5)
  noise = sampling_lib.request_noise(0, jnp.array([4, 9]))
  g = np.asarray(sampling_lib.gumbel(noise, positions, 50))
  wanted = ids[g[..., ids].argmax(-1)]
  np.testing.assert_array_equal(tree.token[:, 1:], wanted)
  # Negative controls: noise of the drafter's own, and another seed.
  own, _ = drafts('sample', 1e6)
  assert (np.asarray(own.token[:, 1:]) != wanted).any()
  other, _ = drafts('shared_noise', 1e6, seed=1)
  assert (np.asarray(other.token[:, 1:]) != wanted).any()


def test_a_proposal_says_how_it_was_drawn(drafts):
  del drafts
  kinds = {
    mode: strategies.Chain(mode=mode).proposal
    for mode in ('argmax', 'sample', 'shared_noise')
  }
  assert kinds == {
    'argmax': 'deterministic',
    'sample': 'iid',
    'shared_noise': 'deterministic',
  }
