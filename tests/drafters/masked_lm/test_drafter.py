"""What a masked language model reads and drafts, without an engine."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.masked_lm import drafter as masked_lm
from specdiff_jax.drafters.masked_lm import model as model_lib
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.text import id_map

VOCAB, OWN, MASK, GAMMA, ROOM = 30, 33, 32, 3, 160
SIZES = config_lib.TransformerConfig(
  vocab_size=OWN,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
  tied_head=False,
  max_positions=200,
)
# Ids go through a permutation; the drafter lacks the verifier's tokens 3 and 4.
MAPPED = np.random.default_rng(0).permutation(VOCAB)
MAPPED[np.isin(MAPPED, (3, 4))] = id_map.MASKED
TEXT = np.random.default_rng(1).integers(0, VOCAB, (2, ROOM))


def drafter(prefix='full', shifted=False, gamma=GAMMA, **options):
  model = model_lib.MaskedLM(SIZES, MASK, shifted, prefix)
  chain = strategies.Chain(keep_q=True)
  return masked_lm.MaskedLMDrafter(model, gamma, chain, **options)


def params():
  rng = np.random.default_rng(2)
  flat = {}
  for name, shape in networks.shapes(SIZES).items():
    flat[name] = jnp.asarray(rng.standard_normal(shape), jnp.float32) * 0.5
    if 'norm' in name:
      flat[name] = 1 + 0.2 * flat[name]
  network = params_lib.nest(flat)
  return masked_lm.make_params(drafter().model, network, MAPPED, VOCAB)


def context(length):
  """Returns the texts, of which `length` [B] tokens are committed."""
  length = jnp.asarray(length)
  known = jnp.arange(ROOM) < length[:, None]
  cache = cache_lib.Cache(((jnp.zeros((2, 1, ROOM + 8, 2)),) * 2,))
  return protocols.Context(jnp.where(known, TEXT, 0), length, cache, {}, None)


def law():
  like = jnp.ones(2)
  return types.Sampling(like, jnp.zeros(2, jnp.int32), like)


@functools.cache
def compiled(one):
  noise = sampling_lib.request_noise(0, jnp.arange(2))
  return (
    jax.jit(lambda p, c: one.init(p, c)),
    jax.jit(lambda p, s, c: one.draft(p, s, c, law(), noise, one.buckets[0])),
  )


def drafted(one, lengths, make=compiled):
  """Returns log_q [B, G, V] of drafts after texts of growing lengths."""
  init, draft = make(one)
  p = params()
  state = init(p, context(lengths[0]))
  for length in lengths:
    tree, state = draft(p, state, context(length))
  return np.asarray(tree.log_q[:, 1:])


@jax.jit
def whole(network, tokens, positions, mask):
  model = networks.network(SIZES)
  x, _, _ = model.apply({'params': network}, tokens, positions, mask)
  return model.apply({'params': network}, x[0], method='logits')


def expected(one, length, start=0):
  """Returns the same of one row, by a single pass of the network."""
  p = params()
  model = one.model
  fed = np.asarray(p.feed)[TEXT[0, start:length]]
  tokens = np.concatenate([fed, [MASK] * one.gamma])
  size = len(tokens)
  mask = np.ones((size, size), bool)
  if model.prefix == 'causal':
    mask[: len(fed)] = np.tril(mask)[: len(fed)]

  positions = start + np.arange(size)[None]
  logits = whole(p.network, tokens[None], positions, mask[None])
  first = len(fed) - int(model.shifted)
  logits = np.asarray(logits)[first : first + one.gamma]
  full = np.full((one.gamma, VOCAB), -np.inf, np.float32)
  full[:, np.asarray(p.ids)] = logits[:, np.asarray(p.drafter_ids)]
  return np.asarray(jax.nn.log_softmax(jnp.asarray(full), -1))


def differ(first, second):
  """Returns the largest difference of laws over the same tokens."""
  first, second = np.exp(first), np.exp(second)
  assert ((first > 0) == (second > 0)).all()
  return np.abs(first - second).max()


@pytest.mark.parametrize('prefix', model_lib.PREFIXES)
@pytest.mark.parametrize('shifted', [False, True])
def test_a_draft_is_one_pass_over_text_and_masks(prefix, shifted):
  one = drafter(prefix, shifted)
  got = drafted(one, [[9, 17]])[0]
  assert differ(got, expected(one, 9)) < 5e-5
  # Negative controls: the other alignment, the other attention.
  for other in (
    drafter(prefix, not shifted),
    drafter('full' if prefix == 'causal' else 'causal', shifted),
  ):
    assert differ(got, expected(other, 9)) > 1e-3


@pytest.mark.parametrize(
  'lengths',
  [
    [[3, 2], [5, 6], [9, 7], [10, 11]],  # shorter than a window at first
    [[5, 9], [100, 74]],  # what others committed meanwhile, in two chunks
    [[150, 3]],  # a prompt of three chunks beside a short one
  ],
)
def test_kept_keys_are_those_of_the_text(lengths):
  one = drafter('causal', shifted=True)
  got = drafted(one, lengths)
  assert differ(got, drafted(one, lengths[-1:])) < 5e-5
  assert differ(got[0], expected(one, lengths[-1][0])) < 5e-5


def test_keys_that_were_not_read_are_noticed(monkeypatch):
  """Negative control: a draft that catches up with nothing."""
  one = drafter('causal', shifted=True)
  monkeypatch.setattr(
    masked_lm.MaskedLMDrafter, '_catch_up', lambda self, p, state, c: state
  )
  got = drafted(one, [[5, 9], [100, 74]], compiled.__wrapped__)
  assert differ(got[0], expected(one, 100)) > 1e-3


def test_arms_of_other_lengths_share_a_state():
  """As those of `adaptive` do: the state is of one, the draft of another."""
  large = drafter('causal', gamma=6, largest=6)
  small = dataclasses.replace(large, gamma=2)

  @jax.jit
  def run(p):
    noise = sampling_lib.request_noise(0, jnp.arange(2))
    state = large.init(p, context([20, 30]))
    for length in ([20, 30], [27, 37]):  # the large one accepted all
      _, state = large.draft(p, state, context(length), law(), noise, 7)
    tree, after = small.draft(p, state, context([34, 44]), law(), noise, 3)
    return tree, state, after

  tree, state, after = run(params())
  assert differ(np.asarray(tree.log_q[0, 1:]), expected(small, 34)) < 5e-5
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_a_shorter_context_is_that_of_the_last_tokens():
  one = drafter(context_window=6)
  got = drafted(one, [[40, 4]])[0]
  assert differ(got, expected(one, 40, start=34)) < 5e-5
  assert differ(got, expected(one, 40)) > 1e-3
  short = drafted(one, [[5, 4]])[0]
  assert differ(short, expected(one, 5)) < 5e-5


def test_ids_of_both_vocabularies():
  p = params()
  own, ids = np.asarray(p.drafter_ids), np.asarray(p.ids)
  assert set(ids) == set(range(VOCAB)) - {3, 4} and MASK not in own
  np.testing.assert_array_equal(MAPPED[own], ids)
  np.testing.assert_array_equal(np.asarray(p.feed)[ids], own)
  assert p.feed[3] == p.feed[4] == MASK  # unknown words are masks
  # A mask token that the verifier knows too is fed as any other, never drafted.
  model = model_lib.MaskedLM(SIZES, 5, False)
  other = masked_lm.make_params(model, {}, np.arange(OWN), VOCAB)
  assert 5 not in other.drafter_ids and other.feed[5] == 5
  assert other.ids.max() == VOCAB - 1


def test_later_passes_see_what_was_decided():
  """In two passes the first slot decided becomes a point mass."""
  two = drafter(denoising=denoising.Denoising(steps=2))
  assert two.proposal == 'unknown' and drafter().proposal == 'deterministic'
  law = np.exp(drafted(two, [[9, 17]])[0])
  once = np.exp(drafted(drafter(), [[9, 17]])[0])
  sure = law.max(-1) == 1
  assert sure.sum() == 2  # of 3 slots, after the first of two passes
  np.testing.assert_array_equal(law[sure].argmax(-1), once[sure].argmax(-1))
  assert np.abs(law[~sure] - once[~sure]).max() > 1e-3


def test_a_text_longer_than_the_drafter_knows_is_refused():
  one = drafter(gamma=41)  # of 160 tokens, with 200 positions
  with pytest.raises(errors.InputError, match='201 positions, .* for 200'):
    one.init(params(), context([3, 3]))
