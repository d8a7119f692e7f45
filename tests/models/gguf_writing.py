"""Writes a small GGUF file as llama.cpp's converter does."""

import gguf
from gguf import quants
import numpy as np

from specdiff_jax.models import params as params_lib

_THEIRS = {
    'attention_norm': 'attn_norm',
    'query': 'attn_q',
    'key': 'attn_k',
    'value': 'attn_v',
    'output': 'attn_output',
    'mlp_norm': 'ffn_norm',
    'gate': 'ffn_gate',
    'up': 'ffn_up',
    'down': 'ffn_down',
    'embed': 'token_embd',
    'final_norm': 'output_norm',
    'head': 'output',
}
F32 = gguf.GGMLQuantizationType.F32


def permute(array, heads):
  """Orders the rows of Q or K as the converter of llama.cpp does."""
  rows, columns = array.shape
  halves = array.reshape(heads, 2, rows // heads // 2, columns)
  return halves.swapaxes(1, 2).reshape(rows, columns)


def metadata(config, tokenizer, template=None):
  """Returns the fields, key -> value, of a byte-level vocabulary."""
  names = tokenizer.backend.get_vocab()
  tokens = sorted(names, key=names.get)
  kinds = [1] * 256 + [3] * (len(tokens) - 256)
  fields = {
      'llama.block_count': config.layers,
      'llama.context_length': config.max_positions,
      'llama.embedding_length': config.width,
      'llama.feed_forward_length': config.mlp_width,
      'llama.attention.head_count': config.heads,
      'llama.attention.head_count_kv': config.kv_heads,
      'llama.attention.key_length': config.head_dim,
      'llama.attention.value_length': config.head_dim,
      'llama.rope.dimension_count': config.head_dim,
      'llama.rope.freq_base': config.rope_base,
      'llama.attention.layer_norm_rms_epsilon': config.norm_eps,
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.pre': 'smollm',
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.token_type': kinds,
      'tokenizer.ggml.merges': ['a b'],
      'tokenizer.ggml.eos_token_id': 256,
      'tokenizer.ggml.add_bos_token': False,
  }
  # 'a b' makes the token 'ab', which takes the last id.
  fields['tokenizer.ggml.tokens'][-1] = 'ab'
  kinds[-1] = 1
  if template:
    fields['tokenizer.chat_template'] = template
  return fields


def tensors(config, params):
  """Returns name -> array in the file's order of rows."""
  table = {}
  for name, array in params_lib.flatten(params):
    layer, _, part = name.rpartition('.')
    if part in ('query', 'key'):
      heads = config.heads if part == 'query' else config.kv_heads
      array = permute(array, heads)
    prefix = f'blk.{layer.removeprefix("layer_")}.' if layer else ''
    table[f'{prefix}{_THEIRS[part]}.weight'] = array
  return table


def write(path, fields, arrays, kind=F32, architecture='llama'):
  """Writes the file; matrices are stored as `kind`, vectors as F32."""
  writer = gguf.GGUFWriter(str(path), architecture)
  for key, value in fields.items():
    add(writer, key, value)
  for name, array in arrays.items():
    if array.ndim < 2 or kind == F32:
      writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    else:
      writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


def add(writer, key, value):
  kinds = {bool: 'bool', int: 'uint32', float: 'float32', str: 'string'}
  name = 'array' if isinstance(value, list) else kinds[type(value)]
  getattr(writer, f'add_{name}')(key, value)
