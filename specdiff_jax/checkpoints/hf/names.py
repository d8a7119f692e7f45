"""Tensor names of Hugging Face's files, and how the tensors lie in them."""

from collections.abc import Mapping
import functools
import re

import numpy as np

from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks

Config = networks.Config

_LAYER = {
  'attention_norm': 'input_layernorm.weight',
  'query': 'self_attn.q_proj.weight',
  'key': 'self_attn.k_proj.weight',
  'value': 'self_attn.v_proj.weight',
  'output': 'self_attn.o_proj.weight',
  'mlp_norm': 'post_attention_layernorm.weight',
  'gate': 'mlp.gate_proj.weight',
  'up': 'mlp.up_proj.weight',
  'down': 'mlp.down_proj.weight',
  'query_bias': 'self_attn.q_proj.bias',
  'key_bias': 'self_attn.k_proj.bias',
  'value_bias': 'self_attn.v_proj.bias',
  'query_norm': 'self_attn.q_norm.weight',
  'key_norm': 'self_attn.k_norm.weight',
}
_POST_NORMS = {  # one name means another norm where there are four
  'attention_post_norm': 'post_attention_layernorm.weight',
  'mlp_norm': 'pre_feedforward_layernorm.weight',
  'mlp_post_norm': 'post_feedforward_layernorm.weight',
}
_OTHERS = {
  'embed': 'model.embed_tokens.weight',
  'final_norm': 'model.norm.weight',
  'head': 'lm_head.weight',
}
_GPT2_LAYER = {
  'attention_norm': 'ln_1.weight',
  'attention_norm_bias': 'ln_1.bias',
  'qkv': 'attn.c_attn.weight',
  'qkv_bias': 'attn.c_attn.bias',
  'output': 'attn.c_proj.weight',
  'output_bias': 'attn.c_proj.bias',
  'mlp_norm': 'ln_2.weight',
  'mlp_norm_bias': 'ln_2.bias',
  'up': 'mlp.c_fc.weight',
  'up_bias': 'mlp.c_fc.bias',
  'down': 'mlp.c_proj.weight',
  'down_bias': 'mlp.c_proj.bias',
}
_GPT2_OTHERS = {
  'embed': 'transformer.wte.weight',
  'position_embed': 'transformer.wpe.weight',
  'final_norm': 'transformer.ln_f.weight',
  'final_norm_bias': 'transformer.ln_f.bias',
  'head': 'lm_head.weight',
}
_GPT2_TRANSPOSED = ('qkv', 'output', 'up', 'down')  # of a Conv1D: [in, out]

# Spellings of files: GPT-2 saved without its head, and the language model in
# one that sees pictures too (old and current).
_SPELLINGS = (
  (re.compile(r'(wte|wpe|h|ln_f)\.'), r'transformer.\g<0>'),
  (re.compile(r'language_model\.lm_head\.'), 'lm_head.'),
  (re.compile(r'language_model\.model\.'), 'model.'),
  (re.compile(r'model\.language_model\.'), 'model.'),
)
# Tables that can be computed (rotary frequencies, GPT-2's masks), and the parts
# of a model that see pictures.
_LEFT_OUT = re.compile(
  r'(model\.(.+\.)?rotary_emb\.inv_freq'
  r'|transformer\.h\.\d+\.attn\.(masked_)?bias'
  r'|(model\.)?(vision_tower|multi_modal_projector)\..+)'
)


def names(config: Config) -> dict[str, str]:
  """Returns their name of each of our tensors.

  Example: names(config)['layer_0.up'] == 'model.layers.0.mlp.up_proj.weight'
  """
  if isinstance(config, gpt2.GPT2Config):
    layer, others, place = _GPT2_LAYER, _GPT2_OTHERS, 'transformer.h'
  else:
    post_norms = _POST_NORMS if config.post_norms else {}
    layer, others, place = _LAYER | post_norms, _OTHERS, 'model.layers'
  table = {}
  for ours in networks.shapes(config):
    number, _, part = ours.removeprefix('layer_').partition('.')
    table[ours] = f'{place}.{number}.{layer[part]}' if part else others[ours]
  return table


@functools.lru_cache
def _ours(config: Config) -> Mapping[str, str]:
  return {theirs: ours for ours, theirs in names(config).items()}


def our_name(config: Config, name: str) -> str | None:
  """Returns our name of a tensor in a file.

  Spellings of the same tensor that are found in files are all known. None is
  what a model does without: tables that are computed, the copy of a tied head,
  what sees pictures. A tensor that our params have no place for is ''.

  Example: our_name(config, 'model.layers.0.mlp.up_proj.weight')
  """
  for spelling, usual in _SPELLINGS:
    if spelling.match(name):
      name = spelling.sub(usual, name, count=1)
      break
  tied = config.tied_head and name == 'lm_head.weight'
  if tied or _LEFT_OUT.fullmatch(name):
    return None
  return _ours(config).get(name, '')


def transposed(config: Config) -> frozenset[str]:
  """Returns our names of the tensors that files hold as [in, out]."""
  if not isinstance(config, gpt2.GPT2Config):
    return frozenset()
  return frozenset(
    name
    for name in networks.shapes(config)
    if name.rpartition('.')[2] in _GPT2_TRANSPOSED and '.' in name
  )


def as_stored(config: Config, name: str, array: np.ndarray) -> np.ndarray:
  """Returns our tensor `name` as a file of its family holds it.

  Transposed where that is so; and Gemma's norms less the 1 that its network
  adds, where ours (out of a GGUF file) have it in them.
  """
  if name in transposed(config):
    return np.ascontiguousarray(array.T)
  if isinstance(config, config_lib.TransformerConfig) and config.post_norms:
    if 'norm' in name and config.norm_offset != 1:
      shifted = array.astype(np.float32) + (config.norm_offset - 1)
      return shifted.astype(array.dtype)
  return array
