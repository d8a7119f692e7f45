"""Drafts made token by token: with their own layers, or the verifier's."""

import dataclasses
import functools

import causal_logits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import early_exit
from specdiff_jax.drafters import family
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import drafter as autoregressive
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer
from specdiff_jax.models import views
from specdiff_jax.verifiers import causal

VOCAB, ROWS, BUFFER, ROOM, GAMMA = 40, 2, 30, 36, 4
VERIFIER = config_lib.TransformerConfig(
    vocab_size=VOCAB, width=16, layers=3, heads=2, kv_heads=1, head_dim=8,
    mlp_width=24, tied_head=False,
)  # fmt: skip
STRATEGY = causal.CausalVerifier(transformer.Transformer(VERIFIER))
CONFIG = causal_network.CausalConfig((0, 2), 25, VERIFIER)
IDS = np.random.default_rng(0).permutation(VOCAB)[: CONFIG.vocab]


@functools.cache
def verifier():
  """Returns params whose text depends on more than its last token."""
  one = jnp.zeros((1, 1), jnp.int32)
  network = transformer.Transformer(VERIFIER)
  with jax.ensure_compile_time_eval():
    params = network.init(jax.random.key(3), one, one, one[None] == 0)
    return jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params['params'])


@functools.cache
def own_params():
  with jax.ensure_compile_time_eval():  # also when first asked for under jit
    network = causal_network.initial_from_verifier(CONFIG, None, verifier())
    head = verifier()['head'][IDS]
    return family.DrafterParams(network, jnp.asarray(IDS), head)


def context(tokens, length, cache=None):
  if cache is None:
    cache = cache_lib.empty(VERIFIER, ROWS, ROOM, 'float32')
  return protocols.Context(
    jnp.asarray(tokens), jnp.asarray(length), cache, verifier(), STRATEGY
  )


def law(temperature=0.0):
  return types.Sampling(
    jnp.full(ROWS, temperature, jnp.float32),
    jnp.zeros(ROWS, jnp.int32),
    jnp.ones(ROWS),
  )


def noise(seed=0):
  return sampling_lib.request_noise(seed, jnp.array([4, 9]))


def texts(seed=1):
  return np.random.default_rng(seed).integers(0, VOCAB, (ROWS, BUFFER))


@functools.cache
def continued(n_layers=None):
  """Returns (text, length) -> the greedy continuation, all read afresh."""

  @jax.jit
  def laws(tokens):
    if n_layers is None:
      return causal_logits.next_logits(
          CONFIG, own_params().network, verifier()['embed'],
          own_params().head, tokens,
      )  # fmt: skip
    c = dataclasses.replace(VERIFIER, layers=n_layers)
    names = [f'layer_{i}' for i in range(n_layers)]
    params = {n: verifier()[n] for n in [*names, 'embed', 'final_norm', 'head']}
    index = jnp.arange(BUFFER)
    hidden, _, _ = transformer.Transformer(c).apply(
        {'params': params}, tokens, jnp.broadcast_to(index, tokens.shape),
        views.causal_mask(jnp.full(ROWS, BUFFER), BUFFER),
    )  # fmt: skip
    return layers_lib.dense(hidden, params['head'])

  ids = IDS if n_layers is None else np.arange(VOCAB)

  def run(tokens, length):
    tokens = tokens.copy()
    for j in range(GAMMA):
      place = length + j
      logits = np.asarray(laws(tokens))[np.arange(ROWS), place - 1]
      tokens[np.arange(ROWS), place] = ids[logits.argmax(-1)]
    return np.stack([row[n - 1 : n + GAMMA] for row, n in zip(tokens, length)])

  return run


@functools.cache
def compiled(drafter):
  return (
    jax.jit(lambda context: drafter.init(own_params(), context)),
    jax.jit(
      lambda state, context: drafter.draft(
        own_params(), state, context, law(), noise(), GAMMA + 1
      )
    ),
  )


def drafts(drafter, accepted):
  """Yields (draft, text, length) of cycles that accept so many tokens.

  What is not accepted is replaced by another token, as the verifier does.
  """
  init, draft = compiled(drafter)
  tokens, length = texts(), np.array([7, 3])
  state = init(context(tokens, length))
  for counts in accepted:
    tree, state = draft(state, context(tokens, length))
    yield np.asarray(tree.token), tokens.copy(), length.copy()
    for row, count in enumerate(counts):
      whole = np.asarray(tree.token)[row]
      place = slice(length[row], length[row] + count)
      tokens[row, place] = whole[1 : count + 1]
      wrong = whole[count + 1] if count < GAMMA else whole[1]
      tokens[row, length[row] + count] = (wrong + 1) % VOCAB
    length = length + np.array(counts) + 1


# Nothing, a part, and all of a draft, in either order.
ACCEPTED = ((GAMMA, 0), (0, GAMMA), (2, GAMMA), (GAMMA, 1), (1, 2), (0, 0))


@pytest.mark.parametrize('chunk', [64, 3])
def test_drafts_are_those_of_a_fresh_reading(monkeypatch, chunk):
  monkeypatch.setattr(autoregressive, '_CHUNK', chunk)
  compiled.cache_clear()
  drafter = autoregressive.Autoregressive(CONFIG, GAMMA)
  for got, tokens, length in drafts(drafter, ACCEPTED):
    np.testing.assert_array_equal(got, continued()(tokens, length))


class LastTokenOnly(autoregressive.Autoregressive):
  """Begins a draft with one token: the last drafted one never gets its key."""

  def _read(self, params, context, tokens, start, cache):
    if tokens.shape[1] == 2:
      tokens, start = tokens[:, 1:], start + 1
    return super()._read(params, context, tokens, start, cache)


def test_a_missing_key_is_noticed():
  """Negative control of the test above."""
  drafter = LastTokenOnly(CONFIG, GAMMA)
  same = [
    np.array_equal(got, continued()(tokens, length))
    for got, tokens, length in drafts(drafter, ACCEPTED)
  ]
  assert not all(same)


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('layers', [1, 2])
def test_early_exit_is_the_verifier_cut_short(layers, scan_layers):
  c = dataclasses.replace(VERIFIER, scan_layers=scan_layers)
  params = dict(verifier())
  if scan_layers:
    stack = [params.pop(f'layer_{i}') for i in range(VERIFIER.layers)]
    params['layers'] = jax.tree.map(lambda *x: jnp.stack(x), *stack)
  tokens, length = texts(), np.array([7, 3])
  # The verifier has read all but the last token.
  positions = jnp.broadcast_to(jnp.arange(8), (ROWS, 8))
  mask = views.causal_mask(jnp.asarray(length) - 1, 8)
  _, cache, _ = transformer.Transformer(c).apply(
      {'params': params}, tokens[:, :8], positions,
      jnp.pad(mask, ((0, 0), (0, 0), (0, ROOM - 8))),
      cache_lib.empty(c, ROWS, ROOM, 'float32'),
      jnp.zeros(ROWS, jnp.int32),
  )  # fmt: skip
  drafter = early_exit.EarlyExit(c, layers, GAMMA)
  seen = context(tokens, length, cache).replace(
    params=params,
    verifier=causal.CausalVerifier(transformer.Transformer(c)),
  )
  tree, _ = jax.jit(
    lambda context: drafter.draft((), (), context, law(), noise(), GAMMA + 1)
  )(seen)
  got = np.asarray(tree.token)
  np.testing.assert_array_equal(got, continued(layers)(tokens, length))
  assert (got != continued(3 - layers)(tokens, length)).any()  # the control


def test_log_q_is_the_law_of_each_step():
  chain = strategies.Chain(mode='sample', keep_q=True)
  drafter = autoregressive.Autoregressive(CONFIG, GAMMA, chain)
  assert drafter.proposal == 'autoregressive'
  tokens, length = texts(), np.array([7, 3])
  seen = context(tokens, length)

  @jax.jit
  def run(seed):
    state = drafter.init(own_params(), seen)
    keys = sampling_lib.request_noise(seed, jnp.array([4, 9]))
    return drafter.draft(own_params(), state, seen, law(0.7), keys, 5)[0]

  tree = run(5)
  log_q = np.asarray(tree.log_q)
  assert log_q.shape == (ROWS, GAMMA + 1, VOCAB)
  np.testing.assert_allclose(np.exp(log_q[:, 1:]).sum(-1), 1, rtol=1e-5)
  outside = np.setdiff1d(np.arange(VOCAB), IDS)
  assert (log_q[:, 1:, outside] == -np.inf).all()
  for row, n in enumerate(length):
    tokens[row, n - 1 : n + GAMMA] = np.asarray(tree.token)[row]
  logits = causal_logits.next_logits(
      CONFIG, own_params().network, verifier()['embed'], own_params().head,
      jnp.asarray(tokens),
  )  # fmt: skip
  wanted = np.asarray(jax.nn.log_softmax(logits / 0.7))
  for row, n in enumerate(length):
    np.testing.assert_allclose(
      log_q[row, 1:, IDS].T, wanted[row, n - 1 : n + GAMMA - 1], atol=1e-4
    )
  assert (np.asarray(run(6).token) != np.asarray(tree.token)).any()


@pytest.mark.parametrize('mode', ['argmax', 'sample', 'shared_noise'])
def test_modes(mode):
  """At temperature 0 they agree; so hot that only noise speaks they differ."""
  drafter = autoregressive.Autoregressive(
    CONFIG, GAMMA, strategies.Chain(mode=mode)
  )
  expected = 'autoregressive' if mode == 'sample' else 'deterministic'
  assert drafter.proposal == expected
  tokens, length = texts(), np.array([7, 3])
  seen = context(tokens, length)

  @jax.jit
  def run(sampling):
    state = drafter.init(own_params(), seen)
    return drafter.draft(own_params(), state, seen, sampling, noise(), 5)[0]

  greedy = continued()(tokens, length)
  np.testing.assert_array_equal(run(law()).token, greedy)
  hot = np.asarray(run(law(1e6)).token)
  positions = length[:, None] + np.arange(GAMMA)
  g = sampling_lib.gumbel(noise(), jnp.asarray(positions), VOCAB)
  shared = IDS[np.asarray(g)[..., IDS].argmax(-1)]
  assert np.array_equal(hot, greedy) == (mode == 'argmax')
  assert np.array_equal(hot[:, 1:], shared) == (mode == 'shared_noise')
  # One row of each temperature: the cold one is greedy.
  mixed = law().replace(temperature=jnp.array([1e6, 0.0]))
  token = np.asarray(run(mixed).token)
  np.testing.assert_array_equal(token[1], greedy[1])
  np.testing.assert_array_equal(token[0], hot[0])


def test_a_shorter_bucket_is_the_beginning():
  drafter = autoregressive.Autoregressive(CONFIG, GAMMA)
  seen = context(texts(), np.array([7, 3]))
  state = drafter.init(own_params(), seen)
  tree, _ = drafter.draft(own_params(), state, seen, law(), noise(), 3)
  whole = continued()(texts(), np.array([7, 3]))
  np.testing.assert_array_equal(tree.token, whole[:, :3])
