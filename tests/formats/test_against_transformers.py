"""Logits and chat text equal those of `transformers` on the same weights."""

import dataclasses

import hf_reference
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.formats import weights
from specdiff_jax.models import transformer
from specdiff_jax.models import views

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_TOLERANCE = 2e-3
_PROMPTS = (
    'Natalia sold clips to 48 of her friends in April, and then she sold half '
    'as many clips in May. How many clips did she sell altogether?',
    'What is the capital of France?',
    'def fibonacci(n):\n  """Returns the nth number."""\n',
)


def ours(config, params, ids):
  """Returns logits [T, V]."""
  model = transformer.Transformer(config)
  tokens = jnp.asarray([ids], jnp.int32)
  positions = jnp.arange(len(ids))[None]
  mask = views.causal_mask(jnp.asarray([len(ids)]), len(ids))
  variables = {'params': params}
  state, _, _ = model.apply(variables, tokens, positions, mask)
  return np.asarray(model.apply(variables, state, method='logits'))[0]


def theirs(model, ids):
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0].float().numpy()


def largest_difference(ours_TxV, theirs_TxV):
  """Checks the argmax wherever the margin decides it."""
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
  expected = theirs(hf_reference.to_transformers(config, params), ids)
  got = ours(config, params, ids)
  assert largest_difference(got, expected) <= 1e-4


@pytest.mark.parametrize(
    'change', [{'rope_base': 4000.0}, {'norm_eps': 1e-2}, {'tied_head': True}]
)
def test_a_wrong_config_is_noticed(tiny, change):
  """The negative control: logits differ when one number is wrong."""
  config, params, _ = tiny
  ids = np.random.default_rng(1).integers(0, config.vocab_size, 40).tolist()
  expected = theirs(hf_reference.to_transformers(config, params), ids)
  got = ours(dataclasses.replace(config, **change), params, ids)
  assert np.abs(got - expected).max() > 1e-4


@pytest.mark.parametrize('current', [True, False])
def test_transformers_reads_what_ours_reads(tiny, tmp_path, current):
  """The directory of the tests is one that `transformers` takes as its own."""
  config, params, tokenizer = tiny
  path = str(tmp_path)
  hf_reference.write_directory(path, config, params, tokenizer, current)
  ids = tokenizer.encode('Both read this.')
  model = transformers.LlamaForCausalLM.from_pretrained(path).eval()
  loaded = weights.load(path, 'float32')
  got = ours(loaded.config, loaded.params, ids)
  assert largest_difference(got, theirs(model, ids)) <= 1e-4


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
  assert loaded.fingerprint == weights.fingerprint(config, params)


@pytest.mark.needs_quickstart
@pytest.mark.slow
def test_smollm2_logits(smollm2):
  model = hf_reference.to_transformers(smollm2.config, smollm2.params)
  worst = 0.0
  for prompt in _PROMPTS:
    ids = smollm2.tokenizer.encode_prompt(prompt, chat=True)
    got = ours(smollm2.config, smollm2.params, ids)
    worst = max(worst, largest_difference(got, theirs(model, ids)))
  print(f'largest difference of logits: {worst:.2e}')
  assert worst <= _TOLERANCE


@pytest.mark.needs_quickstart
def test_smollm2_chat_and_ids(smollm2, tmp_path):
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
