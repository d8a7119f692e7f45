"""Models that need no file: published sizes, and random weights for tests."""

import math
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import networks
from specdiff_jax.text import tokenizer as tokenizer_lib

_sizes = config_lib.TransformerConfig


def _llama2(*sizes):
  return _sizes(32000, *sizes, tied_head=False, max_positions=4096)


def _llama3(*sizes, factor=0.0, tied=False):
  scaling = config_lib.RopeScaling('llama3', factor) if factor else None
  return _sizes(
      128256, *sizes, rope_base=5e5, tied_head=tied, rope_scaling=scaling,
      max_positions=131072 if factor else 8192,
  )  # fmt: skip


def _smollm2(*sizes, rope_base=1e5):
  return _sizes(49152, *sizes, rope_base=rope_base, max_positions=8192)


def _qwen2(vocab, *sizes, tied=False):
  return _sizes(
      vocab, *sizes, qkv_bias=True, rope_base=1e6, norm_eps=1e-6,
      tied_head=tied, max_positions=32768,
  )  # fmt: skip


def _qwen3(*sizes, tied=False):
  return _sizes(
      151936, *sizes, qk_norm=True, rope_base=1e6, norm_eps=1e-6,
      tied_head=tied, max_positions=40960,
  )  # fmt: skip


def _gemma3(width, *sizes):
  return _sizes(
      262144, width, *sizes, qk_norm=True, norm_offset=1.0, post_norms=True,
      activation='gelu_tanh', embed_scale=math.sqrt(width), window=512,
      global_every=6, rope_base=1e6, local_rope_base=1e4, norm_eps=1e-6,
      max_positions=32768,
  )  # fmt: skip


SIZES = {
  'tiny': _sizes(
    320, 64, 3, 4, 2, 16, 128, tied_head=False, max_positions=1024
  ),
}
# Shapes only, as each model's own config.json has them; for compiling and for
# `inspect preset:NAME` without any weights.
PUBLISHED = {
    'llama2_7b': _llama2(4096, 32, 32, 32, 128, 11008),
    'llama2_13b': _llama2(5120, 40, 40, 40, 128, 13824),
    'llama2_70b': _llama2(8192, 80, 64, 8, 128, 28672),
    'llama3_8b': _llama3(4096, 32, 32, 8, 128, 14336),
    'llama3.1_8b': _llama3(4096, 32, 32, 8, 128, 14336, factor=8.0),
    'llama3.1_70b': _llama3(8192, 80, 64, 8, 128, 28672, factor=8.0),
    'llama3.2_1b': _llama3(
        2048, 16, 32, 8, 64, 8192, factor=32.0, tied=True
    ),
    'llama3.2_3b': _llama3(
        3072, 28, 24, 8, 128, 8192, factor=32.0, tied=True
    ),
    'smollm2_135m': _smollm2(576, 30, 9, 3, 64, 1536),
    'smollm2_360m': _smollm2(960, 32, 15, 5, 64, 2560),
    'smollm2_1.7b': _smollm2(2048, 24, 32, 32, 64, 8192, rope_base=1.3e5),
    'mistral_7b': _sizes(  # v0.1; later versions have no window
        32000, 4096, 32, 32, 8, 128, 14336, window=4096, tied_head=False,
        max_positions=32768,
    ),
    'qwen2.5_0.5b': _qwen2(151936, 896, 24, 14, 2, 64, 4864, tied=True),
    'qwen2.5_1.5b': _qwen2(151936, 1536, 28, 12, 2, 128, 8960, tied=True),
    'qwen2.5_7b': _qwen2(152064, 3584, 28, 28, 4, 128, 18944),
    'qwen2.5_14b': _qwen2(152064, 5120, 48, 40, 8, 128, 13824),
    'qwen2.5_32b': _qwen2(152064, 5120, 64, 40, 8, 128, 27648),
    'qwen2.5_72b': _qwen2(152064, 8192, 80, 64, 8, 128, 29568),
    'qwen3_0.6b': _qwen3(1024, 28, 16, 8, 128, 3072, tied=True),
    'qwen3_1.7b': _qwen3(2048, 28, 16, 8, 128, 6144, tied=True),
    'qwen3_4b': _qwen3(2560, 36, 32, 8, 128, 9728, tied=True),
    'qwen3_8b': _qwen3(4096, 36, 32, 8, 128, 12288),
    'qwen3_14b': _qwen3(5120, 40, 40, 8, 128, 17408),
    'qwen3_32b': _qwen3(5120, 64, 64, 8, 128, 25600),
    'gemma3_270m': _gemma3(640, 18, 4, 1, 256, 2048),
    'gemma3_1b': _gemma3(1152, 26, 4, 1, 256, 6912),
    'gpt2': gpt2.GPT2Config(50257, 768, 12, 12, 3072),
    # Diffusion models: the same network under a full mask.
    'dream_7b': _qwen2(152064, 3584, 28, 28, 4, 128, 18944),
    'diffullama_7b': _llama2(4096, 32, 32, 32, 128, 11008),
    'llada_8b': _sizes(
        126464, 4096, 32, 32, 32, 128, 12288, rope_base=5e5, tied_head=False,
        max_positions=4096,
    ),
}  # fmt: skip


def published(name: str) -> Any:
  """Returns the sizes of a published model; InputError if it is not known.

  Example: published('qwen2.5_72b').width == 8192
  """
  if name not in PUBLISHED:
    raise errors.InputError(
      f'preset:{name} is not known; there are: {", ".join(PUBLISHED)}.'
    )
  return PUBLISHED[name]


def parameters(config: Any) -> int:
  """Returns how many numbers a model of these sizes holds."""
  return sum(math.prod(shape) for shape in networks.shapes(config).values())


def random(name: str, dtype: str, seed: int = 0) -> weights.Checkpoint:
  """Returns a random verifier that reads bytes; the same for the same seed.

  Example: random('tiny', 'float32')
  """
  config = SIZES[name]
  generator = np.random.default_rng(seed)
  tensors = (
    (ours, ours, _draw(generator, shape))
    for ours, shape in sorted(networks.shapes(config).items())
  )
  params, digest = params_lib.gather(config, tensors, dtype, f'random:{name}')
  tokenizer = tokenizer_lib.Tokenizer.bytes(config.vocab_size)
  return weights.Checkpoint(config, params, tokenizer, digest, f'random:{name}')


def _draw(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
  if len(shape) == 1:  # the scale of a norm
    return np.ones(shape, np.float32)
  scale = shape[-1] ** -0.5
  return (scale * generator.standard_normal(shape)).astype(np.float32)
