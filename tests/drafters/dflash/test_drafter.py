"""A DFlash drafter: which keys it keeps, and what its block is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import prefilled

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising
from specdiff_jax.drafters import family
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.dflash import drafter as block
from specdiff_jax.drafters.dflash import network as dflash
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.verifiers import causal

VOCAB, MASK, BLOCK, ROOM = 30, 29, 4, 24
SIZES = dict(
  vocab_size=VOCAB, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=24
)
VERIFIER = config_lib.TransformerConfig(layers=3, tied_head=False, **SIZES)
CONFIG = dflash.DFlashConfig(
  config_lib.TransformerConfig(layers=2, qk_norm=True, **SIZES),
  features=(0, 2),
  block=BLOCK,
  mask_id=MASK,
)
FEATURES = np.random.default_rng(5).standard_normal((2, ROOM, 2, 16))
FEATURES = FEATURES.astype(np.float32)
TEXT = np.random.default_rng(1).integers(0, VOCAB, (2, ROOM))


def params(config, seed):
  rng = np.random.default_rng(seed)
  return params_lib.nest(
    {
      name: rng.standard_normal(shape).astype(np.float32) * 0.3
      for name, shape in networks.shapes(config).items()
    }
  )


PARAMS = family.DrafterParams(params(CONFIG, 4))


def drafter(gamma=BLOCK - 1, **options):
  chain = strategies.Chain(keep_q=True)
  return block.Block(CONFIG, gamma, chain, **options)


def context(length):
  return protocols.Context(
    jnp.asarray(TEXT),
    jnp.asarray(length),
    cache_lib.Cache(((jnp.zeros((2, 1, ROOM, 2)),) * 2,)),
    params(VERIFIER, 3),
    causal.CausalVerifier(networks.network(VERIFIER)),
  )


def law_of(one, state, length):
  """Returns the law of each slot of a draft [B, G, V], and its tokens."""
  like = jnp.ones(2)
  law = types.Sampling(like, jnp.zeros(2, jnp.int32), like)

  @jax.jit
  def draft(p, state, context):
    noise = sampling_lib.request_noise(0, jnp.arange(2))
    return one.draft(p, state, context, law, noise, one.buckets[0])[0]

  tree = draft(PARAMS, state, context(length))
  return np.exp(tree.log_q[:, 1:]), np.asarray(tree.token)


def expected(length):
  """Returns the same of row 0, from the parts of the network."""
  before = length - 1  # the last committed token has no features yet
  verifier = params(VERIFIER, 3)
  tokens = [TEXT[0, before]] + [MASK] * (BLOCK - 1)

  @jax.jit
  def whole(p, features, embedded):
    model = dflash.DFlash(CONFIG)
    positions = jnp.arange(before)[None]
    keys = model.apply({'params': p}, features, positions, method='context')
    return model.apply({'params': p}, embedded, jnp.array([[before]]), keys)

  embedded = verifier['embed'][tokens][None, None]
  x = whole(PARAMS.network, FEATURES[:1, :before], embedded)
  logits = np.asarray(x[0, 0, 1:]) @ verifier['head'].T
  logits[:, MASK] = -np.inf
  return np.asarray(jax.nn.softmax(logits, axis=-1))


def started(one, length):
  """Returns the state after a prompt, with garbage behind it in its bucket."""
  features = jnp.asarray(FEATURES)
  known = jnp.arange(ROOM) < jnp.asarray(length)[:, None] - 1
  features = jnp.where(known[..., None, None], features, 77.0)
  begun = jax.jit(prefilled.prefilled, static_argnums=0)
  return begun(one, PARAMS, context(length), features)


def observed(one, state, length, count):
  """Returns the state after a cycle that accepts `count` [B] tokens."""
  length, count = np.asarray(length), np.asarray(count)
  path = np.full((2, BLOCK, 2, 16), 55.0, np.float32)
  for row in range(2):
    first = length[row] - 1
    new = FEATURES[row, first : first + count[row] + 1]
    path[row, : len(new)] = new
  verdict = types.Verdict(None, jnp.asarray(count), None)
  return jax.jit(one.observe, static_argnums=5)(
    PARAMS, state, context(length), verdict, jnp.asarray(path), BLOCK
  )


def test_a_draft_is_a_block_after_the_verified_text():
  one = drafter()
  law, tokens = law_of(one, started(one, [9, 14]), [9, 14])
  np.testing.assert_allclose(law[0], expected(9), atol=1e-5)
  np.testing.assert_array_equal(tokens[0, 1:], expected(9).argmax(-1))
  np.testing.assert_array_equal(tokens[:, 0], TEXT[[0, 1], [8, 13]])
  # Negative control: the keys of one token more or less.
  for length in (8, 10):
    assert np.abs(law[0] - expected(length)).max() > 1e-3


def test_kept_keys_are_those_of_the_verified_text():
  one = drafter()
  length, count = np.array([5, 9]), ([2, 0], [3, 1], [0, 3])
  state = started(one, length)
  for accepted in count:
    state = observed(one, state, length, accepted)
    length = length + np.array(accepted) + 1
  law, _ = law_of(one, state, length)
  again, _ = law_of(one, started(one, length), length)
  np.testing.assert_allclose(law, again, atol=1e-5)
  np.testing.assert_allclose(law[0], expected(length[0]), atol=1e-5)


def test_the_mask_is_never_drafted_and_fewer_slots_are_a_beginning():
  one = drafter()
  law, _ = law_of(one, started(one, [9, 14]), [9, 14])
  assert (law[..., MASK] == 0).all() and (law[..., :MASK] > 0).all()
  two = drafter(gamma=2)
  assert two.buckets == (3,) and two.max_depth == 2
  less, _ = law_of(two, started(two, [9, 14]), [9, 14])
  np.testing.assert_allclose(less, law[:, :2], atol=1e-6)


def test_later_passes_see_what_was_decided():
  two = drafter(denoising=denoising.Denoising(steps=2))
  law, _ = law_of(two, started(two, [9, 14]), [9, 14])
  sure = law[0].max(-1) == 1
  assert sure.sum() == 2
  once = expected(9)
  np.testing.assert_array_equal(law[0][sure].argmax(-1), once[sure].argmax(-1))
  assert np.abs(law[0][~sure] - once[~sure]).max() > 1e-3
