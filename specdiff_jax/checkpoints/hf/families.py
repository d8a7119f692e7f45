"""What of Hugging Face's config.json belongs to which family of models.

A family is Llama with other numbers, and says what of config.json it reads
otherwise; GPT-2 has sizes of its own. What a file asks for and no field of ours
can say is refused by name. Tensor names are in `hf_names`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import os
from typing import Any
from typing import NamedTuple

from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.checkpoints.hf import writing
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
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

  A head that the config ties to the embedding is untied where the file has
  another one, as `transformers` does; then both are compared.

  InputError names the file and the key that is wrong or not supported.

  Example: read_config('models/Qwen3-0.6B')
  """
  file = os.path.join(folder, 'config.json')
  raw = files.read_json(file)
  known = architecture(file, raw)
  text = raw.get('text_config')
  if text is not None:  # the language model in one that sees pictures
    text = _object(file, 'text_config', text)
    _no_quantising(file, raw)
    raw = {**text, 'tie_word_embeddings': raw.get('tie_word_embeddings')}
  key = 'tie_word_embeddings'
  if raw.get(key) is None and not FAMILIES[known].defaults[key]:
    names = directory.tensor_files(folder)
    raw = {**raw, key: not any(n.endswith('lm_head.weight') for n in names)}
  return untied(folder, config_of(known, file, raw))


def untied(
  folder: str,
  config: networks.Config,
  usual: Callable[[str], str] = lambda name: name,
) -> networks.Config:
  """Returns a config whose head is tied only if the file has no other head.

  `usual` gives the usual name of a tensor in the file.
  """
  if not config.tied_head or not directory.has_tensors(folder):
    return config
  other = dataclasses.replace(config, tied_head=False)
  own = lambda name: our_name(other, usual(name))
  both = {}
  for name, tensor in directory.tensors(folder).items():
    if own(name) in ('embed', 'head'):
      both[own(name)] = tensor
  if len(both) < 2 or stored.equal(both['embed'], both['head']):
    return config
  return other


def _object(file: str, key: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise errors.InputError(
      f'{file}: {key} is {printing.short(value)}, where an object is '
      'expected; download the file again.'
    )
  return value


def hf_config(config: networks.Config) -> dict[str, Any]:
  """Returns a config.json, but for the dtype and the ids of special tokens.

  Raises InputError where no family is made of such layers. Norms that have
  their offset in them are written without: see `as_stored`.
  """
  raw = writing.config_json(config)
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
  found = found if isinstance(found, list) else [found]
  for name in found:
    if isinstance(name, str) and name in FAMILIES:
      _check_type(file, raw, name)
      return name
  raise errors.InputError(
    f'{file}: architecture {printing.names(found)} is not known here; known: '
    f'{", ".join(FAMILIES)}.'
  )


def _check_type(file: str, raw: Raw, name: str) -> None:
  """Raises InputError where model_type, which `transformers` takes, differs."""
  kind, usual = raw.get('model_type'), writing.MODEL_TYPES.get(name)
  if name.startswith('Gemma3') and kind in ('gemma3', 'gemma3_text'):
    return
  if kind not in (None, usual):
    raise errors.InputError(
      f'{file}: the architecture is {name}, but model_type is '
      f'{printing.short(kind)}, not {usual!r}; correct the wrong one.'
    )


def config_of(name: str, file: str, raw: Raw) -> networks.Config:
  """Returns the sizes that config.json `raw` states for architecture `name`.

  `file` is named in errors.
  """
  family = FAMILIES[name]
  given = {
    key: value
    for key, value in raw.items()
    if value is not None or key in family.off
  }
  for key in family.aliases & given.keys():
    given.setdefault(family.spellings[key], given[key])
  raw = {**family.defaults, **given}
  _no_quantising(file, raw)
  for key, value in family.only.items():
    if raw.get(key, value) != value:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only {value!r} is '
        'supported. Take another model.'
      )
  _check_others(file, family, raw)
  try:
    return family.read(file, raw)
  except errors.InputError as e:
    message = str(e)
    if message.startswith(file):
      raise
    raise errors.InputError(f'{file}: {message}') from e


def _no_quantising(file: str, raw: Raw) -> None:
  for key in ('quantization_config', 'compression_config'):
    if raw.get(key) is not None:
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only models without '
        'it are supported. Take an unquantised copy of this one.'
      )


def _check_others(file: str, family: 'Family', raw: Raw) -> None:
  """Raises InputError for keys of other families that say something else."""
  for key, usual in family.spellings.items():
    if raw.get(key) is not None and raw[key] != raw.get(usual):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, but {usual}, which '
        f'this architecture reads, is {printing.short(raw.get(usual))}; give '
        'them one value, or take away the wrong one.'
      )
  for key, harmless in _CHANGING.items():
    if key in family.own or raw.get(key) in (None, False, *harmless):
      continue
    if raw[key] not in ([], {}):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}, which changes the '
        'network of another architecture and is not supported here; take '
        'another model.'
      )


def _llama(file: str, raw: Raw, **more: Any) -> config_lib.TransformerConfig:
  if 'window' not in more:
    _only_global(file, raw)
  integer = lambda key, default=None: hf_sizes.integer(file, raw, key, default)
  heads, width = integer('num_attention_heads'), integer('hidden_size')
  sizes = dict(
    vocab_size=integer('vocab_size'),
    width=width,
    layers=integer('num_hidden_layers'),
    heads=heads,
    kv_heads=integer('num_key_value_heads', heads),
    head_dim=integer('head_dim', width // max(heads, 1)),
    mlp_width=integer('intermediate_size'),
    norm_eps=float(number(file, raw, 'rms_norm_eps')),
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


def _mistral(file: str, raw: Raw) -> config_lib.TransformerConfig:
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
  return _llama(file, raw, window=size)


def _qwen2(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return _llama(file, raw, qkv_bias=True, **_qwen_windows(file, raw))


def _qwen3(file: str, raw: Raw) -> config_lib.TransformerConfig:
  return _llama(file, raw, qk_norm=True, **_qwen_windows(file, raw))


def _qwen_windows(file: str, raw: Raw) -> dict[str, Any]:
  on = hf_sizes.flag(file, raw, 'use_sliding_window')
  size = _window(file, raw) if on else 0
  first = hf_sizes.integer(file, raw, 'max_window_layers')
  usual = [
    _LOCAL if size and i >= first else _GLOBAL
    for i in range(_layers(file, raw))
  ]
  return {'window': 0} | hf_sizes.windows(file, raw, size, usual)


def _gemma3(file: str, raw: Raw) -> config_lib.TransformerConfig:
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
  return _llama(
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
  both = _object(file, 'rope_parameters', raw.get('rope_parameters') or {})
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


def _gpt2(file: str, raw: Raw) -> gpt2.GPT2Config:
  integer = lambda key, default=None: hf_sizes.integer(file, raw, key, default)
  width = integer('n_embd')
  return gpt2.GPT2Config(
    vocab_size=integer('vocab_size'),
    width=width,
    layers=integer('n_layer'),
    heads=integer('n_head'),
    mlp_width=integer('n_inner', 4 * width),
    max_positions=integer('n_positions'),
    norm_eps=float(number(file, raw, 'layer_norm_epsilon')),
    tied_head=raw['tie_word_embeddings'],
  )


class Family(NamedTuple):
  """How the config.json of an architecture is read.

  Attributes:
    read: makes our config of what is left when all else here is checked.
    only: values that a key must have where it is there.
    defaults: what absent keys mean, as in `transformers`; sizes of which a
      family has none have to be there.
    off: keys in which null is not the default, but says that there is no such
      thing.
    spellings: keys of other families -> the key of this one that says it; a
      file may have both only if they agree.
    own: keys of `_CHANGING` that the family itself reads.
    aliases: those of `spellings` that `transformers` reads too.
  """

  read: Callable[[str, Raw], networks.Config]
  only: Raw
  defaults: Raw
  off: frozenset[str] = frozenset()
  spellings: Mapping[str, str] = {}
  own: frozenset[str] = frozenset()
  aliases: frozenset[str] = frozenset()


# Keys that change the network of other architectures, with the values (beside
# null, false, [] and {}) that leave it as ours is.
_CHANGING: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys((
        'attn_logit_softcapping', 'final_logit_softcapping',
        'attn_logit_softcap', 'final_logit_softcap', 'logit_softcapping',
        'logits_soft_cap', 'clip_qkv', 'qk_norm', 'use_qk_norm', 'qk_layernorm',
        'use_qk_layernorm', 'alibi', 'use_alibi', 'parallel_attn',
        'use_parallel_residual', 'parallel_residual', 'mup_base_width',
        'use_mup', 'attention_chunk_size', 'attn_temperature_tuning',
        'no_rope_layers', 'no_rope_layer_interval', 'rope_interleave',
        'rope_interleaved', 'kv_lora_rank', 'q_lora_rank', 'attention_sink',
        'attention_multiplier', 'num_experts', 'num_local_experts',
        'n_routed_experts', 'moe_intermediate_size', 'num_experts_per_tok',
        'shared_expert_intermediate_size', 'mlp_only_layers',
        'use_bidirectional_attention', 'add_cross_attention',
        'query_pre_attn_scalar', 'sliding_window_pattern', 'window_size',
        'sliding_window_size', 'use_swa', 'swa_window_size', 'block_sparse',
    ), ()),
    **dict.fromkeys((
        'logits_scaling', 'logit_scale', 'embedding_multiplier', 'scale_emb',
        'residual_multiplier', 'lm_head_multiplier', 'scale_depth',
        'embedding_scale', 'output_multiplier', 'input_embedding_scale',
        'rotary_pct', 'rope_pct', 'rotary_percent',
    ), (1, 1.0)),
    'is_causal': (True,),
    'causal': (True,),
    'rope_type': ('default',),  # at the top, where no family has it
    'is_decoder': (True,),
    'position_embedding_type': ('rope', 'absolute', 'rotary'),
    'norm_type': ('rms_norm', 'rmsnorm'),
}  # fmt: skip
_PLAIN = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
_LLAMA_SPELLINGS = {
  'hidden_activation': 'hidden_act',
  'activation_function': 'hidden_act',
  'layer_norm_epsilon': 'rms_norm_eps',
  'layer_norm_eps': 'rms_norm_eps',
  'norm_eps': 'rms_norm_eps',
  'norm_epsilon': 'rms_norm_eps',
  'n_embd': 'hidden_size',
  'd_model': 'hidden_size',
  'n_layer': 'num_hidden_layers',
  'n_layers': 'num_hidden_layers',
  'num_layers': 'num_hidden_layers',
  'n_head': 'num_attention_heads',
  'n_heads': 'num_attention_heads',
  'n_kv_heads': 'num_key_value_heads',
  'num_kv_heads': 'num_key_value_heads',
  'n_inner': 'intermediate_size',
  'ffn_hidden_size': 'intermediate_size',
  'rotary_emb_base': 'rope_theta',
  'rope_base': 'rope_theta',
  'rotary_base': 'rope_theta',
  'tie_embeddings': 'tie_word_embeddings',
  'tie_weights': 'tie_word_embeddings',
}
_GEMMA3_SPELLINGS = {
  **_LLAMA_SPELLINGS,  # its files may have a hidden_act that nobody reads
  'hidden_activation': 'hidden_activation',
  'activation_function': 'hidden_activation',
}
# The sizes that are the same in all families but GPT-2.
_USUAL = {
    'rms_norm_eps': 1e-6, 'tie_word_embeddings': False, 'hidden_act': 'silu',
}  # fmt: skip
_QWEN = {
    **_USUAL, 'num_key_value_heads': 32, 'max_position_embeddings': 32768,
    'sliding_window': 4096, 'max_window_layers': 28,
}  # fmt: skip
_KV_OFF = frozenset({'num_key_value_heads'})
_WINDOW_OFF = frozenset({'sliding_window'})
_GEMMA3 = Family(
  _gemma3,
  {
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    'mlp_bias': False,
  },
  {
    'vocab_size': 262208,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 256,
    'hidden_activation': 'gelu_pytorch_tanh',
    'max_position_embeddings': 131072,
    'rms_norm_eps': 1e-6,
    'query_pre_attn_scalar': 256,
    'sliding_window': 4096,
    'sliding_window_pattern': 6,
    'tie_word_embeddings': True,
  },
  _WINDOW_OFF,
  _GEMMA3_SPELLINGS,
  frozenset({'query_pre_attn_scalar', 'sliding_window_pattern'}),
)
FAMILIES: Mapping[str, Family] = {
    'LlamaForCausalLM': Family(
        _llama, _PLAIN, {**_USUAL, 'max_position_embeddings': 2048},
        _KV_OFF, _LLAMA_SPELLINGS,
    ),
    'MistralForCausalLM': Family(
        _mistral, _PLAIN,
        {
            **_USUAL, 'num_key_value_heads': 8, 'sliding_window': 4096,
            'max_position_embeddings': 131072,
        },
        _KV_OFF | _WINDOW_OFF, _LLAMA_SPELLINGS,
    ),
    'Qwen2ForCausalLM': Family(
        _qwen2, _PLAIN, _QWEN, _KV_OFF | _WINDOW_OFF, _LLAMA_SPELLINGS
    ),
    'Qwen3ForCausalLM': Family(
        _qwen3, _PLAIN, {**_QWEN, 'head_dim': 128}, _KV_OFF | _WINDOW_OFF,
        _LLAMA_SPELLINGS,
    ),
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
        {
            'activation_function': 'gelu_new',
            'n_positions': 1024,
            'layer_norm_epsilon': 1e-5,
            'tie_word_embeddings': True,
        },
        spellings={
            'hidden_size': 'n_embd',
            'max_position_embeddings': 'n_positions',
            'num_attention_heads': 'n_head',
            'num_hidden_layers': 'n_layer',
            'intermediate_size': 'n_inner',
            'layer_norm_eps': 'layer_norm_epsilon',
            'rms_norm_eps': 'layer_norm_epsilon',
            'hidden_act': 'activation_function',
        },
        aliases=frozenset({
            'hidden_size', 'max_position_embeddings', 'num_attention_heads',
            'num_hidden_layers',
        }),
    ),
}  # fmt: skip
