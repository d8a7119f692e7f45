"""LoRA adapters in PEFT's layout, of random numbers, for tests."""

import os

import hf_reference
import numpy as np

from specdiff_jax.models import networks

SETTINGS = {
    'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8, 'bias': 'none',
    'target_modules': ['q_proj', 'down_proj'], 'init_lora_weights': True,
}  # fmt: skip
PREFIX = 'base_model.model.model.layers.'


def write(folder, config, ranks=None, edit=None, **settings):
  """Writes an adapter of two modules of each layer; returns its tensors."""
  os.makedirs(folder, exist_ok=True)
  raw = {k: v for k, v in (SETTINGS | settings).items() if v is not ...}
  hf_reference.write_json(folder, 'adapter_config.json', raw)
  generator = np.random.default_rng(3)
  shapes = networks.shapes(config)
  flat = {}
  for layer in range(config.layers):
    for part, module in (('query', 'self_attn.q_proj'),
                         ('down', 'mlp.down_proj')):  # fmt: skip
      out, inner = shapes[f'layer_{layer}.{part}']
      rank = (ranks or {}).get(module, raw.get('r'))
      name = f'{PREFIX}{layer}.{module}.lora_'
      draw = lambda *s: generator.standard_normal(s).astype(np.float32)
      flat[f'{name}A.weight'] = draw(rank, inner)
      flat[f'{name}B.weight'] = draw(out, rank)
  if edit:
    edit(flat)
  file = os.path.join(folder, 'adapter_model.safetensors')
  hf_reference.save(file, flat)
  return flat
