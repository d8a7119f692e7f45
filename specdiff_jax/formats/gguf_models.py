"""Models out of a GGUF file: sizes, names, dequantising.

Four architectures as llama.cpp's converter writes them: llama (Llama, Mistral,
SmolLM2), qwen2, qwen3 and gemma3.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.formats import gguf_io
from specdiff_jax.formats import gguf_tensors
from specdiff_jax.formats import params as params_lib
from specdiff_jax.formats import stored
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
_FACTORS = 'rope_freqs.weight'  # read with the config
_OTHER_NAMES = {
    'token_embd.weight': 'embed',
    'output_norm.weight': 'final_norm',
    'output.weight': 'head',
    _FACTORS: params_lib.SPARE + _FACTORS,
}
# llama.cpp's own, where the metadata of a gemma3 file are silent.
_GEMMA3_LOCAL_BASE, _GEMMA3_GLOBAL_EVERY = 1e4, 6
_GEMMA3_27B_LAYERS = 62
_REFUSED = {
    'expert_count': 'a mixture of experts',
    'attn_logit_softcapping': 'a cap on attention scores',
    'final_logit_softcapping': 'a cap on logits',
}


def read_config(header: gguf_io.Header) -> config_lib.TransformerConfig:
  """Returns the sizes that the metadata state; InputError on others."""
  more = dict(_ARCHITECTURES[_architecture(header)])
  heads = _get(header, 'attention.head_count')
  width = _get(header, 'embedding_length')
  head_dim = _get(header, 'attention.key_length', width // max(heads, 1))
  for key in ('rope.dimension_count', 'attention.value_length'):
    if _get(header, key, head_dim) != head_dim:
      raise errors.InputError(
          f'{header.path}: {_full(header, key)}={_get(header, key)}, but a '
          f'head has {head_dim} dimensions; models whose heads are rotated in '
          'part, or whose values are narrower, are not supported. Take another '
          'model.'
      )
  tokens = header.fields.get('tokenizer.ggml.tokens', ())
  base = float(_get(header, 'rope.freq_base', 10000.0))
  more |= _windows(header)
  if 'post_norms' in more:  # gemma3
    more['embed_scale'] = float(width) ** 0.5
    if _get(header, 'block_count') == _GEMMA3_27B_LAYERS:
      more['query_scale'] = (width / heads) ** -0.5
  try:
    return config_lib.TransformerConfig(
        vocab_size=_get(header, 'vocab_size', len(tokens) or None),
        width=width,
        layers=_get(header, 'block_count'),
        heads=heads,
        kv_heads=_get(header, 'attention.head_count_kv', heads),
        head_dim=head_dim,
        mlp_width=_get(header, 'feed_forward_length'),
        rope_base=base,
        norm_eps=float(_get(header, 'attention.layer_norm_rms_epsilon')),
        tied_head='output.weight' not in header.tensors,
        max_positions=_get(header, 'context_length'),
        rope_scaling=_rope_scaling(header, base, head_dim),
        **more,
    )
  except errors.InputError as e:
    if str(e).startswith(header.path):
      raise
    raise errors.InputError(f'{header.path}: {e}') from e


def _architecture(header: gguf_io.Header) -> str:
  """Returns the architecture; InputError where it is of another form."""
  kind = header.fields.get('general.architecture')
  if kind not in _ARCHITECTURES:
    raise errors.InputError(
        f'{header.path}: general.architecture is {kind!r}, which is not known '
        f'here; known: {", ".join(_ARCHITECTURES)}. Take the Hugging Face '
        'directory of this model, or another model.'
    )
  parts = header.fields.get('split.count', 1)
  if parts not in (0, 1):
    raise errors.InputError(
        f'{header.path}: this is one of {parts} parts of a model; join them '
        'with `llama-gguf-split --merge`, and give the whole file.'
    )
  for key, what in _REFUSED.items():
    value = header.fields.get(f'{kind}.{key}', 0)
    if value:
      raise errors.InputError(
          f'{header.path}: {what} ({kind}.{key}={value}) is not supported; '
          'take another model.'
      )
  return kind


def _full(header: gguf_io.Header, key: str) -> str:
  return f'{header.fields["general.architecture"]}.{key}'


def _get(header: gguf_io.Header, key: str, default: Any = None):
  """Returns a number of the metadata under the architecture's name."""
  key = _full(header, key)
  value = header.fields.get(key, default)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.InputError(
        f'{header.path}: {key} is {value!r} in the metadata, where one number '
        'is expected; convert the model again with a current llama.cpp.'
    )
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
  """Returns the scaling that the metadata or the tensor of factors state."""
  kind = header.fields.get(_full(header, 'rope.scaling.type'), 'none')
  if kind not in ('none', 'linear'):
    raise errors.InputError(
        f'{header.path}: this model scales its rotary positions '
        f"({_full(header, 'rope.scaling.type')} is {kind!r}); 'linear' is "
        'supported, and the factors of Llama 3.1. Take another model.'
    )
  if _FACTORS in header.tensors:
    return _llama3_scaling(header, base, head_dim)
  if kind == 'none':
    return None
  factor = float(_get(header, 'rope.scaling.factor'))
  return config_lib.RopeScaling('linear', factor)


def _llama3_scaling(
    header: gguf_io.Header, base: float, head_dim: int
) -> config_lib.RopeScaling:
  """Returns the scaling of which the file only keeps the divisors.

  The converter divides frequency i by factor i. All Llama 3.x models differ in
  the greatest factor alone, so that one is read off and all are compared.
  """
  info = header.tensors[_FACTORS]
  tensor = gguf_tensors.Quantised(header.path, _FACTORS, info)
  factors = stored.read(tensor)
  frequencies = base ** -(jnp.arange(0, head_dim, 2) / head_dim)
  scaling = config_lib.RopeScaling('llama3', float(factors.max(initial=0)))
  expected = frequencies / layers_lib.scaled(frequencies, scaling)
  if factors.shape != expected.shape or not np.allclose(
      factors, expected, rtol=1e-5, atol=0
  ):
    raise errors.InputError(
        f'{header.path}: the factors of {_FACTORS} are not those of a Llama '
        f'3.x model (low {scaling.low}, high {scaling.high}, original length '
        f'{scaling.original}), which alone are supported; take the Hugging '
        'Face directory of this model.'
    )
  return scaling


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
    tensor = gguf_tensors.Quantised(header.path, name, info)
    part = ours.rpartition('.')[2]
    if part in heads and len(info.shape) == 2:
      if info.shape[0] % (2 * heads[part]) == 0:
        tensor = gguf_tensors.Unpermuted(tensor, heads[part])
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
