"""Published sizes have the number of parameters that was published."""

import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.core import errors

# As the model cards state them, which count tied embeddings once.
COUNTS = {
  'llama2_7b': 6_738_415_616,
  'llama2_13b': 13_015_864_320,
  'llama2_70b': 68_976_648_192,
  'llama3_8b': 8_030_261_248,
  'llama3.1_8b': 8_030_261_248,
  'llama3.1_70b': 70_553_706_496,
  'llama3.2_1b': 1_235_814_400,
  'llama3.2_3b': 3_212_749_824,
  'smollm2_135m': 134_515_008,
  'smollm2_360m': 361_821_120,
  'smollm2_1.7b': 1_711_376_384,
  'mistral_7b': 7_241_732_096,
  'qwen2.5_0.5b': 494_032_768,
  'qwen2.5_1.5b': 1_543_714_304,
  'qwen2.5_7b': 7_615_616_512,
  'qwen2.5_14b': 14_770_033_664,
  'qwen2.5_32b': 32_763_876_352,
  'qwen2.5_72b': 72_706_203_648,
  'qwen3_0.6b': 596_049_920,
  'qwen3_1.7b': 1_720_574_976,
  'qwen3_4b': 4_022_468_096,
  'qwen3_8b': 8_190_735_360,
  'qwen3_14b': 14_768_307_200,
  'qwen3_32b': 32_762_123_264,
  'gemma3_270m': 268_098_176,
  'gemma3_1b': 999_885_952,
  'gpt2': 124_439_808,
  'dream_7b': 7_615_616_512,
  'diffullama_7b': 6_738_415_616,
  'llada_8b': 8_015_581_184,
}
FAMILIES = {
    'llama': 'LlamaForCausalLM', 'smollm': 'LlamaForCausalLM',
    'mistral': 'MistralForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM', 'gemma3': 'Gemma3ForCausalLM',
    'gpt2': 'GPT2LMHeadModel', 'dream': 'Qwen2ForCausalLM',
    'diffullama': 'LlamaForCausalLM', 'llada': 'LlamaForCausalLM',
}  # fmt: skip


def test_counts():
  found = {n: presets.parameters(c) for n, c in presets.PUBLISHED.items()}
  assert found == COUNTS


def test_families():
  """Each has the features of its family, all of which a file can say."""
  for name, config in presets.PUBLISHED.items():
    (family,) = [f for start, f in FAMILIES.items() if name.startswith(start)]
    raw = families.hf_config(config)
    assert raw['architectures'] == [family], name
    assert families.config_of(family, name, raw) == config, name


def test_an_unknown_one():
  with pytest.raises(errors.InputError, match='llama9.*there are: llama2_7b'):
    presets.published('llama9')
