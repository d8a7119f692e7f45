"""Models that need no file: random weights of fixed sizes, for tests."""

from typing import Any

import numpy as np

from specdiff_jax.models import config as config_lib
from specdiff_jax.models import tokenizer as tokenizer_lib
from specdiff_jax.models import params as params_lib
from specdiff_jax.models import weights

SIZES = {
    'tiny': config_lib.TransformerConfig(
        vocab_size=320,
        width=64,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        mlp_width=128,
        tied_head=False,
        max_positions=1024,
    ),
}


def random(name: str, dtype: str, seed: int = 0) -> weights.Checkpoint:
  """Returns a random verifier that reads bytes; the same for the same seed.

  Example: random('tiny', 'float32')
  """
  config = SIZES[name]
  generator = np.random.default_rng(seed)
  tensors = (
      (ours, ours, _draw(generator, shape))
      for ours, shape in sorted(params_lib.shapes(config).items())
  )
  params, digest = params_lib.gather(config, tensors, dtype, f'random:{name}')
  tokenizer = tokenizer_lib.Tokenizer.bytes(config.vocab_size)
  return weights.Checkpoint(
      config, params, tokenizer, digest, f'random:{name}'
  )


def _draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
  if len(shape) == 1:  # the scale of a norm
    return np.ones(shape, np.float32)
  scale = shape[-1] ** -0.5
  return (scale * generator.standard_normal(shape)).astype(np.float32)
