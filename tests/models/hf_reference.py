"""Our params in the form of Hugging Face: for tests, and for a rival's timing.

`to_transformers(config, params)` makes the model that
`transformers.LlamaForCausalLM.generate` is timed with.
"""

import dataclasses
import json
import os

import numpy as np

from specdiff_jax.models import huggingface
from specdiff_jax.models import params as params_lib
from specdiff_jax.models import safetensors_io

_THEIRS = {ours: theirs for theirs, ours in huggingface.LAYER_NAMES.items()}
_OTHERS = {ours: theirs for theirs, ours in huggingface.OTHER_NAMES.items()}


def tensor_name(ours: str) -> str:
  """Returns 'model.layers.0.mlp.up_proj.weight' for 'layer_0.up'."""
  if ours in _OTHERS:
    return _OTHERS[ours]
  layer, part = ours.split('.')
  number = layer.removeprefix('layer_')
  return f'model.layers.{number}.{_THEIRS[part]}.weight'


def tensors(params) -> dict[str, np.ndarray]:
  """Returns name -> array, as model.safetensors holds them."""
  return {tensor_name(n): x for n, x in params_lib.flatten(params)}


def config_json(config, current: bool = True) -> dict:
  """Returns config.json, in the current or the older spelling."""
  raw = {
      'architectures': ['LlamaForCausalLM'],
      'model_type': 'llama',
      'hidden_act': 'silu',
      'vocab_size': config.vocab_size,
      'hidden_size': config.width,
      'num_hidden_layers': config.layers,
      'num_attention_heads': config.heads,
      'num_key_value_heads': config.kv_heads,
      'head_dim': config.head_dim,
      'intermediate_size': config.mlp_width,
      'rms_norm_eps': config.norm_eps,
      'tie_word_embeddings': config.tied_head,
      'max_position_embeddings': config.max_positions,
  }
  rope = {'rope_theta': config.rope_base, 'rope_type': 'default'}
  if current:
    return raw | {'rope_parameters': rope, 'dtype': 'float32'}
  older = {'rope_theta': config.rope_base, 'rope_scaling': None}
  return raw | older | {'torch_dtype': 'float32'}


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


def to_transformers(config, params):
  """Returns a `LlamaForCausalLM` in eval mode with these params and dtype.

  params: numpy (or jax) arrays, float32 or bfloat16, unrolled layers.
  """
  import torch  # optional
  import transformers  # optional

  raw = config_json(
      dataclasses.replace(config, scan_layers=False),
      current=int(transformers.__version__.split('.')[0]) >= 5,
  )
  settings = transformers.LlamaConfig(
      **{k: v for k, v in raw.items() if 'dtype' not in k}
  )
  state = {n: _to_torch(torch, x) for n, x in tensors(params).items()}
  with torch.device('meta'):  # its own random weights would take seconds
    model = transformers.LlamaForCausalLM(settings)
  model.load_state_dict(state, assign=True, strict=False)
  model.tie_weights()
  # What is no parameter (the table of rotary frequencies) is made anew.
  model.model.rotary_emb = type(model.model.rotary_emb)(settings)
  left = [n for n, p in model.named_parameters() if p.is_meta]
  if left or model.get_input_embeddings().weight.shape[0] != config.vocab_size:
    raise ValueError(f'parameters without a value: {left}')
  return model.eval()


def _to_torch(torch, array):
  array = np.array(array)  # a copy: torch wants to own writable memory
  if array.dtype.name == 'bfloat16':
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(array)
