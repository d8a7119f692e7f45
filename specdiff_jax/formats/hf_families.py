"""What of Hugging Face's config.json belongs to which family of models.

A family is Llama with other numbers, and says what of config.json it reads
otherwise; GPT-2 has sizes of its own. What a file asks for and no field of ours
can say is refused by name. Tensor names are in `hf_names`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any, NamedTuple

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.formats import hf_names
from specdiff_jax.formats import hf_sizes
from specdiff_jax.formats import hf_writing
from specdiff_jax.formats import huggingface
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks

names = hf_names.names
our_name = hf_names.our_name
transposed = hf_names.transposed
as_stored = hf_names.as_stored

Raw = hf_sizes.Raw
number = hf_sizes.number
_LOCAL, _GLOBAL = hf_sizes.LOCAL, hf_sizes.GLOBAL


def read_config(folder: str) -> networks.Config:
  """Reads config.json of a model of any family, in old and current spelling.

  InputError names the file and the key that is wrong or not supported.

  Example: read_config('models/Qwen3-0.6B')
  """
  file = os.path.join(folder, 'config.json')
  raw = files.read_json(file)
  known = architecture(file, raw)
  text = raw.get('text_config')
  if isinstance(text, dict):  # the language model in one that sees pictures
    raw = {'tie_word_embeddings': raw.get('tie_word_embeddings'), **text}
  usual = FAMILIES[known].defaults.get('tie_word_embeddings')
  if raw.get('tie_word_embeddings') is None and usual is None:
    tensors = huggingface.tensor_files(folder)
    tied = not any(name.endswith('lm_head.weight') for name in tensors)
    raw = {**raw, 'tie_word_embeddings': tied}
  return config_of(known, file, raw)


def hf_config(config: networks.Config) -> dict[str, Any]:
  """Returns a config.json, but for the dtype and the ids of special tokens.

  Raises InputError where no family is made of such layers. Norms that have
  their offset in them are written without: see `as_stored`.
  """
  raw = hf_writing.config_json(config)
  again = config_of(raw['architectures'][0], 'config.json', raw)
  lost = _differences(config, again)
  if lost:
    raise errors.InputError(
        f'A model with {", ".join(lost)} cannot be written for transformers: '
        f'{raw["architectures"][0]}, the family most like it, has no such '
        'layers. Keep it in the native form.'
    )
  return raw


def _differences(config: networks.Config, again: networks.Config) -> list[str]:
  """Returns what a config says otherwise than the one that was read back."""
  alike = {'scan_layers', 'global_every'}  # of the latter `local_layers` counts
  alike |= {'norm_offset'} if getattr(config, 'post_norms', False) else set()
  names = [field.name for field in dataclasses.fields(config)]
  return [
      f'{name}={getattr(config, name)!r}'
      for name in (*names, 'local_layers')
      if name not in alike and getattr(config, name) != getattr(again, name)
  ]


def architecture(file: str, raw: Raw) -> str:
  """Returns the first architecture of config.json that is known here."""
  found = raw.get('architectures') or [f'model_type {raw.get("model_type")!r}']
  found = [str(x) for x in (found if isinstance(found, list) else [found])]
  for name in found:
    if name in FAMILIES:
      return name
  raise errors.InputError(
      f'{file}: architecture {", ".join(found)} is not known here; known: '
      f'{", ".join(FAMILIES)}.'
  )


def config_of(name: str, file: str, raw: Raw) -> networks.Config:
  """Returns the sizes that config.json `raw` states for architecture `name`.

  `file` is named in errors.
  """
  family = FAMILIES[name]
  raw = {**family.defaults, **{k: v for k, v in raw.items() if v is not None}}
  for key, value in {'quantization_config': None, **family.only}.items():
    if raw.get(key, value) != value:
      raise errors.InputError(
          f'{file}: {key} is {raw[key]!r}; only {value!r} is supported. Take '
          'another model, or an unquantised copy of this one.'
      )
  try:
    return family.read(file, raw)
  except errors.InputError as e:
    message = str(e)
    if message.startswith(file):
      raise
    raise errors.InputError(f'{file}: {message}') from e


def _llama(file: str, raw: Raw, **more: Any) -> config_lib.TransformerConfig:
  heads = number(file, raw, 'num_attention_heads')
  width = number(file, raw, 'hidden_size')
  sizes = dict(
      vocab_size=number(file, raw, 'vocab_size'),
      width=width,
      layers=number(file, raw, 'num_hidden_layers'),
      heads=heads,
      kv_heads=number(file, raw, 'num_key_value_heads', heads),
      head_dim=number(file, raw, 'head_dim', width // max(heads, 1)),
      mlp_width=number(file, raw, 'intermediate_size'),
      norm_eps=float(number(file, raw, 'rms_norm_eps', 1e-6)),
      tied_head=raw.get('tie_word_embeddings', False),
      max_positions=number(file, raw, 'max_position_embeddings', 2048),
  )
  rope = {} if 'rope_base' in more else hf_sizes.rope(file, raw)
  return config_lib.TransformerConfig(**sizes | rope | more)


def _mistral(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return _llama(file, raw, window=number(file, raw, 'sliding_window', 0))


def _qwen2(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return _llama(file, raw, qkv_bias=True, **_qwen_windows(file, raw))


def _qwen3(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return _llama(file, raw, qk_norm=True, **_qwen_windows(file, raw))


def _qwen_windows(file: str, raw: Raw) -> dict[str, Any]:
  if not raw.get('use_sliding_window'):
    return {}
  first = number(file, raw, 'max_window_layers', 28)
  count = number(file, raw, 'num_hidden_layers')
  usual = [_LOCAL if i >= first else _GLOBAL for i in range(count)]
  return hf_sizes.windows(file, raw, usual)


def _gemma3(file: str, raw: Raw) -> config_lib.TransformerConfig:
  count = number(file, raw, 'num_hidden_layers')
  every = number(file, raw, 'sliding_window_pattern')
  usual = [_LOCAL if (i + 1) % every else _GLOBAL for i in range(count)]
  scalar = number(file, raw, 'query_pre_attn_scalar')
  more = _gemma3_rope(file, raw) | hf_sizes.windows(file, raw, usual)
  if 'window' not in more:
    del more['local_rope_base']
  return _llama(
      file,
      raw,
      qk_norm=True,
      norm_offset=1.0,
      post_norms=True,
      activation='gelu_tanh',
      embed_scale=float(number(file, raw, 'hidden_size')) ** 0.5,
      query_scale=0.0 if scalar == raw['head_dim'] else float(scalar) ** -0.5,
      **more,
  )


def _gemma3_rope(file: str, raw: Raw) -> dict[str, Any]:
  """Returns the rotary positions of global layers, and the base of local."""
  both = raw.get('rope_parameters') or {}  # one for each kind of layer
  near = {'rope_theta': raw['rope_local_base_freq']}
  if isinstance(both, dict) and (_GLOBAL in both or _LOCAL in both):
    raw = {**raw, 'rope_parameters': both.get(_GLOBAL)}
    near |= both.get(_LOCAL) or {}
  local = hf_sizes.rope(file, near)
  if local['rope_scaling']:
    raise errors.InputError(
        f'{file}: the rotary positions of local layers are scaled, which is '
        'not supported; take another model.'
    )
  return hf_sizes.rope(file, raw) | {'local_rope_base': local['rope_base']}


def _gpt2(file: str, raw: Raw) -> gpt2.GPT2Config:
  width = number(file, raw, 'n_embd')
  return gpt2.GPT2Config(
      vocab_size=number(file, raw, 'vocab_size'),
      width=width,
      layers=number(file, raw, 'n_layer'),
      heads=number(file, raw, 'n_head'),
      mlp_width=number(file, raw, 'n_inner', 4 * width),
      max_positions=number(file, raw, 'n_positions', 1024),
      norm_eps=float(number(file, raw, 'layer_norm_epsilon', 1e-5)),
      tied_head=raw['tie_word_embeddings'],
  )


class Family(NamedTuple):
  """How the config.json of an architecture is read."""

  read: Callable[[str, Raw], networks.Config]
  only: Raw = {}  # values that a key must have where it is there
  defaults: Raw = {}  # what published files leave out


_PLAIN = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
_GEMMA3 = Family(
    _gemma3,
    {
        'hidden_activation': 'gelu_pytorch_tanh',
        'attention_bias': False,
        'use_bidirectional_attention': False,
        'attn_logit_softcapping': None,
        'final_logit_softcapping': None,
    },
    {
        'vocab_size': 262208,
        'num_attention_heads': 8,
        'num_key_value_heads': 4,
        'head_dim': 256,
        'max_position_embeddings': 131072,
        'query_pre_attn_scalar': 256,
        'sliding_window': 4096,
        'sliding_window_pattern': 6,
        'rope_theta': 1e6,
        'rope_local_base_freq': 1e4,
        'tie_word_embeddings': True,
    },
)
FAMILIES: Mapping[str, Family] = {
    'LlamaForCausalLM': Family(_llama, _PLAIN),
    'MistralForCausalLM': Family(_mistral, _PLAIN),
    'Qwen2ForCausalLM': Family(_qwen2, _PLAIN),
    'Qwen3ForCausalLM': Family(_qwen3, _PLAIN, {'head_dim': 128}),
    'Gemma3ForCausalLM': _GEMMA3,
    'Gemma3ForConditionalGeneration': _GEMMA3,
    'GPT2LMHeadModel': Family(
        _gpt2,
        {
            'activation_function': 'gelu_new',
            'scale_attn_weights': True,
            'scale_attn_by_inverse_layer_idx': False,
            'add_cross_attention': False,
        },
        {'tie_word_embeddings': True},
    ),
}
