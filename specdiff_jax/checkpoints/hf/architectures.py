"""What of Hugging Face's config.json belongs to which architecture."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from specdiff_jax.checkpoints.hf import names
from specdiff_jax.checkpoints.hf import readers
from specdiff_jax.checkpoints.hf import sizes as hf_sizes


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
    own: keys of `CHANGING` that the family itself reads.
    aliases: those of `spellings` that `transformers` reads too.
  """

  read: Callable[[str, hf_sizes.Raw], names.Config]
  only: hf_sizes.Raw
  defaults: hf_sizes.Raw
  off: frozenset[str] = frozenset()
  spellings: Mapping[str, str] = {}
  own: frozenset[str] = frozenset()
  aliases: frozenset[str] = frozenset()


# Keys that change the network of other architectures, with the values (beside
# null, false, [] and {}) that leave it as ours is.
CHANGING: Mapping[str, tuple[Any, ...]] = {
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
  readers.gemma3,
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
        readers.llama, _PLAIN, {**_USUAL, 'max_position_embeddings': 2048},
        _KV_OFF, _LLAMA_SPELLINGS,
    ),
    'MistralForCausalLM': Family(
        readers.mistral, _PLAIN,
        {
            **_USUAL, 'num_key_value_heads': 8, 'sliding_window': 4096,
            'max_position_embeddings': 131072,
        },
        _KV_OFF | _WINDOW_OFF, _LLAMA_SPELLINGS,
    ),
    'Qwen2ForCausalLM': Family(
        readers.qwen2, _PLAIN, _QWEN, _KV_OFF | _WINDOW_OFF, _LLAMA_SPELLINGS
    ),
    'Qwen3ForCausalLM': Family(
        readers.qwen3, _PLAIN, {**_QWEN, 'head_dim': 128}, _KV_OFF | _WINDOW_OFF,
        _LLAMA_SPELLINGS,
    ),
    'Gemma3ForCausalLM': _GEMMA3,
    'Gemma3ForConditionalGeneration': _GEMMA3,
    'GPT2LMHeadModel': Family(
        readers.gpt2,
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
