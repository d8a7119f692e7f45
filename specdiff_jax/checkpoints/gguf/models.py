"""Sizes of the model in a GGUF file.

Four architectures as llama.cpp's converter writes them: llama (Llama, Mistral,
SmolLM2), qwen2, qwen3 and gemma3.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.gguf import header as gguf_io
from specdiff_jax.checkpoints.gguf import tensors
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib

# What an architecture has that Llama has not. The norms of a gemma3 file
# include the 1 that the model adds to them, so norm_offset stays 0.
_ARCHITECTURES = {
    'llama': {},
    'qwen2': {'qkv_bias': True},
    'qwen3': {'qk_norm': True},
    'gemma3': {
        'qk_norm': True, 'post_norms': True, 'activation': 'gelu_tanh'
    },
}  # fmt: skip
# llama.cpp's own, where the metadata of a gemma3 file are silent.
_GEMMA3_LOCAL_BASE, _GEMMA3_GLOBAL_EVERY = 1e4, 6
_GEMMA3_27B_LAYERS = 62
_REFUSED = {
  'expert_count': 'a mixture of experts',
  'attn_logit_softcapping': 'a cap on attention scores',
  'final_logit_softcapping': 'a cap on logits',
}
# What is read of the keys under an architecture's name, or is of no account to
# the network. Any other may change it, and is refused unless it is 0 or empty.
_KNOWN = frozenset({
    'vocab_size', 'context_length', 'embedding_length', 'block_count',
    'feed_forward_length', 'attention.head_count', 'attention.head_count_kv',
    'attention.key_length', 'attention.value_length',
    'attention.key_length_swa', 'attention.value_length_swa',
    'attention.layer_norm_rms_epsilon', 'attention.sliding_window',
    'attention.sliding_window_pattern', 'attention.causal', 'attention.scale',
    'rope.dimension_count', 'rope.dimension_count_swa', 'rope.freq_base',
    'rope.freq_base_swa', 'rope.scale_linear', 'rope.scaling.type',
    'rope.scaling.factor', 'rope.scaling.original_context_length',
    'rope.scaling.finetuned', 'rope.scaling.attn_factor',
    'tensor_data_layout', 'expert_used_count', 'pooling_type',
})  # fmt: skip
_PICTURES = ('vision.', 'mm.')  # what text never goes through


def read_config(header: gguf_io.Header) -> config_lib.TransformerConfig:
  """Returns the sizes that the metadata state; InputError on others."""
  more = dict(_ARCHITECTURES[_architecture(header)])
  heads, width = (
    _size(header, key) for key in ('attention.head_count', 'embedding_length')
  )
  head_dim = _size(header, 'attention.key_length', width // max(heads, 1))
  _check_heads(header, head_dim)
  tokens = header.fields.get('tokenizer.ggml.tokens')
  count = len(tokens) if isinstance(tokens, list) else 0
  base = float(_get(header, 'rope.freq_base', 10000.0))
  more |= _windows(header)
  if 'post_norms' in more:  # gemma3
    more['embed_scale'] = float(width) ** 0.5
    if _get(header, 'block_count') == _GEMMA3_27B_LAYERS and heads:
      more['query_scale'] = (width / heads) ** -0.5
  with errors.naming(header.path):
    return config_lib.TransformerConfig(
      vocab_size=_size(header, 'vocab_size', count or None),
      width=width,
      layers=_size(header, 'block_count'),
      heads=heads,
      kv_heads=_size(header, 'attention.head_count_kv', heads),
      head_dim=head_dim,
      mlp_width=_size(header, 'feed_forward_length'),
      rope_base=base,
      norm_eps=float(_get(header, 'attention.layer_norm_rms_epsilon')),
      tied_head='output.weight' not in header.tensors,
      max_positions=_size(header, 'context_length'),
      rope_scaling=_rope_scaling(header, base, head_dim),
      **more,
    )


def _architecture(header: gguf_io.Header) -> str:
  """Returns the architecture; InputError where it is of another form."""
  kind = header.fields.get('general.architecture')
  if not isinstance(kind, str) or kind not in _ARCHITECTURES:
    raise errors.InputError(
      f'{header.path}: general.architecture is {printing.short(kind)}, which '
      f'is not known here; known: {", ".join(_ARCHITECTURES)}. Take the '
      'Hugging Face directory of this model, or another model.'
    )
  parts = header.fields.get('split.count', 1)
  if parts not in (0, 1):
    raise errors.InputError(
      f'{header.path}: this is one of {printing.short(parts)} parts of a '
      'model; join them '
      'with `llama-gguf-split --merge`, and give the whole file.'
    )
  for key, what in _REFUSED.items():
    value = header.fields.get(f'{kind}.{key}', 0)
    if value:
      raise errors.InputError(
        f'{header.path}: {what} ({kind}.{key}={printing.short(value)}) is '
        'not supported; take another model.'
      )
  for key, value in header.fields.items():
    part = key.removeprefix(f'{kind}.')
    if part == key or part in _KNOWN or value in (0, '', []):
      continue
    if part.startswith(_PICTURES):
      continue
    raise errors.InputError(
      f'{header.path}: {printing.short(key)} is {printing.short(value)}, '
      'which may change the network and is not known here; take the Hugging '
      'Face directory of this model, or another model.'
    )
  return kind


def _check_heads(header: gguf_io.Header, head_dim: int) -> None:
  """Raises InputError for attention that ours cannot do."""
  for key in (
      'rope.dimension_count', 'rope.dimension_count_swa',
      'attention.value_length', 'attention.value_length_swa',
      'attention.key_length_swa',
  ):  # fmt: skip
    if _get(header, key, head_dim) != head_dim:
      raise errors.InputError(
        f'{header.path}: {_full(header, key)}={_get(header, key)}, but a '
        f'head has {head_dim} dimensions; models whose heads are rotated in '
        'part, or whose values are narrower, are not supported. Take another '
        'model.'
      )
  causal = header.fields.get(_full(header, 'attention.causal'), True)
  scale = _get(header, 'attention.scale', 0)
  if causal is not True or _get(header, 'rope.scaling.attn_factor', 1) != 1:
    raise errors.InputError(
      f'{header.path}: attention.causal is {printing.short(causal)} and '
      'rope.scaling.attn_factor is '
      f'{_get(header, "rope.scaling.attn_factor", 1)}; only true and 1 are '
      'supported. Take another model.'
    )
  if scale and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
    raise errors.InputError(
      f'{header.path}: {_full(header, "attention.scale")} is {scale}; only '
      f'{head_dim**-0.5}, that of heads of {head_dim} dimensions, is '
      'supported. Take another model.'
    )


def _full(header: gguf_io.Header, key: str) -> str:
  return f'{header.fields["general.architecture"]}.{key}'


def _get(header: gguf_io.Header, key: str, default: Any = None):
  """Returns a number of the metadata under the architecture's name."""
  key = _full(header, key)
  value = header.fields.get(key, default)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.InputError(
      f'{header.path}: {key} is {printing.short(value)} in the metadata, '
      'where one number is expected; convert the model again with a current '
      'llama.cpp.'
    )
  return value


def _size(header: gguf_io.Header, key: str, default: Any = None) -> int:
  """Returns a whole number of the metadata, within what any model has."""
  value = _get(header, key, default)
  if not isinstance(value, int) or value < 0:
    raise errors.InputError(
      f'{header.path}: {_full(header, key)} is {value} in the metadata, '
      'where a size is expected; convert the model again with a current '
      'llama.cpp.'
    )
  config_lib.check_bound(header.path, _full(header, key), value)
  return value


def _windows(header: gguf_io.Header) -> dict[str, Any]:
  """Returns what local layers need; nothing where there are none."""
  window = _get(header, 'attention.sliding_window', 0)
  if not window:
    return {}
  if header.fields['general.architecture'] != 'gemma3':
    return {'window': window}
  return {
    'window': window,
    'global_every': _get(
      header, 'attention.sliding_window_pattern', _GEMMA3_GLOBAL_EVERY
    ),
    'local_rope_base': float(
      _get(header, 'rope.freq_base_swa', _GEMMA3_LOCAL_BASE)
    ),
  }


def _rope_scaling(
  header: gguf_io.Header, base: float, head_dim: int
) -> config_lib.RopeScaling | None:
  """Returns the scaling that the metadata or the tensor of factors state.

  As llama.cpp reads them: linear where no type is told, by a factor that older
  files have under another key; 0 says that there is none.
  """
  key = 'rope.scaling.type'
  kind = header.fields.get(_full(header, key))
  if kind not in (None, 'none', 'linear'):
    raise errors.InputError(
      f'{header.path}: this model scales its rotary positions '
      f"({_full(header, key)} is {printing.short(kind)}); 'linear' is "
      'supported, and the factors of Llama 3.1. Take another model.'
    )
  factor, older = (
    float(_get(header, key, 0) or 0)
    for key in ('rope.scaling.factor', 'rope.scale_linear')
  )
  if factor and older and factor != older:
    raise errors.InputError(
      f'{header.path}: {_full(header, "rope.scaling.factor")} is {factor}, '
      f'but {_full(header, "rope.scale_linear")}, its older spelling, is '
      f'{older}; convert the model again with a current llama.cpp.'
    )
  factor = factor or older
  if kind == 'linear' and not factor:
    factor = float(_get(header, 'rope.scaling.factor'))
  scales = kind != 'none' and factor not in (0.0, 1.0)
  if tensors.FACTORS in header.tensors:
    if scales:
      raise errors.InputError(
        f'{header.path}: the rotary positions are scaled by {factor} and by '
        f'{tensors.FACTORS} as well, which is not supported; take another model.'
      )
    return _llama3_scaling(header, base, head_dim)
  return config_lib.RopeScaling('linear', factor) if scales else None


def _llama3_scaling(
  header: gguf_io.Header, base: float, head_dim: int
) -> config_lib.RopeScaling:
  """Returns the scaling of which the file only keeps the divisors.

  The converter divides frequency i by factor i. All Llama 3.x models differ in
  the greatest factor alone, so that one is read off and all are compared.
  """
  info = header.tensors[tensors.FACTORS]
  frequencies = base ** -(jnp.arange(0, head_dim, 2) / head_dim)
  factors = np.ones(1)  # of another form than any model's
  if info.shape == frequencies.shape:
    tensor = tensors.Quantised(header.path, tensors.FACTORS, info)
    factors = stored.read(tensor)
  scaling = config_lib.RopeScaling('llama3', float(factors.max()))
  expected = frequencies / layers_lib.scaled(frequencies, scaling)
  if factors.shape != expected.shape or not np.allclose(
    factors, expected, rtol=1e-5, atol=0
  ):
    raise errors.InputError(
      f'{header.path}: the factors of {tensors.FACTORS} are not those of a Llama '
      f'3.x model (low {scaling.low}, high {scaling.high}, original length '
      f'{scaling.original}), which alone are supported; take the Hugging '
      'Face directory of this model.'
    )
  return scaling
