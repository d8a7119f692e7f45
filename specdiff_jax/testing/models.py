"""A verifier of a few thousand numbers, whose texts are varied."""

import functools
from typing import Any

import jax
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.text import tokenizer as tokenizer_lib

VOCAB = 61


def tiny_config(scan_layers: bool = False) -> config_lib.TransformerConfig:
  """Returns the sizes of `tiny_verifier`."""
  return config_lib.TransformerConfig(
    vocab_size=VOCAB,
    width=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=40,
    tied_head=False,  # a tied one says the same token again and again
    scan_layers=scan_layers,
  )


def random_params(shapes: Any, seed: int, scale: float) -> Any:
  """Returns params of shapes: norms near 1, other weights of this scale."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    value = rng.standard_normal(leaf.shape).astype(np.float32)
    return 1 + 0.1 * value if 'norm' in str(path[-1]) else scale * value

  return jax.tree_util.tree_map_with_path(one, shapes)


@functools.cache
def tiny_verifier(scan_layers: bool = False) -> weights.Checkpoint:
  """Returns the verifier; `scan_layers` stacks the same numbers.

  Its tokens are bytes below 61; it decodes any, and reads token ids.
  """
  flat = networks.shapes(tiny_config())
  shapes = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in flat.items()
  }
  # Large weights, so that the text depends on more than its last token.
  params = random_params(params_lib.nest(shapes), 1, 0.16)
  if scan_layers:
    layers = [params.pop(f'layer_{i}') for i in range(tiny_config().layers)]
    params['layers'] = jax.tree.map(lambda *x: np.stack(x), *layers)
  return weights.Checkpoint(
    tiny_config(scan_layers),
    params,
    tokenizer_lib.Tokenizer.bytes(257),
    fingerprint='0' * 16,
    source='testing:tiny',
  )
