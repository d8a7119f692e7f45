"""Gemma 3 270M as published: what `transformers` makes of the same file.

The numbers are those of transformers 5.23 in float32, reading the same GGUF;
`python tests/formats/fetch_gemma.py` puts it on the disk.
"""

import dataclasses

import fetch_gemma
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.formats import weights
from specdiff_jax.models import networks
from specdiff_jax.models import views

pytestmark = pytest.mark.needs_gemma

_PROMPT = 'The three primary colors are'
_PROMPT_IDS = [2, 818, 1806, 5905, 7913, 659]
_GREEDY = [  # where the best token leads by at least 0.028
    2604, 236764, 3730, 236764, 532, 7070, 236761, 108, 818, 5905, 7913, 659,
    2604, 236764, 3730, 236764, 532, 7070, 236761, 108, 818, 5905, 7913, 659,
]  # fmt: skip
_TEXT = (
    'The water of the lake was still, and the mountains stood in it upside '
    'down. A heron waited among the reeds; nothing moved for a long while, and '
    'then, all at once, everything did.'
)
_NEGATIVE_LOG_LIKELIHOOD = 3.427847  # of a token of _TEXT, on average


@pytest.fixture(scope='module')
def gemma():
  """Returns the model in float32, or skips."""
  if not fetch_gemma.PATH.exists():
    pytest.skip('Gemma is not here: python tests/formats/fetch_gemma.py')
  checkpoint = weights.load(str(fetch_gemma.PATH), 'float32')
  params = jax.tree.map(jnp.asarray, checkpoint.params)
  return dataclasses.replace(checkpoint, params=params)


def log_probabilities(checkpoint, ids, size=64):
  """Returns [T, V] of ids, padded so that all texts share one program."""
  tokens = jnp.zeros((1, size), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
  mask = views.causal_mask(jnp.asarray([size]), size)
  out = _run(checkpoint.config)(checkpoint.params, tokens, mask)
  return np.asarray(out[: len(ids)])


def _run(config):
  model = networks.network(config)

  @jax.jit
  def run(params, tokens, mask):
    positions = jnp.arange(tokens.shape[1])[None]
    variables = {'params': params}
    state, _, _ = model.apply(variables, tokens, positions, mask)
    logits = model.apply(variables, state[0], method='logits')
    return jax.nn.log_softmax(logits, axis=-1)

  return run


def test_greedy_tokens_and_perplexity(gemma):
  ids = gemma.tokenizer.encode(_PROMPT)
  assert ids == _PROMPT_IDS
  scores = log_probabilities(gemma, ids + _GREEDY)
  chosen = scores[len(ids) - 1 : -1].argmax(-1)
  np.testing.assert_array_equal(chosen, _GREEDY)
  text = gemma.tokenizer.encode(_TEXT)
  assert gemma.tokenizer.decode(text) == _TEXT
  scores = log_probabilities(gemma, text)
  found = -scores[np.arange(len(text) - 1), text[1:]].mean()
  assert found == pytest.approx(_NEGATIVE_LOG_LIKELIHOOD, abs=5e-4)
  # The negative control: without the local layers' own rotary base.
  wrong = dataclasses.replace(gemma.config, local_rope_base=0.0)
  scores = log_probabilities(dataclasses.replace(gemma, config=wrong), text)
  other = -scores[np.arange(len(text) - 1), text[1:]].mean()
  assert abs(other - _NEGATIVE_LOG_LIKELIHOOD) > 0.01


def test_what_the_file_says(gemma):
  c = gemma.config
  assert (c.layers, c.width, c.heads, c.kv_heads) == (18, 640, 4, 1)
  assert (c.head_dim, c.mlp_width, c.vocab_size) == (256, 2048, 262144)
  assert (c.window, c.global_every) == (512, 6)
  assert (c.rope_base, c.local_rope_base) == (1e6, 1e4)
  assert c.norm_offset == 0 and c.tied_head  # its norms include the 1
  tokenizer = gemma.tokenizer
  assert tokenizer.mask_id == 4
  assert tokenizer.end_ids == (1, 106)
  assert tokenizer.vocab_size == 262144


@pytest.mark.parametrize(
    ('text', 'ids'),
    [
        ('Hello world', [9259, 1902]),
        ('a    b\n\n\n', [236746, 140, 236763, 109]),
        ('  c\t\t', [138, 236755, 255969]),
        (' a', [496]),
        ('<mask>\x00', [4, 238]),
    ],
)
def test_tokens(gemma, text, ids):
  """As sentencepiece makes them of these pieces."""
  assert gemma.tokenizer.encode(text) == [2, *ids]
