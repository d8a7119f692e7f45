"""Rivals: what is asked of them, and what is said where they are missing."""

import dataclasses
import sys
import types

import causal_logits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
import whole_text

from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.drafters.autoregressive import network as autoregressive
from specdiff_jax.tools.bench import rival

tiny = tiny_model.tiny  # a fixture

CHECKPOINT = types.SimpleNamespace(
  tokenizer=types.SimpleNamespace(end_ids=(9,))
)


class Llama:
  """Counts up from the last token, as long as it is asked."""

  def __init__(self, file, n_ctx, draft_model=None, **settings):
    if file != 'm.gguf':
      raise ValueError('no such model')
    assert n_ctx == 64
    self.fresh = False

  def reset(self):
    self.fresh = True

  def generate(self, tokens, temp):
    assert temp == 0 and self.fresh  # nothing is left of the prompt before
    self.fresh = False
    while True:
      tokens = [tokens[-1] + 1]
      yield tokens[0]


@pytest.fixture
def installed(monkeypatch):
  speculative = types.SimpleNamespace(LlamaPromptLookupDecoding=dict)
  module = types.SimpleNamespace(Llama=Llama, llama_speculative=speculative)
  monkeypatch.setitem(sys.modules, 'llama_cpp', module)
  monkeypatch.setattr(rival.importlib.metadata, 'version', lambda name: '1.2')


def test_llama_cpp_stops_at_an_end_and_at_the_limit(installed):
  ways, version = rival.rivals('llama_cpp', CHECKPOINT, 'm.gguf', 4, 64)
  assert version == '1.2' and list(ways) == ['llama_cpp', 'llama_cpp lookup']
  requests = [
    request_lib.Request(0, [3, 1]),
    request_lib.Request(1, [7]),
  ]
  for one in ways.values():
    one.warm_up(requests)
    clock = request_lib.Clock()
    done = one.calibrated(requests).decode(requests, clock=clock)
    assert [c.tokens.tolist() for c in done] == [[2, 3, 4, 5], [8, 9]]
    assert [c.emitted for c in done] == [3, 1] and clock.prefill > 0


def test_llama_cpp_wants_a_gguf_file(installed):
  with pytest.raises(errors.InputError, match='gguf'):
    rival.rivals('llama_cpp', CHECKPOINT, '', 4, 64)
  with pytest.raises(errors.InputError, match='no such model'):
    rival.rivals('llama_cpp', CHECKPOINT, 'other.gguf', 4, 64)


@pytest.mark.parametrize('name', rival.NAMES)
def test_what_is_missing_says_how_to_get_it(name, monkeypatch):
  def missing(package):
    raise rival.importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(rival.importlib.metadata, 'version', missing)
  with pytest.raises(errors.InputError, match='pip install'):
    rival.rivals(name, CHECKPOINT, 'm.gguf', 4, 64)


def test_an_assistant_is_the_drafter(tiny):
  pytest.importorskip('transformers')
  verifier, params, _ = tiny
  config = autoregressive.CausalConfig((1, 0), 256, verifier)
  own = autoregressive.initial_from_verifier(config, jax.random.key(0), params)
  model = rival.to_assistant(verifier, params, rival.Assistant(config, own, 4))
  ids = np.arange(3, 43) * 7 % verifier.vocab_size
  logits = causal_logits.next_logits(
    config, own, params['embed'], params['head'], jnp.asarray(ids)[None]
  )
  theirs = whole_text.their_logits(model, ids)
  np.testing.assert_allclose(logits[0], theirs, atol=1e-5)
  # Layers in another order are another drafter.
  other = dataclasses.replace(config, start=(0, 1))
  own = autoregressive.initial_from_verifier(other, jax.random.key(0), params)
  model = rival.to_assistant(verifier, params, rival.Assistant(other, own, 4))
  assert np.abs(logits[0] - whole_text.their_logits(model, ids)).max() > 1e-3


def test_unknown_rivals_are_named():
  rival.check(rival.NAMES)
  with pytest.raises(
    errors.InputError, match="'vllm'.*transformers, llama_cpp"
  ):
    rival.check(['transformers', 'vllm'])
