"""Llama-type weights out of a GGUF file: sizes, names, dequantising."""

from typing import Any, Iterator

import gguf
from gguf import quants
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gguf_io

_LAYER_NAMES = {
    'attn_norm': 'attention_norm',
    'attn_q': 'query',
    'attn_k': 'key',
    'attn_v': 'value',
    'attn_output': 'output',
    'ffn_norm': 'mlp_norm',
    'ffn_gate': 'gate',
    'ffn_up': 'up',
    'ffn_down': 'down',
}
_OTHER_NAMES = {
    'token_embd.weight': 'embed',
    'output_norm.weight': 'final_norm',
    'output.weight': 'head',
}


def read_config(header: gguf_io.Header) -> config_lib.TransformerConfig:
  """Returns the sizes that the metadata state."""
  _check_supported(header)
  heads = _get(header, 'attention.head_count')
  width = _get(header, 'embedding_length')
  head_dim = _get(header, 'attention.key_length', width // max(heads, 1))
  for key in ('rope.dimension_count', 'attention.value_length'):
    if _get(header, key, head_dim) != head_dim:
      raise errors.InputError(
          f'{header.path}: llama.{key}={_get(header, key)}, but a head has '
          f'{head_dim} dimensions; models whose heads are rotated in part, or '
          'whose values are narrower, are not supported. Take another model.'
      )
  tokens = header.fields.get('tokenizer.ggml.tokens', ())
  sizes = dict(
      vocab_size=_get(header, 'vocab_size', len(tokens) or None),
      width=width,
      layers=_get(header, 'block_count'),
      heads=heads,
      kv_heads=_get(header, 'attention.head_count_kv', heads),
      head_dim=head_dim,
      mlp_width=_get(header, 'feed_forward_length'),
      rope_base=float(_get(header, 'rope.freq_base', 10000.0)),
      norm_eps=float(_get(header, 'attention.layer_norm_rms_epsilon')),
      tied_head='output.weight' not in header.tensors,
      max_positions=_get(header, 'context_length'),
  )
  try:
    return config_lib.TransformerConfig(**sizes)
  except errors.InputError as e:
    raise errors.InputError(f'{header.path}: {e}') from e


def _check_supported(header: gguf_io.Header) -> None:
  """Raises InputError for models of another form."""
  kind = header.fields.get('general.architecture')
  if kind != 'llama':
    raise errors.InputError(
        f'{header.path}: general.architecture is {kind!r}, which is not known '
        "here; known: 'llama' (Llama, SmolLM2 and models of the same form)."
    )
  scaling = header.fields.get('llama.rope.scaling.type', 'none')
  tensor = 'rope_freqs.weight' in header.tensors
  if scaling != 'none' or tensor:
    raise errors.InputError(
        f'{header.path}: this model scales its rotary positions (llama.rope.'
        f'scaling.type is {scaling!r}, tensor rope_freqs.weight is '
        f'{"present" if tensor else "absent"}), which is not supported; take '
        'a model without RoPE scaling.'
    )
  experts = header.fields.get('llama.expert_count', 0)
  if experts:
    raise errors.InputError(
        f'{header.path}: a mixture of experts (llama.expert_count={experts}) '
        'is not supported; take a dense model.'
    )


def _get(header: gguf_io.Header, key: str, default: Any = None):
  """Returns a number of the metadata under 'llama.'."""
  value = header.fields.get(f'llama.{key}', default)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.InputError(
        f'{header.path}: llama.{key} is {value!r} in the metadata, where a '
        'number is expected; convert the model again with a current llama.cpp.'
    )
  return value


def iterate_tensors(
    header: gguf_io.Header, config: config_lib.TransformerConfig
) -> Iterator[tuple[str, str, np.ndarray]]:
  """Yields (our name, name in the file, float32 array), one tensor at a time.

  Ours are joined by '.', as in 'layer_0.query'; a tensor that our params have
  no place for comes under an empty name.
  """
  heads = {'query': config.heads, 'key': config.kv_heads}
  with gguf_io.open_mapped(header.path) as data:
    for name, info in header.tensors.items():
      ours = _our_name(name)
      raw = data[info.offset : info.offset + info.nbytes]
      array = _dequantise(header.path, name, info, raw)
      part = ours.rpartition('.')[2]
      if part in heads and array.ndim == 2 and len(array) % heads[part] == 0:
        array = unpermute(array, heads[part])
      yield ours, name, array


def _our_name(name: str) -> str:
  if name in _OTHER_NAMES:
    return _OTHER_NAMES[name]
  parts = name.split('.')
  if len(parts) == 4 and parts[0] == 'blk' and parts[3] == 'weight':
    if parts[1].isdecimal() and parts[2] in _LAYER_NAMES:
      return f'layer_{int(parts[1])}.{_LAYER_NAMES[parts[2]]}'
  return ''


def _dequantise(
    path: str, name: str, info: gguf_io.TensorInfo, raw: bytes
) -> np.ndarray:
  """Returns a tensor's float32 values."""
  block, size = gguf.GGML_QUANT_SIZES[info.kind]
  if info.kind == gguf.GGMLQuantizationType.F32:
    return np.frombuffer(raw, '<f4').reshape(info.shape)
  rows = np.frombuffer(raw, np.uint8)
  rows = rows.reshape(-1, info.shape[-1] // block * size)
  try:
    array = quants.dequantize(rows, info.kind)
  except NotImplementedError as e:
    raise errors.InputError(
        f'{path}: tensor {name!r} is stored as {info.kind.name}, which the '
        'installed gguf package cannot dequantise; convert the model to Q8_0 '
        'or F16.'
    ) from e
  return np.asarray(array, np.float32).reshape(info.shape)


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
  """Undoes the order of rows that llama.cpp gives to Q and K.

  Its RoPE turns neighbouring pairs, ours the two halves, so it stores row i of
  each half side by side: for head_dim 4, ours 0 1 2 3 is its 0 2 1 3.
  """
  rows, columns = array.shape
  paired = array.reshape(heads, rows // heads // 2, 2, columns)
  return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows, columns)
