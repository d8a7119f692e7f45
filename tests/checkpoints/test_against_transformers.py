"""Logits and chat text equal those of `transformers` on the same weights."""

import dataclasses

import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import whole_text

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import weights


@pytest.fixture(scope='module', autouse=True)
def transformers():
  """The library, imported where tests run and not where they are collected."""
  pytest.importorskip('torch')
  return pytest.importorskip('transformers')


_TOLERANCE = 2e-3
_PROMPTS = (
  'Natalia sold clips to 48 of her friends in April, and then she sold half '
  'as many clips in May. How many clips did she sell altogether?',
  'What is the capital of France?',
  'def fibonacci(n):\n  """Returns the nth number."""\n',
)

# Beginnings, and how plain decoding goes on from them: 70 tokens.
_CONTINUED = {
    'smollm2': (
        ('The three primary colors are',
         ' the primary colors of the RGB color model: red, blue, and green. '
         'These colors are fundamental to the RGB color model and are used to '
         'create all other colors in the RGB color model.\n\nThe RGB color '
         'model is based on the additive color model, where each color is '
         'created by combining three primary colors: red, blue, and green'),
        ('A heron waited among the reeds; nothing moved for a long while, and',
         " then he was gone.\n\nThe old man's eyes lit up with a mix of "
         "excitement and trepidation as he watched the ship's crew. He had "
         'been a hero, and now he was about to make a choice that would change '
         "the course of their journey. The old man's voice took on a somber "
         'tone, and he spoke'),
    ),
    'gemma': (
        ('Once upon a time, in a village by the sea, there lived',
         ' a man named John. He was a very kind and gentle man, and he loved '
         'his family very much. One day, John was walking along the beach when '
         'he saw a beautiful woman. She was wearing a beautiful dress, and she '
         'was very beautiful. John was very happy to see her, and he was very '
         'happy to see her. He was'),
        ('To make bread you need',
         ':\n\n* 1/2 cup of flour\n* 1/2 cup of sugar\n* 1/2 cup of milk\n'
         '* 1/2 cup of water\n* 1/2 cup of salt\n* 1/2 cup of butter\n'
         '* 1/2 cup of eggs\n* 1/2'),
    ),
}  # fmt: skip


def largest_difference(ours_TxV, theirs_TxV):
  """Checks the argmax wherever the margin decides it."""
  ours_TxV = np.asarray(ours_TxV)
  difference = float(np.abs(ours_TxV - theirs_TxV).max())
  first, second = np.sort(theirs_TxV, axis=-1)[:, -1:-3:-1].T
  clear = first - second > 2 * _TOLERANCE
  assert clear.any()
  same = ours_TxV.argmax(-1) == theirs_TxV.argmax(-1)
  assert difference > _TOLERANCE or same[clear].all()
  return difference


def test_tiny_untied_model_with_grouped_queries(tiny):
  config, params, _ = tiny
  ids = np.random.default_rng(1).integers(0, config.vocab_size, 40).tolist()
  model = hf_reference.to_transformers(config, params)
  expected = whole_text.their_logits(model, ids)
  got = whole_text.logits(config, params, ids)
  assert largest_difference(got, expected) <= 1e-4


@pytest.mark.parametrize(
  'change', [{'rope_base': 4000.0}, {'norm_eps': 1e-2}, {'tied_head': True}]
)
def test_a_wrong_config_is_noticed(tiny, change):
  """The negative control: logits differ when one number is wrong."""
  config, params, _ = tiny
  ids = np.random.default_rng(1).integers(0, config.vocab_size, 40).tolist()
  model = hf_reference.to_transformers(config, params)
  expected = whole_text.their_logits(model, ids)
  got = whole_text.logits(dataclasses.replace(config, **change), params, ids)
  assert np.abs(got - expected).max() > 1e-4


@pytest.mark.parametrize('current', [True, False])
def test_transformers_reads_what_ours_reads(
  tiny, tmp_path, current, transformers
):
  """The directory of the tests is one that `transformers` takes as its own."""
  config, params, tokenizer = tiny
  path = str(tmp_path)
  hf_reference.write_directory(path, config, params, tokenizer, current)
  ids = tokenizer.encode('Both read this.')
  model = transformers.LlamaForCausalLM.from_pretrained(path).eval()
  loaded = weights.load(path, 'float32')
  got = whole_text.logits(loaded.config, loaded.params, ids)
  assert largest_difference(got, whole_text.their_logits(model, ids)) <= 1e-4


def test_a_directory_that_transformers_writes(tiny, tmp_path):
  """save_pretrained, sharded by transformers itself, loads the same."""
  config, params, tokenizer = tiny
  path = str(tmp_path)
  model = hf_reference.to_transformers(config, params)
  model.save_pretrained(path, max_shard_size='30KB')
  tokenizer.backend.save(str(tmp_path / 'tokenizer.json'))
  assert (tmp_path / 'model.safetensors.index.json').exists()
  loaded = weights.load(path, 'float32')
  assert loaded.config == config
  assert loaded.fingerprint == params_lib.fingerprint(config, params)


@pytest.mark.needs_quickstart
@pytest.mark.slow
def test_smollm2_logits(smollm2):
  model = hf_reference.to_transformers(smollm2.config, smollm2.params)
  worst = 0.0
  for prompt in _PROMPTS:
    ids = smollm2.tokenizer.encode_prompt(prompt, chat=True)
    got = whole_text.logits(smollm2.config, smollm2.params, ids)
    expected = whole_text.their_logits(model, ids)
    worst = max(worst, largest_difference(got, expected))
  print(f'largest difference of logits: {worst:.2e}')
  assert worst <= _TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    pytest.param('smollm2', marks=pytest.mark.needs_quickstart),
    pytest.param('gemma', marks=pytest.mark.needs_gemma),
])  # fmt: skip
def test_greedy_tokens_and_perplexity(request, name):
  """Both choose the same 64 tokens and more; the text costs the same."""
  model = request.getfixturevalue(name)
  params = jax.tree.map(jnp.asarray, model.params)
  other = hf_reference.to_transformers(model.config, model.params)
  for begin, continued in _CONTINUED[name]:
    start = len(model.tokenizer.encode(begin))
    ids = np.array(model.tokenizer.encode(begin + continued)[: start + 64])
    ours = whole_text.compiled_logits(model.config, params, ids, 80)
    theirs = whole_text.their_logits(other, ids)
    for logits_TxV in (ours, theirs):
      choices = logits_TxV[start - 1 : -1].argmax(-1)
      np.testing.assert_array_equal(choices, ids[start:])
    cost = whole_text.perplexity(theirs, ids)
    assert whole_text.perplexity(ours, ids) == pytest.approx(cost, rel=1e-3)
    # The negative control: logits that are 1 % too large.
    wrong = whole_text.perplexity(1.01 * ours, ids)
    assert wrong != pytest.approx(cost, rel=1e-3)


@pytest.mark.needs_quickstart
def test_smollm2_chat_and_ids(smollm2, tmp_path, transformers):
  """Ids of a chat prompt equal apply_chat_template's."""
  backend = smollm2.tokenizer.backend
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token='<|im_start|>',
    eos_token='<|im_end|>',
    chat_template=smollm2.tokenizer.chat_template,
  )
  for prompt in _PROMPTS:
    expected = fast.apply_chat_template(
      [{'role': 'user', 'content': prompt}],
      add_generation_prompt=True,
      tokenize=False,
    )
    assert smollm2.tokenizer.render_chat(prompt) == expected
    ids = smollm2.tokenizer.encode_prompt(prompt, chat=True)
    assert ids == fast(expected, add_special_tokens=False)['input_ids']
