"""Tensors of a GGUF file, dequantised block by block as they are read."""

from collections.abc import Iterator
import dataclasses
import math

import gguf
from gguf import quants
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.gguf import header as gguf_io
from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib

_BLOCK = 1 << 23  # values that are dequantised at once
_LAYER_NAMES = {
  'attn_norm.weight': 'attention_norm',
  'attn_q.weight': 'query',
  'attn_k.weight': 'key',
  'attn_v.weight': 'value',
  'attn_q.bias': 'query_bias',
  'attn_k.bias': 'key_bias',
  'attn_v.bias': 'value_bias',
  'attn_q_norm.weight': 'query_norm',
  'attn_k_norm.weight': 'key_norm',
  'attn_output.weight': 'output',
  'post_attention_norm.weight': 'attention_post_norm',
  'ffn_norm.weight': 'mlp_norm',
  'ffn_gate.weight': 'gate',
  'ffn_up.weight': 'up',
  'ffn_down.weight': 'down',
  'post_ffw_norm.weight': 'mlp_post_norm',
}
FACTORS = 'rope_freqs.weight'  # read with the config
_OTHER_NAMES = {
  'token_embd.weight': 'embed',
  'output_norm.weight': 'final_norm',
  'output.weight': 'head',
  FACTORS: params_lib.SPARE + FACTORS,
}


@dataclasses.dataclass(frozen=True)
class Quantised:
  """A tensor in the file, float32 once read; a `stored.Tensor`.

  All formats that the gguf package dequantises are read; InputError tells the
  others. Quantised blocks lie along the last dimension.
  """

  path: str
  name: str
  info: gguf_io.TensorInfo
  dtype = np.dtype(np.float32)

  @property
  def shape(self):
    return self.info.shape

  def blocks(self, first=0, last=None):
    if len(self.shape) < 2:
      yield first, self._rows(0, 1).reshape(self.shape)[first:last]
      return
    inner = math.prod(self.shape[1:-1])
    last = self.shape[0] if last is None else last
    step = max(1, _BLOCK // max(1, math.prod(self.shape[1:])))
    for start in range(first, last, step):
      stop = min(start + step, last)
      rows = self._rows(start * inner, stop * inner)
      yield start, rows.reshape(stop - start, *self.shape[1:])

  def sample(self, stride):
    size = math.prod(self.shape)
    row, column = np.divmod(np.arange(0, size, stride), self.shape[-1])
    wanted, which = np.unique(row, return_inverse=True)
    return self._rows(wanted)[which, column]

  def _rows(self, first, last=None) -> np.ndarray:
    """Returns float32 rows first..last, or those of an array of numbers."""
    kind = self.info.kind
    block, size = gguf.GGML_QUANT_SIZES[kind]
    row_bytes = (self.shape[-1] if self.shape else 1) // block * size
    with gguf_io.open_mapped(self.path) as data:
      packed = np.frombuffer(
        data, np.uint8, self.info.nbytes, self.info.offset
      ).reshape(-1, row_bytes)
      # Copied, since the file is closed below.
      packed = packed[first if last is None else slice(first, last)].copy()
    if kind == gguf.GGMLQuantizationType.F32:
      return packed.view('<f4')
    try:
      return np.asarray(quants.dequantize(packed, kind), np.float32)
    except NotImplementedError as e:
      raise errors.InputError(
        f'{self.path}: tensor {self.name!r} is stored as {kind.name}, which '
        'the installed gguf package cannot dequantise; convert the model to '
        'Q8_0 or F16.'
      ) from e


def unpermute(array: np.ndarray, heads: int) -> np.ndarray:
  """Undoes the order of rows that llama.cpp gives to Q and K.

  Its RoPE turns neighbouring pairs, ours the two halves, so it stores row i of
  each half side by side: for head_dim 4, ours 0 1 2 3 is its 0 2 1 3.
  """
  rows, columns = array.shape
  paired = array.reshape(heads, rows // heads // 2, 2, columns)
  return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows, columns)


def _unpermuted(tensor: Quantised, heads: int) -> stored.Deferred:
  """Returns Q or K of a llama file, its rows in our order."""
  return stored.Deferred(
    tensor.shape, tensor.dtype, lambda: unpermute(stored.read(tensor), heads)
  )


def iterate_tensors(
  header: gguf_io.Header, config: config_lib.TransformerConfig
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, name in the file, float32 tensor), nothing read yet.

  Ours are joined by '.', as in 'layer_0.query'; a tensor that our params have
  no place for comes under an empty name.
  """
  heads = {}
  if header.fields['general.architecture'] == 'llama':
    heads = {'query': config.heads, 'key': config.kv_heads}
  for name, info in header.tensors.items():
    ours = _our_name(name)
    tensor = Quantised(header.path, name, info)
    part = ours.rpartition('.')[2]
    if part in heads and len(info.shape) == 2:
      if info.shape[0] % (2 * heads[part]) == 0:
        tensor = _unpermuted(tensor, heads[part])
    yield ours, name, tensor


def _our_name(name: str) -> str:
  if name in _OTHER_NAMES:
    return _OTHER_NAMES[name]
  block, _, rest = name.partition('.')
  number, _, part = rest.partition('.')
  if block == 'blk' and part in _LAYER_NAMES and number.isdecimal():
    if number == str(int(number)):
      return f'layer_{number}.{_LAYER_NAMES[part]}'
  return ''
