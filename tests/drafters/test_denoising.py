"""Windows filled in several passes, and contexts that are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import prefilled
import pytest

from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising
from specdiff_jax.drafters import family
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters.diffusion import drafter as diffusion
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import transformer
from specdiff_jax.verifiers import causal

# Slot 2 is the surest, then 0, 3 and 1, by their most likely token; by
# entropy 0 goes before 2.
LAWS = np.array(
  [
    [0.70, 0.30, 0.00, 0.00],
    [0.25, 0.25, 0.26, 0.24],
    [0.10, 0.10, 0.71, 0.09],
    [0.20, 0.20, 0.20, 0.40],
  ]
)


class Recorder:
  """A network that remembers what it was shown."""

  def __init__(self):
    self.calls = []

  def __call__(self, decided, index):
    self.calls.append(
      None if decided is None else (np.asarray(decided), np.asarray(index))
    )
    # Each pass likes another token where nothing is decided.
    laws = np.roll(LAWS, len(self.calls) - 1, axis=1)
    return marginals_lib.Marginals(
      logits=jnp.log(jnp.asarray(laws)[None] + 1e-9),
      ids=jnp.arange(4),
      root=jnp.zeros(1, jnp.int32),
      length=jnp.ones(1, jnp.int32),
      vocab_size=4,
    )


def denoised(one, run):
  """Returns the final marginals of passes that take each slot's argmax."""
  marginals = revealed = None
  for step in range(one.steps):
    if step:
      choice = jnp.argmax(marginals.logits, axis=-1)
      revealed = one.reveal(step, marginals, choice, revealed)
    marginals = run(*(revealed or (None, None)))
  return one.settled(marginals, revealed)


def test_one_step_is_one_pass():
  run = Recorder()
  final = denoised(denoising.Denoising(), run)
  assert run.calls == [None]
  np.testing.assert_allclose(np.exp(final.logits[0]), LAWS, atol=1e-6)


@pytest.mark.parametrize(
  'order, first', [('confidence', (2, 0)), ('entropy', (0, 2))]
)
def test_the_surest_slots_are_decided_first(order, first):
  run = Recorder()
  final = denoised(denoising.Denoising(steps=4, order=order), run)
  shown = [call[0][0] for call in run.calls[1:]]
  assert [mask.sum() for mask in shown] == [1, 2, 3]
  assert shown[0][first[0]] and shown[1][first[1]]
  for before, after in zip(shown, shown[1:]):
    assert (after | ~before).all()  # what is decided stays
  # A slot keeps the token of the pass that decided it: a point mass.
  log_q = np.asarray(jax.nn.log_softmax(final.logits[0]))
  decided, index = shown[-1], run.calls[-1][1][0]
  for slot in np.flatnonzero(decided):
    assert log_q[slot, index[slot]] == 0
  assert index[first[0]] == LAWS[first[0]].argmax()
  assert np.isfinite(log_q[~decided]).all()


def test_a_random_order_is_of_the_text_alone():
  orders = set()
  for length in range(8):
    m = Recorder()(None, None)
    m = m.replace(length=jnp.full(1, length))
    one = denoising.Denoising(steps=4, order='random')
    choice = jnp.argmax(m.logits, axis=-1)
    shown = np.asarray(one.reveal(1, m, choice, None).decided)
    again = one.reveal(1, m.replace(logits=-m.logits), choice, None).decided
    np.testing.assert_array_equal(shown, again)
    orders.add(int(shown[0].argmax()))
  assert len(orders) > 2


def test_remasking_changes_what_was_decided():
  run = Recorder()
  final = denoised(denoising.Denoising(steps=3, remask=True), run)
  (_, first), (_, second) = run.calls[1:]
  assert (first != second).all()
  assert np.isfinite(final.logits).all()  # no point masses
  # Negative control: without it the decided ones stay.
  run = Recorder()
  denoised(denoising.Denoising(steps=3), run)
  (decided, first), (_, second) = run.calls[1:]
  np.testing.assert_array_equal(first[decided], second[decided])


SIZE, BATCH = 24, 2


@pytest.fixture(scope='module')
def drafter():
  """Returns draft(features, **options) -> DraftTree of a random network."""
  verifier = config_lib.TransformerConfig(
    vocab_size=50,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=24,
  )
  config = drafter_network.DrafterConfig(
    gamma=4,
    layers=1,
    features=(1,),
    trunk=8,
    vocab=50,
    ngram=2,
    verifier=verifier,
  )
  rng = np.random.default_rng(0)
  network = jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
    config.shapes(),
  )
  head = rng.standard_normal((50, 16)).astype(np.float32)
  params = family.DrafterParams(network, jnp.arange(50), jnp.asarray(head))
  cache = cache_lib.Cache(((jnp.zeros((BATCH, 1, SIZE, 8)),) * 2,))
  context = protocols.Context(
    jnp.asarray(rng.integers(0, 50, (BATCH, SIZE))),
    jnp.array([20, 12]),
    cache,
    {'embed': jnp.asarray(rng.standard_normal((50, 16)))},
    causal.CausalVerifier(transformer.Transformer(verifier)),
  )
  sampling = types.Sampling(
    jnp.zeros(BATCH), jnp.zeros(BATCH, jnp.int32), jnp.ones(BATCH)
  )
  noise = sampling_lib.request_noise(0, jnp.arange(BATCH))

  def draft(features, **options):
    one = diffusion.MaskedDiffusion(config, 4, **options)

    @jax.jit
    def run(features):
      state = prefilled.prefilled(one, params, context, features)
      return one.draft(params, state, context, sampling, noise, 5)[0]

    return np.asarray(run(features).token), one

  return draft


def features(seed=1):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((BATCH, SIZE, 1, 16)).astype(np.float32)


def test_a_window_of_context_sees_so_many_tokens(drafter):
  whole, _ = drafter(features())
  wide, _ = drafter(features(), context_window=SIZE - 1)
  np.testing.assert_array_equal(whole, wide)
  other = features()
  other[0, : 20 - 1 - 6] = features(2)[0, : 20 - 1 - 6]  # older than 6 tokens
  other[1, : 12 - 1 - 6] = features(2)[1, : 12 - 1 - 6]
  near, _ = drafter(features(), context_window=6)
  np.testing.assert_array_equal(near, drafter(other, context_window=6)[0])
  # Negative controls: the whole context and a longer window see them.
  assert (drafter(other)[0] != whole).any()
  assert (near != whole).any()


def test_several_passes_draft_otherwise_and_say_so(drafter):
  once, one = drafter(features())
  several, two = drafter(features(), denoising=denoising.Denoising(3))
  assert (one.proposal, two.proposal) == ('deterministic', 'unknown')
  assert (once != several).any()
  np.testing.assert_array_equal(once[:, 0], several[:, 0])
