"""How each architecture reads its sizes out of a config.json.

Most are Llama with other numbers; GPT-2 has sizes of its own.
"""

from typing import Any

from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2 as gpt2_lib

Raw = hf_sizes.Raw
_LOCAL, _GLOBAL = hf_sizes.LOCAL, hf_sizes.GLOBAL


def llama(file: str, raw: Raw, **more: Any) -> config_lib.TransformerConfig:
  if 'window' not in more:
    _only_global(file, raw)
  integer = lambda key, default=None: hf_sizes.integer(file, raw, key, default)
  heads, width = integer('num_attention_heads'), integer('hidden_size')
  sizes: dict[str, Any] = dict(
    vocab_size=integer('vocab_size'),
    width=width,
    layers=integer('num_hidden_layers'),
    heads=heads,
    kv_heads=integer('num_key_value_heads', heads),
    head_dim=integer('head_dim', width // max(heads, 1)),
    mlp_width=integer('intermediate_size'),
    norm_eps=float(hf_sizes.number(file, raw, 'rms_norm_eps')),
    tied_head=raw['tie_word_embeddings'],
    max_positions=integer('max_position_embeddings'),
  )
  rope = {} if 'rope_base' in more else hf_sizes.rope(file, raw)
  return config_lib.TransformerConfig(**sizes | rope | more)


def _only_global(file: str, raw: Raw) -> None:
  """Raises InputError where a family without local layers is given some."""
  hf_sizes.windows(file, raw, 0, [_GLOBAL] * _layers(file, raw))
  if raw.get('sliding_window') and raw.get('use_sliding_window') is not False:
    raise errors.InputError(
      f'{file}: sliding_window is {printing.short(raw["sliding_window"])}, '
      'but layers of this architecture see all tokens; take it away, or '
      'take another model.'
    )


def _layers(file: str, raw: Raw) -> int:
  return hf_sizes.integer(file, raw, 'num_hidden_layers')


def _window(file: str, raw: Raw) -> int:
  """Returns the window of local layers; 0 where it is switched off by null."""
  if raw['sliding_window'] is None:
    return 0
  size = hf_sizes.integer(file, raw, 'sliding_window')
  if not size:
    raise errors.InputError(
      f'{file}: sliding_window is 0, with which a layer would see nothing; '
      'give null where there is no window.'
    )
  return size


def mistral(file: str, raw: Raw) -> config_lib.TransformerConfig:
  size = _window(file, raw)
  if size and raw.get('use_sliding_window') is False:
    raise errors.InputError(
      f'{file}: sliding_window is {size} (also where the key is absent), and '
      'use_sliding_window, which this architecture does not read, is false; '
      'give null as sliding_window, or take away use_sliding_window.'
    )
  usual = [_LOCAL if size else _GLOBAL] * _layers(file, raw)
  if raw.get('layer_types') not in (None, usual):
    raise errors.InputError(
      f'{file}: layer_types is {printing.short(raw["layer_types"])}, which '
      'this architecture does not read; all its layers see sliding_window='
      f'{size or None} tokens. Take another model, or correct the file.'
    )
  return llama(file, raw, window=size)


def qwen2(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return llama(file, raw, qkv_bias=True, **_qwen_windows(file, raw))


def qwen3(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return llama(file, raw, qk_norm=True, **_qwen_windows(file, raw))


def _qwen_windows(file: str, raw: Raw) -> dict[str, Any]:
  on = hf_sizes.flag(file, raw, 'use_sliding_window')
  size = _window(file, raw) if on else 0
  first = hf_sizes.integer(file, raw, 'max_window_layers')
  usual = [
    _LOCAL if size and i >= first else _GLOBAL
    for i in range(_layers(file, raw))
  ]
  return {'window': 0} | hf_sizes.windows(file, raw, size, usual)


def gemma3(file: str, raw: Raw) -> config_lib.TransformerConfig:
  size, count = _window(file, raw), _layers(file, raw)
  every = 1
  if raw.get('layer_types') is None:
    every = hf_sizes.positive(file, raw, 'sliding_window_pattern')
  usual = [_LOCAL if (i + 1) % every else _GLOBAL for i in range(count)]
  scalar = hf_sizes.positive(file, raw, 'query_pre_attn_scalar')
  width = hf_sizes.integer(file, raw, 'hidden_size')
  more = _gemma3_rope(file, raw) | hf_sizes.windows(file, raw, size, usual)
  if 'window' not in more:
    more = more | {'window': 0}
    del more['local_rope_base']
  return llama(
    file,
    raw,
    qk_norm=True,
    norm_offset=1.0,
    post_norms=True,
    activation='gelu_tanh',
    embed_scale=float(width) ** 0.5,
    query_scale=0.0 if scalar == raw['head_dim'] else float(scalar) ** -0.5,
    **more,
  )


def _gemma3_rope(file: str, raw: Raw) -> dict[str, Any]:
  """Returns the rotary positions of global layers, and the base of local."""
  both = hf_sizes.as_object(
    file, 'rope_parameters', raw.get('rope_parameters') or {}
  )
  if set(both) - {_GLOBAL, _LOCAL}:  # `transformers` would pass them over
    raise errors.InputError(
      f'{file}: rope_parameters has {printing.names(both)}, but those of '
      f'this architecture are told for each kind of layer, {_GLOBAL!r} and '
      f'{_LOCAL!r}; correct the file.'
    )
  near = {
    'rope_parameters': both.get(_LOCAL),
    'rope_theta': raw.get('rope_local_base_freq'),
  }
  local = hf_sizes.rope(file, _with_base(near, 1e4))
  if local['rope_scaling']:
    raise errors.InputError(
      f'{file}: the rotary positions of local layers are scaled, which is '
      'not supported; take another model.'
    )
  far = hf_sizes.rope(
    file, _with_base({**raw, 'rope_parameters': both.get(_GLOBAL)}, 1e6)
  )
  return far | {'local_rope_base': local['rope_base']}


def _with_base(raw: Raw, base: float) -> Raw:
  """Returns rope settings with Gemma's base where they have none."""
  parts = (raw, raw.get('rope_parameters'), raw.get('rope_scaling'))
  told = (part.get('rope_theta') for part in parts if isinstance(part, dict))
  if any(value is not None for value in told):
    return raw
  return {**raw, 'rope_theta': base}


def gpt2(file: str, raw: Raw) -> gpt2_lib.GPT2Config:
  integer = lambda key, default=None: hf_sizes.integer(file, raw, key, default)
  width = integer('n_embd')
  return gpt2_lib.GPT2Config(
    vocab_size=integer('vocab_size'),
    width=width,
    layers=integer('n_layer'),
    heads=integer('n_head'),
    mlp_width=integer('n_inner', 4 * width),
    max_positions=integer('n_positions'),
    norm_eps=float(hf_sizes.number(file, raw, 'layer_norm_epsilon')),
    tied_head=raw['tie_word_embeddings'],
  )
