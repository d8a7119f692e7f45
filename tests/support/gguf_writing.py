"""Writes a small GGUF file as llama.cpp's converter does."""

import gguf
from gguf import quants
import numpy as np

from specdiff_jax.checkpoints import params as params_lib

_THEIRS = {
  'attention_norm': 'attn_norm.weight',
  'query': 'attn_q.weight',
  'key': 'attn_k.weight',
  'value': 'attn_v.weight',
  'query_bias': 'attn_q.bias',
  'key_bias': 'attn_k.bias',
  'value_bias': 'attn_v.bias',
  'query_norm': 'attn_q_norm.weight',
  'key_norm': 'attn_k_norm.weight',
  'output': 'attn_output.weight',
  'attention_post_norm': 'post_attention_norm.weight',
  'mlp_norm': 'ffn_norm.weight',
  'gate': 'ffn_gate.weight',
  'up': 'ffn_up.weight',
  'down': 'ffn_down.weight',
  'mlp_post_norm': 'post_ffw_norm.weight',
  'embed': 'token_embd.weight',
  'final_norm': 'output_norm.weight',
  'head': 'output.weight',
}
F32 = gguf.GGMLQuantizationType.F32


def permute(array, heads):
  """Orders the rows of Q or K as the converter of llama.cpp does."""
  rows, columns = array.shape
  halves = array.reshape(heads, 2, rows // heads // 2, columns)
  return halves.swapaxes(1, 2).reshape(rows, columns)


def metadata(config, tokenizer, template=None, architecture='llama'):
  """Returns the fields, key -> value, of a byte-level vocabulary."""
  names = tokenizer.backend.get_vocab()
  tokens = sorted(names, key=names.get)
  kinds = [1] * 256 + [3] * (len(tokens) - 256)
  sizes = {
    'block_count': config.layers,
    'context_length': config.max_positions,
    'embedding_length': config.width,
    'feed_forward_length': config.mlp_width,
    'attention.head_count': config.heads,
    'attention.head_count_kv': config.kv_heads,
    'attention.key_length': config.head_dim,
    'attention.value_length': config.head_dim,
    'rope.dimension_count': config.head_dim,
    'rope.freq_base': config.rope_base,
    'attention.layer_norm_rms_epsilon': config.norm_eps,
  }
  if config.window:
    sizes['attention.sliding_window'] = config.window
  fields = {f'{architecture}.{key}': value for key, value in sizes.items()} | {
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


def tensors(config, params, architecture='llama'):
  """Returns name -> array in the file's order of rows."""
  table = {}
  for name, array in params_lib.flatten(params):
    layer, _, part = name.rpartition('.')
    if part in ('query', 'key') and architecture == 'llama':
      heads = config.heads if part == 'query' else config.kv_heads
      array = permute(array, heads)
    prefix = f'blk.{layer.removeprefix("layer_")}.' if layer else ''
    table[f'{prefix}{_THEIRS[part]}'] = array
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
