"""Gemma 3 270M as published: what `transformers` makes of the same file.

The numbers written here are those of transformers 5.23 in float32, reading the
same GGUF; `python tests/programs/fetch_gemma.py` puts it on the disk.
"""

import dataclasses
import json

import hf_reference
import numpy as np
import pytest
import whole_text

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
_WINDOW = 512
_NEGATIVE_LOG_LIKELIHOOD = 3.427847  # of a token of _TEXT, on average


def logits(checkpoint, ids, size=64, **changes):
  """Returns [T, V] of ids; all texts of a size share one program."""
  config = dataclasses.replace(checkpoint.config, **changes)
  return whole_text.compiled_logits(config, checkpoint.params, ids, size)


def test_greedy_tokens_and_perplexity(gemma):
  ids = gemma.tokenizer.encode(_PROMPT)
  assert ids == _PROMPT_IDS
  scores = logits(gemma, ids + _GREEDY)
  np.testing.assert_array_equal(scores[len(ids) - 1 : -1].argmax(-1), _GREEDY)
  text = gemma.tokenizer.encode(_TEXT)
  assert gemma.tokenizer.decode(text) == _TEXT
  found = whole_text.losses(logits(gemma, text), text).mean()
  assert found == pytest.approx(_NEGATIVE_LOG_LIKELIHOOD, abs=5e-4)
  # The negative control: without the local layers' own rotary base.
  wrong = logits(gemma, text, local_rope_base=0.0)
  other = whole_text.losses(wrong, text).mean()
  assert abs(other - _NEGATIVE_LOG_LIKELIHOOD) > 0.01


@pytest.mark.slow
def test_a_text_longer_than_the_window(gemma, root):
  """Past position 512 local layers no longer see where the text begins."""
  lines = [
      line for name in ('quickstart', 'tiny')
      for line in (root / f'configs/prompts/{name}.jsonl').open()
  ]  # fmt: skip
  text = ' '.join(json.loads(line)['prompt'] for line in lines)
  ids = np.array(gemma.tokenizer.encode(text)[:700])
  assert len(ids) == 700
  model = hf_reference.to_transformers(gemma.config, gemma.params)
  theirs = whole_text.losses(whole_text.their_logits(model, ids), ids)
  off = whole_text.losses(logits(gemma, ids, 700), ids) - theirs
  assert np.abs(off).max() < 1e-3
  near, far = slice(0, _WINDOW - 1), slice(_WINDOW - 1, None)
  for part in (near, far):
    assert abs(np.expm1(off[part].mean())) < 1e-4  # of the perplexity
  # The negative control: local layers that see everything.
  wrong = logits(gemma, ids, 700, window=700)
  off = whole_text.losses(wrong, ids) - theirs
  assert abs(np.expm1(off[near].mean())) < 1e-4
  assert np.expm1(off[far].mean()) > 1


def test_what_the_file_says(gemma):
  c = gemma.config
  assert (c.layers, c.width, c.heads, c.kv_heads) == (18, 640, 4, 1)
  assert (c.head_dim, c.mlp_width, c.vocab_size) == (256, 2048, 262144)
  assert (c.window, c.global_every) == (_WINDOW, 6)
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
