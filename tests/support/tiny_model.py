"""Tiny random models; a conftest that imports `tiny` has it as a fixture."""

import jax
import numpy as np
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.text import tokenizer as tokenizer_lib


def random_params(config, seed=0, scale=0.1):
  """Returns float32 params: norms near 1, the rest of this scale."""
  generator = np.random.default_rng(seed)
  flat = {}
  for name, shape in networks.shapes(config).items():
    value = generator.standard_normal(shape).astype(np.float32)
    flat[name] = 1 + 0.1 * value if 'norm' in name else scale * value
  return params_lib.nest(flat)


def drafter_params(config):
  """Returns random params of a diffusion drafter's network."""
  initial = jax.jit(drafter_network.initial, static_argnums=0)
  return initial(config, jax.random.key(0))


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
