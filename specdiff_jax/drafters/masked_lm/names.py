"""Tensor names of masked language models that have names of their own."""

import re

from specdiff_jax.drafters.masked_lm import ddit

_LLADA_LAYER = {
  'attn_norm': 'input_layernorm',
  'q_proj': 'self_attn.q_proj',
  'k_proj': 'self_attn.k_proj',
  'v_proj': 'self_attn.v_proj',
  'attn_out': 'self_attn.o_proj',
  'ff_norm': 'post_attention_layernorm',
  'ff_proj': 'mlp.gate_proj',
  'up_proj': 'mlp.up_proj',
  'ff_out': 'mlp.down_proj',
  'rotary_emb': 'rotary_emb',
}
_LLADA_OTHERS = {
  'model.transformer.wte.weight': 'model.embed_tokens.weight',
  'model.transformer.ln_f.weight': 'model.norm.weight',
  'model.transformer.ff_out.weight': 'lm_head.weight',
}
_LLADA_BLOCK = re.compile(r'model\.transformer\.blocks\.(\d+)\.(\w+)\.(\w+)')


_MDLM_LAYER = {
  'attention_norm': 'norm1.weight',
  'qkv': 'attn_qkv.weight',
  'output': 'attn_out.weight',
  'mlp_norm': 'norm2.weight',
  'up': 'mlp.0.weight',
  'up_bias': 'mlp.0.bias',
  'down': 'mlp.2.weight',
  'down_bias': 'mlp.2.bias',
  'modulation': 'adaLN_modulation.weight',
  'modulation_bias': 'adaLN_modulation.bias',
}
_MDLM_OTHERS = {
  'embed': 'vocab_embed.embedding',
  'noise_in': 'sigma_map.mlp.0.weight',
  'noise_in_bias': 'sigma_map.mlp.0.bias',
  'noise_out': 'sigma_map.mlp.2.weight',
  'noise_out_bias': 'sigma_map.mlp.2.bias',
  'final_norm': 'output_layer.norm_final.weight',
  'final_modulation': 'output_layer.adaLN_modulation.weight',
  'final_modulation_bias': 'output_layer.adaLN_modulation.bias',
  'head': 'output_layer.linear.weight',
  'head_bias': 'output_layer.linear.bias',
}


def unwrapped(usual: str, name: str) -> str:
  """Undoes how DiffuGPT and DiffuLLaMA wrap the model that they came of."""
  embed = {'model': 'model.embed_tokens', 'transformer': 'transformer.wte'}
  name = re.sub(r'^embed_tokens\b', embed[usual], name)
  return re.sub(r'^denoise_model\b', usual, name)


def llama_name(name: str) -> str:
  """Returns Llama's name of a tensor of LLaDA."""
  found = _LLADA_BLOCK.fullmatch(name)
  if found and found[2] in _LLADA_LAYER:
    return f'model.layers.{found[1]}.{_LLADA_LAYER[found[2]]}.{found[3]}'
  return _LLADA_OTHERS.get(name, name)


def mdlm(config: ddit.DDiTConfig) -> dict[str, str]:
  """Returns MDLM's name of each of our tensors."""
  table = {}
  for ours in ddit.shapes(config):
    number, _, part = ours.removeprefix('layer_').partition('.')
    theirs = (
      f'blocks.{number}.{_MDLM_LAYER[part]}' if part else (_MDLM_OTHERS[ours])
    )
    table[ours] = f'backbone.{theirs}'
  return table
