"""A tiny random model; a conftest that imports `tiny` has it as a fixture."""

import numpy as np
import pytest

from specdiff_jax.formats import params as params_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.text import tokenizer as tokenizer_lib


def random_params(config, seed=0):
  """Returns float32 params of the right names and shapes."""
  generator = np.random.default_rng(seed)
  flat = {}
  for name, shape in params_lib.shapes(config).items():
    flat[name] = generator.standard_normal(shape).astype(np.float32) * 0.1
    if 'norm' in name:
      flat[name] += 1
  return params_lib.nest(flat)


@pytest.fixture(scope='session')
def tiny():
  """Returns (config, params, tokenizer) of an untied model with GQA."""
  config = config_lib.TransformerConfig(
      vocab_size=288,
      width=32,
      layers=2,
      heads=4,
      kv_heads=2,
      head_dim=16,  # not width / heads
      mlp_width=64,
      rope_base=5000.0,
      norm_eps=1e-6,
      tied_head=False,
      max_positions=128,
  )
  return config, random_params(config), tokenizer_lib.Tokenizer.bytes(288)
