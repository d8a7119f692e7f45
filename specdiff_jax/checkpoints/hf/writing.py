"""config.json of a model of ours, as `transformers` 4 and 5 both read it."""

from typing import Any

from specdiff_jax.checkpoints.hf import names
from specdiff_jax.checkpoints.hf import sizes
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2

MODEL_TYPES = {
  'LlamaForCausalLM': 'llama',
  'MistralForCausalLM': 'mistral',
  'Qwen2ForCausalLM': 'qwen2',
  'Qwen3ForCausalLM': 'qwen3',
  'Gemma3ForCausalLM': 'gemma3_text',
  'GPT2LMHeadModel': 'gpt2',
}


def config_json(config: names.Config) -> dict[str, Any]:
  """Returns config.json of the family that is most like this."""
  name = _family(config)
  raw = {'architectures': [name], 'model_type': MODEL_TYPES[name]}
  if isinstance(config, gpt2.GPT2Config):
    return raw | _gpt2(config)
  raw |= _llama(config)
  if config.post_norms:
    del raw['hidden_act']
  raw |= _gemma3(config) if config.post_norms else _rope(config)
  return raw | _windows(config, name) if config.window else raw


def _family(config: names.Config) -> str:
  """Returns the architecture whose layers are the most like these."""
  if isinstance(config, gpt2.GPT2Config):
    return 'GPT2LMHeadModel'
  if config.post_norms:
    return 'Gemma3ForCausalLM'
  if config.qk_norm:
    return 'Qwen3ForCausalLM'
  if config.qkv_bias:
    return 'Qwen2ForCausalLM'
  return 'MistralForCausalLM' if config.window else 'LlamaForCausalLM'


def _llama(config: config_lib.TransformerConfig) -> dict[str, Any]:
  return {
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
    'attention_bias': False,
    'sliding_window': None,
  }


def _rope(config: config_lib.TransformerConfig) -> dict[str, Any]:
  """Returns the settings in both spellings."""
  scaling = _scaling(config)
  whole = {'rope_theta': config.rope_base, **(scaling or _DEFAULT)}
  return {
    'rope_theta': config.rope_base,
    'rope_scaling': scaling,
    'rope_parameters': whole,
  }


_DEFAULT = {'rope_type': 'default'}


def _scaling(config: config_lib.TransformerConfig) -> dict[str, Any] | None:
  scaling = config.rope_scaling
  if scaling is None:
    return None
  raw = {'rope_type': scaling.kind, 'factor': scaling.factor}
  if scaling.kind == 'llama3':
    raw |= {
      'low_freq_factor': scaling.low,
      'high_freq_factor': scaling.high,
      'original_max_position_embeddings': scaling.original,
    }
  return raw


def _windows(config: config_lib.TransformerConfig, name: str) -> dict[str, Any]:
  raw: dict[str, Any] = {'sliding_window': config.window}
  if name != 'MistralForCausalLM':
    raw['layer_types'] = sizes.layer_types(config.local_layers)
  if name.startswith('Qwen'):
    raw |= {'use_sliding_window': True, 'max_window_layers': 0}
  return raw


def _gemma3(config: config_lib.TransformerConfig) -> dict[str, Any]:
  scalar = config.score_scale**-2  # a whole number, but for rounding
  near, scaling = config.local_rope_base or config.rope_base, _scaling(config)
  far = {'rope_theta': config.rope_base, **(scaling or _DEFAULT)}
  return {
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': round(scalar),
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'use_bidirectional_attention': False,
    'layer_types': [sizes.GLOBAL] * config.layers,
    'sliding_window_pattern': config.global_every or config.layers + 1,
    'rope_theta': config.rope_base,
    'rope_local_base_freq': near,
    'rope_scaling': scaling,
    'rope_parameters': {
      sizes.GLOBAL: far,
      sizes.LOCAL: {'rope_theta': near, **_DEFAULT},
    },
  }


def _gpt2(config: gpt2.GPT2Config) -> dict[str, Any]:
  return {
    'activation_function': 'gelu_new',
    'vocab_size': config.vocab_size,
    'n_embd': config.width,
    'n_layer': config.layers,
    'n_head': config.heads,
    'n_inner': config.mlp_width,
    'n_positions': config.max_positions,
    'layer_norm_epsilon': config.norm_eps,
    'tie_word_embeddings': config.tied_head,
  }
