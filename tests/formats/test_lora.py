"""LoRA adapters, against a merge written here in numpy."""

import json

import gguf_writing
import lora_writing
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.formats import hf_families
from specdiff_jax.formats import params as params_lib
from specdiff_jax.formats import weights

_OF = lora_writing.PREFIX  # followed by the layer

def merge(config, params, flat, scale):
  """Returns W + scale * B A for each adapted W, by our names."""
  theirs = hf_families.names(config)
  merged = {}
  for ours, weight in params_lib.flatten(params):
    name = 'base_model.model.' + theirs[ours].removesuffix('weight')
    merged[ours] = weight
    if name + 'lora_A.weight' in flat:
      down, up = flat[name + 'lora_A.weight'], flat[name + 'lora_B.weight']
      merged[ours] = weight + scale(name) * np.einsum('or,ri->oi', up, down)
  return merged


def compare(loaded, merged):
  got = dict(params_lib.flatten(loaded.params))
  for name, array in merged.items():
    np.testing.assert_allclose(got[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ('settings', 'ranks', 'scale'),
    [
        ({}, None, lambda name: 2.0),
        ({'use_rslora': True}, None, lambda name: 4.0),
        (
            {'rank_pattern': {'down_proj': 2}, 'alpha_pattern': {
                r'layers\.\d+\.mlp\.down_proj': 6}},
            {'mlp.down_proj': 2},
            lambda name: 3.0 if 'down' in name else 2.0,
        ),
    ],
)  # fmt: skip
def test_merged(tiny, directory, tmp_path, settings, ranks, scale):
  config, params, _ = tiny
  adapter = str(tmp_path / 'adapter')
  flat = lora_writing.write(adapter, config, ranks, **settings)
  loaded = weights.load(directory, 'float32', adapter=adapter)
  compare(loaded, merge(config, params, flat, scale))
  plain = weights.load(directory, 'float32')
  assert loaded.fingerprint != plain.fingerprint
  assert adapter in loaded.source
  with pytest.raises(AssertionError):  # the comparison sees a missing adapter
    compare(plain, merge(config, params, flat, scale))


def test_merged_into_a_gguf_file(tiny, tmp_path):
  config, params, tokenizer = tiny
  path = gguf_writing.write(
      tmp_path / 'tiny.gguf',
      gguf_writing.metadata(config, tokenizer),
      gguf_writing.tensors(config, params),
  )
  flat = lora_writing.write(str(tmp_path / 'adapter'), config)
  loaded = weights.load(path, 'float32', adapter=str(tmp_path / 'adapter'))
  compare(loaded, merge(config, params, flat, lambda name: 2.0))


def test_against_peft(tiny, directory, tmp_path):
  peft = pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  config, _, _ = tiny
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, config)
  base = transformers.AutoModelForCausalLM.from_pretrained(directory)
  merged = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
  state = merged.state_dict()
  theirs = hf_families.names(config)
  loaded = weights.load(directory, 'float32', adapter=adapter)
  for ours, array in params_lib.flatten(loaded.params):
    expected = state[theirs[ours]].numpy()
    np.testing.assert_allclose(array, expected, atol=1e-5, err_msg=ours)


def rename(old, new):
  def edit(flat):
    for name in [n for n in flat if old in n]:
      flat[name.replace(old, new)] = flat.pop(name)

  return edit


@pytest.mark.parametrize(
    ('settings', 'edit', 'message'),
    [
        ({'peft_type': 'IA3'}, None, "peft_type is 'IA3'"),
        ({'use_dora': True}, None, 'use_dora is True'),
        ({'bias': 'all'}, None, "bias is 'all'"),
        ({'modules_to_save': ['lm_head']}, None, 'modules_to_save'),
        ({'init_lora_weights': 'pissa'}, None, 'init_lora_weights'),
        ({'lora_alpha': '8'}, None, "lora_alpha is '8'"),
        ({'r': 5}, lambda f: f.update(
            {n: x[:4] if '_A' in n else x[:, :4] for n, x in f.items()}),
         'rank 5'),
        ({'rank_pattern': {'(': 2}}, None, 'not a regular expression'),
        ({}, rename('layers.1.', 'layers.9.'), 'layers.9.*adapts no matrix'),
        ({}, rename('q_proj', 'qkv_proj'), 'qkv_proj.*adapts no matrix'),
        ({}, rename('lora_A', 'lora_embedding_A'), 'adapts no matrix'),
        ({}, lambda f: f.pop(_OF + '0.mlp.down_proj.lora_A.weight'),
         'only lora_B'),
        ({}, lambda f: f.clear() or f.update(
            {_OF + '0.mlp.down_proj.lora_A.weight': np.ones((4, 9), 'f4'),
             _OF + '0.mlp.down_proj.lora_B.weight': np.ones((32, 4), 'f4')}),
         r"down_proj.weight' as a matrix of shape \(32, 9\)"),
        ({}, lambda f: f.clear(), 'no tensors'),
    ],
)  # fmt: skip
def test_refused(tiny, directory, tmp_path, settings, edit, message):
  adapter = str(tmp_path / 'adapter')
  lora_writing.write(adapter, tiny[0], edit=edit, **settings)
  with pytest.raises(errors.InputError, match=message):
    weights.load(directory, 'float32', adapter=adapter)


def test_a_pickle_is_refused(tiny, directory, tmp_path):
  adapter = tmp_path / 'adapter'
  lora_writing.write(str(adapter), tiny[0])
  file = adapter / 'adapter_model.safetensors'
  file.rename(adapter / 'adapter_model.bin')
  with pytest.raises(errors.InputError, match='pickle'):
    weights.load(directory, 'float32', adapter=str(adapter))
  (adapter / 'adapter_config.json').write_text(json.dumps([]))
  with pytest.raises(errors.InputError, match='JSON list'):
    weights.load(directory, 'float32', adapter=str(adapter))
