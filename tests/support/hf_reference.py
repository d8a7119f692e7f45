"""Directories of Hugging Face, written from our params, for tests."""

import json
import os

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.tools.bench import rival

to_transformers = rival.to_transformers


def tensors(config, params):
  """Returns name -> array, as model.safetensors holds them."""
  names = hf_names.names(config)
  return {
    names[ours]: hf_names.as_stored(config, ours, array)
    for ours, array in params_lib.flatten(params)
  }


def config_json(config, current=True):
  """Returns config.json, in the current or the older spelling."""
  raw = families.hf_config(config)
  if current:
    left_out, dtype = ('rope_theta', 'rope_scaling'), {'dtype': 'float32'}
  else:
    left_out, dtype = ('rope_parameters',), {'torch_dtype': 'float32'}
  return {k: v for k, v in raw.items() if k not in left_out} | dtype


def write_directory(path, config, params, tokenizer, current=True, shards=1):
  """Writes a directory that both `transformers` and ours can read."""
  os.makedirs(path, exist_ok=True)
  write_json(path, 'config.json', config_json(config, current))
  write_json(path, 'tokenizer_config.json', {})
  tokenizer.backend.save(os.path.join(path, 'tokenizer.json'))
  flat = list(tensors(config, params).items())
  if shards == 1:
    save(os.path.join(path, 'model.safetensors'), dict(flat))
    return
  weight_map = {}
  for i in range(shards):
    name = f'model-{i + 1:05}-of-{shards:05}.safetensors'
    part = dict(flat[i::shards])
    save(os.path.join(path, name), part)
    weight_map |= dict.fromkeys(part, name)
  write_json(path, 'model.safetensors.index.json', {'weight_map': weight_map})


def save(path, flat):
  """Writes tensors under names that hold dots of their own."""
  safetensors_io.save(path, flat, {'format': 'pt'})


def write_json(folder, name, value):
  with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
    json.dump(value, file)
