"""Verifiers of other families keep the contract; their drafters begin well.

What a family adds (biases, norms of heads, local layers, learned positions)
must not make a token's logits depend on how many are scored beside it.
"""

import dataclasses

import causal_logits
import contract_systems as systems
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.core import errors
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.drafters import early_exit
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import none
from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks
from specdiff_jax.models import views
from specdiff_jax.verifiers import causal

GAMMA = 3
LLAMA = systems.config()
VERIFIERS = {
    'gemma': dataclasses.replace(
        LLAMA,
        qk_norm=True,
        norm_offset=1.0,
        post_norms=True,
        activation='gelu_tanh',
        embed_scale=24**0.5,
        window=5,
        global_every=2,
        local_rope_base=100.0,
    ),
    'qwen': dataclasses.replace(LLAMA, qkv_bias=True, window=4),
    'gpt2': gpt2.GPT2Config(
        vocab_size=systems.VOCAB, width=24, layers=2, heads=4, mlp_width=40,
        tied_head=False,
    ),
}  # fmt: skip


def verifier(name):
  """Returns random params, their norms near what scales by 1."""
  config, rng, flat = VERIFIERS[name], np.random.default_rng(1), {}
  for ours, shape in networks.shapes(config).items():
    value = rng.standard_normal(shape).astype(np.float32)
    flat[ours] = 0.2 * value
    if ours.endswith('norm'):
      flat[ours] += 1 - getattr(config, 'norm_offset', 0.0)
  return params_lib.nest(flat)


def decoded(name, drafter, rule=accept.SampleAndMatch()):
  """Returns sampled completions."""
  config = VERIFIERS[name]
  return session_lib.Session(
    engine_lib.Engine(
      causal.CausalVerifier(networks.network(config)),
      drafter,
      rule,
      systems.NEW,
    ),
    verifier(name),
    (),
    dataclasses.replace(
      request_lib.Settings(max_new_tokens=systems.NEW), temperature=0.9, seed=3
    ),
    4,
    (systems.BUCKET,),
  ).decode(systems.REQUESTS[:4])


@pytest.mark.parametrize(
  ('name', 'kind'),
  [('gemma', 'exit'), ('qwen', 'exit'), ('gpt2', 'lookup')],
)
def test_output_is_that_of_plain_decoding(name, kind):
  drafter = lookup.PromptLookup(GAMMA)
  if kind == 'exit':
    drafter = early_exit.EarlyExit(VERIFIERS[name], 1, GAMMA)
  want = systems.tokens(decoded(name, none.NoDraft(GAMMA + 1)))
  got = decoded(name, drafter)
  assert systems.tokens(got) == want
  assert len({tuple(tokens) for tokens in want}) == len(want)
  if name == 'qwen':  # negative control: a rule that passes drafts unseen
    lossy = decoded(name, drafter, systems.AcceptFirst())
    assert systems.tokens(lossy) != want


def text_of(name, length=9):
  """Returns a text, the verifier's logits, and its keys of each layer."""
  config = VERIFIERS[name]
  tokens = jax.random.randint(jax.random.key(5), (1, length), 0, systems.VOCAB)
  network, params = networks.network(config), {'params': verifier(name)}
  x, cache, features = network.apply(
    params,
    tokens,
    jnp.arange(length)[None],
    views.causal_mask(jnp.array([length]), length),
    cache_lib.empty(config, 1, length, 'float32'),
    jnp.zeros(1, jnp.int32),
    (0, 1),
  )
  return tokens, network.apply(params, x, method='logits'), cache, features


@pytest.mark.parametrize('name', ['gemma', 'qwen'])
def test_a_causal_drafter_of_all_layers_is_the_verifier(name):
  """With an embedding's scale, biases, windows, and layers in their kinds."""
  config, params = VERIFIERS[name], verifier(name)
  sizes = causal_network.CausalConfig((0, 1), systems.VOCAB, config)
  own = causal_network.initial_from_verifier(sizes, jax.random.key(0), params)
  tokens, want, _, _ = text_of(name)
  got = causal_logits.next_logits(
    sizes, own, params['embed'], params['head'], tokens
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  # Negative control: other layers, hence another kind of each, are not.
  turned = dataclasses.replace(sizes, start=(1, 0))
  got = causal_logits.next_logits(
    turned, own, params['embed'], params['head'], tokens
  )
  assert name == 'qwen' or np.abs(got - want).max() > 0.01


@pytest.mark.parametrize('name', ['gemma', 'qwen'])
def test_a_diffusion_drafter_starts_with_the_verifiers_keys(name):
  _, _, cache, features = text_of(name)
  width = VERIFIERS[name].width
  sizes = drafter_network.DrafterConfig(
    GAMMA, 1, (0, 1), 24, systems.VOCAB, 2, VERIFIERS[name]
  )
  own = drafter_network.initial_from_verifier(
    sizes, jax.random.key(0), verifier(name)
  )
  own['fuse'] = jnp.eye(width, 2 * width)  # the first feature alone
  ((keys, values),) = drafter_network.DrafterNetwork(sizes).apply(
    {'params': own}, features, jnp.arange(9)[None], method='context'
  )
  np.testing.assert_allclose(keys, cache.layers[1][0], atol=1e-4)
  np.testing.assert_allclose(values, cache.layers[1][1], atol=1e-4)
  assert np.abs(keys - cache.layers[0][0]).max() > 0.01  # negative control


def test_drafters_of_layers_refuse_a_verifier_without_them():
  config = VERIFIERS['gpt2']
  for make in (
    lambda: early_exit.EarlyExit(config, 1, GAMMA),
    lambda: causal_network.CausalConfig((0,), 8, config),
    lambda: drafter_network.DrafterConfig(GAMMA, 1, (0,), 8, 8, 2, config),
  ):
    with pytest.raises(errors.InputError, match='another network .GPT2Config'):
      make()
