"""Tiny directories of published drafters, under the names of their files.

Config keys and tensor names are written out here as the published checkpoints
have them, so that what reads them is checked against something else.
"""

import json
import os

import numpy as np

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.text import tokenizer as tokenizer_lib

VOCAB, WIDTH, LAYERS, BETWEEN = 264, 24, 2, 40
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
DRAFTED = 90  # tokens that EAGLE-3 drafts
MASK = 260  # a spare token of the byte tokenizer
_SIZES = {
  'hidden_act': 'silu',
  'vocab_size': VOCAB,
  'hidden_size': WIDTH,
  'num_hidden_layers': LAYERS,
  'num_attention_heads': HEADS,
  'num_key_value_heads': KV_HEADS,
  'intermediate_size': BETWEEN,
  'rms_norm_eps': 1e-6,
  'max_position_embeddings': 512,
  'tie_word_embeddings': False,
  'rope_theta': 5000.0,
}


def drawn(shapes, seed, scale):
  """Returns random tensors of these shapes; norms are near 1."""
  rng = np.random.default_rng(seed)
  tensors = {}
  for name, shape in shapes.items():
    tensors[name] = scale * rng.standard_normal(shape).astype(np.float32)
    if 'norm' in name.split('.')[-2] or '.ln_' in name:
      tensors[name] += 1 if name.endswith('weight') else 0
  return tensors


def _like_llama(head_dim, bias=False, qk_norm=False, prefix='model.'):
  query, key = HEADS * head_dim, KV_HEADS * head_dim
  shapes = {}
  for i in range(LAYERS):
    at = f'{prefix}layers.{i}.'
    shapes |= {
      at + 'input_layernorm.weight': (WIDTH,),
      at + 'self_attn.q_proj.weight': (query, WIDTH),
      at + 'self_attn.k_proj.weight': (key, WIDTH),
      at + 'self_attn.v_proj.weight': (key, WIDTH),
      at + 'self_attn.o_proj.weight': (WIDTH, query),
      at + 'post_attention_layernorm.weight': (WIDTH,),
      at + 'mlp.gate_proj.weight': (BETWEEN, WIDTH),
      at + 'mlp.up_proj.weight': (BETWEEN, WIDTH),
      at + 'mlp.down_proj.weight': (WIDTH, BETWEEN),
    }
    if bias:
      shapes |= {
        at + 'self_attn.q_proj.bias': (query,),
        at + 'self_attn.k_proj.bias': (key,),
        at + 'self_attn.v_proj.bias': (key,),
      }
    if qk_norm:
      shapes |= {
        at + 'self_attn.q_norm.weight': (head_dim,),
        at + 'self_attn.k_norm.weight': (head_dim,),
      }
  return shapes


def _whole(layers):
  return layers | {
    'model.embed_tokens.weight': (VOCAB, WIDTH),
    'model.norm.weight': (WIDTH,),
    'lm_head.weight': (VOCAB, WIDTH),
  }


def dream():
  raw = {
      'architectures': ['DreamModel'], 'model_type': 'Dream',
      'mask_token_id': MASK, 'use_mrope': False, 'use_sliding_window': False,
  }  # fmt: skip
  return _SIZES | raw, _whole(_like_llama(WIDTH // HEADS, bias=True))


def a2d_qwen3():
  """Its mask token stands in its tokenizer alone."""
  raw = {
      'architectures': ['A2DQwen3LMHeadModel'], 'model_type': 'a2d-qwen3',
      'head_dim': HEAD_DIM, 'attention_bias': False,
      'layer_types': ['full_attention'] * LAYERS,
  }  # fmt: skip
  return _SIZES | raw, _whole(_like_llama(HEAD_DIM, qk_norm=True))


def diffullama():
  raw = {
      'architectures': ['LlamaForCausalLM'], 'model_type': 'llama',
      'mask_token_id': MASK,
  }  # fmt: skip
  return _SIZES | raw, _whole(_like_llama(WIDTH // HEADS))


def diffugpt():
  """Saved as its authors do: wrapped, without the copy of the embedding."""
  raw = {
      'architectures': ['GPT2LMHeadModel'], 'model_type': 'gpt2',
      'activation_function': 'gelu_new', 'vocab_size': VOCAB, 'n_embd': WIDTH,
      'n_layer': LAYERS, 'n_head': HEADS, 'n_positions': 512,
      'mask_token_id': MASK,
  }  # fmt: skip
  shapes = {
    'embed_tokens.weight': (VOCAB, WIDTH),
    'denoise_model.wpe.weight': (512, WIDTH),
    'denoise_model.ln_f.weight': (WIDTH,),
    'denoise_model.ln_f.bias': (WIDTH,),
  }
  for i in range(LAYERS):
    at = f'denoise_model.h.{i}.'
    for name, shape in {
      'ln_1': (WIDTH,),
      'ln_2': (WIDTH,),
      'attn.c_attn': (WIDTH, 3 * WIDTH),
      'attn.c_proj': (WIDTH, WIDTH),
      'mlp.c_fc': (WIDTH, 4 * WIDTH),
      'mlp.c_proj': (4 * WIDTH, WIDTH),
    }.items():
      shapes[f'{at}{name}.weight'] = shape
      shapes[f'{at}{name}.bias'] = shape[-1:]
  return raw, shapes


def llada():
  raw = {
      'architectures': ['LLaDAModelLM'], 'model_type': 'llada',
      'block_type': 'llama', 'activation_type': 'silu', 'rope': True,
      'layer_norm_type': 'rms', 'alibi': False, 'include_bias': False,
      'include_qkv_bias': False, 'weight_tying': False, 'd_model': WIDTH,
      'n_layers': LAYERS, 'n_heads': HEADS, 'n_kv_heads': KV_HEADS,
      'mlp_hidden_size': BETWEEN, 'embedding_size': VOCAB, 'vocab_size': 262,
      'max_sequence_length': 512, 'rms_norm_eps': 1e-5, 'rope_theta': 500.0,
      'mask_token_id': MASK,
  }  # fmt: skip
  shapes = {
    'model.transformer.wte.weight': (VOCAB, WIDTH),
    'model.transformer.ln_f.weight': (WIDTH,),
    'model.transformer.ff_out.weight': (VOCAB, WIDTH),
  }
  key = KV_HEADS * WIDTH // HEADS
  for i in range(LAYERS):
    for name, shape in {
      'attn_norm': (WIDTH,),
      'q_proj': (WIDTH, WIDTH),
      'k_proj': (key, WIDTH),
      'v_proj': (key, WIDTH),
      'attn_out': (WIDTH, WIDTH),
      'ff_norm': (WIDTH,),
      'ff_proj': (BETWEEN, WIDTH),
      'up_proj': (BETWEEN, WIDTH),
      'ff_out': (WIDTH, BETWEEN),
    }.items():
      shapes[f'model.transformer.blocks.{i}.{name}.weight'] = shape
  return raw, shapes


def mdlm():
  """Its mask is one row behind the tokens of its tokenizer."""
  condition = 10
  raw = {
      'architectures': ['MDLM'], 'model_type': 'mdlm', 'vocab_size': VOCAB + 1,
      'hidden_dim': WIDTH, 'n_blocks': LAYERS, 'n_heads': HEADS,
      'cond_dim': condition, 'model_length': 512, 'time_conditioning': False,
  }  # fmt: skip
  shapes = {
    'vocab_embed.embedding': (VOCAB + 1, WIDTH),
    'sigma_map.mlp.0.weight': (condition, 256),
    'sigma_map.mlp.0.bias': (condition,),
    'sigma_map.mlp.2.weight': (condition, condition),
    'sigma_map.mlp.2.bias': (condition,),
    'rotary_emb.inv_freq': (WIDTH // HEADS // 2,),
    'output_layer.norm_final.weight': (WIDTH,),
    'output_layer.linear.weight': (VOCAB + 1, WIDTH),
    'output_layer.linear.bias': (VOCAB + 1,),
    'output_layer.adaLN_modulation.weight': (2 * WIDTH, condition),
    'output_layer.adaLN_modulation.bias': (2 * WIDTH,),
  }
  for i in range(LAYERS):
    for name, shape in {
      'norm1.weight': (WIDTH,),
      'attn_qkv.weight': (3 * WIDTH, WIDTH),
      'attn_out.weight': (WIDTH, WIDTH),
      'norm2.weight': (WIDTH,),
      'mlp.0.weight': (4 * WIDTH, WIDTH),
      'mlp.0.bias': (4 * WIDTH,),
      'mlp.2.weight': (WIDTH, 4 * WIDTH),
      'mlp.2.bias': (WIDTH,),
      'adaLN_modulation.weight': (6 * WIDTH, condition),
      'adaLN_modulation.bias': (6 * WIDTH,),
    }.items():
      shapes[f'blocks.{i}.{name}'] = shape
  return raw, {f'backbone.{name}': shape for name, shape in shapes.items()}


def dflash():
  """For a verifier of width WIDTH with at least 2 layers."""
  raw = {
      'architectures': ['DFlashDraftModel'], 'model_type': 'qwen3',
      'head_dim': HEAD_DIM, 'block_size': 5, 'attention_bias': False,
      'layer_types': ['full_attention'] * LAYERS, 'num_target_layers': 2,
      'dflash_config': {'mask_token_id': MASK, 'target_layer_ids': [1, 0]},
  }  # fmt: skip
  shapes = _like_llama(HEAD_DIM, qk_norm=True, prefix='') | {
    'fc.weight': (WIDTH, 2 * WIDTH),
    'hidden_norm.weight': (WIDTH,),
    'norm.weight': (WIDTH,),
  }
  return _SIZES | raw, shapes


def eagle3():
  """For a verifier of width WIDTH with 2 layers, of which it reads one twice."""
  raw = {
      'architectures': ['LlamaForCausalLMEagle3'], 'model_type': 'llama',
      'head_dim': HEAD_DIM, 'num_hidden_layers': 1, 'draft_vocab_size': DRAFTED,
      'eagle_config': {
          'eagle_aux_hidden_state_layer_ids': [0, 1, 0],
          'use_aux_hidden_state': True,
      },
  }  # fmt: skip
  query, key, twice = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, 2 * WIDTH
  shapes = {
    'fc.weight': (WIDTH, 3 * WIDTH),
    'midlayer.hidden_norm.weight': (WIDTH,),
    'midlayer.input_layernorm.weight': (WIDTH,),
    'midlayer.post_attention_layernorm.weight': (WIDTH,),
    'midlayer.self_attn.q_proj.weight': (query, twice),
    'midlayer.self_attn.k_proj.weight': (key, twice),
    'midlayer.self_attn.v_proj.weight': (key, twice),
    'midlayer.self_attn.o_proj.weight': (WIDTH, query),
    'midlayer.mlp.gate_proj.weight': (BETWEEN, WIDTH),
    'midlayer.mlp.up_proj.weight': (BETWEEN, WIDTH),
    'midlayer.mlp.down_proj.weight': (WIDTH, BETWEEN),
    'norm.weight': (WIDTH,),
    'lm_head.weight': (DRAFTED, WIDTH),
  }
  return _SIZES | raw, shapes


def drafted():
  """Returns d2t and t2d of an EAGLE-3 drafter."""
  rng = np.random.default_rng(5)
  ids = np.sort(rng.permutation(VOCAB)[:DRAFTED])
  return {'d2t': ids - np.arange(DRAFTED), 't2d': np.isin(range(VOCAB), ids)}


FAMILIES = {
  'dream': dream,
  'a2d_qwen3': a2d_qwen3,
  'diffullama': diffullama,
  'diffugpt': diffugpt,
  'llada': llada,
  'mdlm': mdlm,
  'dflash': dflash,
  'eagle3': eagle3,
}


def make(family, seed=0, scale=0.15):
  """Returns config.json and the tensors of a tiny drafter."""
  raw, shapes = FAMILIES[family]()
  more = drafted() if family == 'eagle3' else {}
  return raw, drawn(shapes, seed, scale) | more


def write(folder, raw, tensors, tokenizer=True):
  """Writes them as a directory, with the byte tokenizer."""
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
    json.dump(raw, file)
  safetensors_io.save(
    os.path.join(folder, 'model.safetensors'), tensors, {'format': 'pt'}
  )
  if tokenizer:
    backend = tokenizer_lib.Tokenizer.bytes(VOCAB).backend
    text = backend.to_str().replace(f'<|spare_{MASK}|>', '<|mask|>')
    with open(os.path.join(folder, 'tokenizer.json'), 'w') as file:
      file.write(text)
  return str(folder)
