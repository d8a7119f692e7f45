"""Directories of Hugging Face, written from our params, for tests."""

import json
import os

from specdiff_jax.bench import rival
from specdiff_jax.models import safetensors_io

tensors = rival.tensors
config_json = rival.config_json
to_transformers = rival.to_transformers


def write_directory(path, config, params, tokenizer, current=True, shards=1):
  """Writes a directory that both `transformers` and ours can read."""
  os.makedirs(path, exist_ok=True)
  write_json(path, 'config.json', config_json(config, current))
  write_json(path, 'tokenizer_config.json', {})
  tokenizer.backend.save(os.path.join(path, 'tokenizer.json'))
  flat = list(tensors(params).items())
  if shards == 1:
    save(os.path.join(path, 'model.safetensors'), dict(flat))
    return
  weight_map = {}
  for i in range(shards):
    name = f'model-{i + 1:05}-of-{shards:05}.safetensors'
    part = dict(flat[i::shards])
    save(os.path.join(path, name), part)
    weight_map |= dict.fromkeys(part, name)
  write_json(
      path, 'model.safetensors.index.json', {'weight_map': weight_map}
  )


def save(path, flat):
  """Writes tensors under names that hold dots of their own."""
  safetensors_io.save(path, flat, {'format': 'pt'})


def write_json(folder, name, value):
  with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
    json.dump(value, file)
