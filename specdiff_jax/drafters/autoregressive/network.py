"""The network of a small autoregressive drafter: a few layers of its own.

It reads the verifier's embedding and ends in rows of the verifier's head, both
frozen; what it owns is a handful of layers of the verifier's sizes, which start
as copies of some of the verifier's, and a final norm. One function runs them,
in training over whole trajectories and in serving over a cache.
"""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from specdiff_jax.core import jax_settings
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer as layer_lib


@dataclasses.dataclass(frozen=True)
class CausalConfig:
  """Sizes of an autoregressive drafter; widths follow the verifier's.

  Attributes:
    start: the verifier's layers (0-based) that its layers start as, one each.
    vocab: number of tokens it can draft, the verifier's most frequent ones.
    verifier: the verifier's own sizes.
  """

  start: tuple[int, ...]
  vocab: int
  verifier: config_lib.TransformerConfig

  kind: ClassVar[str] = 'autoregressive'
  may_be_zero: ClassVar[tuple[str, ...]] = ()
  features = ()  # it reads none

  def __post_init__(self):
    config_lib.require_transformer(self.verifier, 'An autoregressive drafter')

  @property
  def layers(self) -> int:
    return len(self.start)

  @property
  def network(self) -> config_lib.TransformerConfig:
    """The sizes of its own layers."""
    return dataclasses.replace(
      self.verifier,
      layers=self.layers,
      vocab_size=self.vocab,
      tied_head=True,
      scan_layers=False,
    )

  def shapes(self):
    """Returns the tree of trained parameters as shapes."""
    return jax.eval_shape(lambda: initial(self, jax_settings.key(0)))


def initial(config: CausalConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random parameters, float32."""
  one = jnp.zeros((1, 1), jnp.int32)
  network = transformer.Transformer(config.network)
  params = network.init(key, one, one, one[None] == 0)['params']
  return {name: x for name, x in params.items() if name != 'embed'}


def initial_from_verifier(
  config: CausalConfig, key: jax.Array, verifier
) -> dict[str, Any]:
  """Returns parameters whose layers are those of the verifier at `start`."""
  del key
  verifier = layer_lib.parted(config.verifier, verifier)
  params = {
    f'layer_{i}': transformer.layer_params(verifier, layer)
    for i, layer in enumerate(config.start)
  }
  params['final_norm'] = verifier['final_norm']
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def over(
  config: CausalConfig,
  params,
  x: jax.Array,
  positions: jax.Array,
  mask: jax.Array,
  cache: cache_lib.Cache | None = None,
  start: jax.Array | None = None,
) -> tuple[jax.Array, cache_lib.Cache | None]:
  """Returns the final states [B, M, E] of embeddings x, and the cache.

  As `transformer.first_layers`. A layer that starts as a local one of the
  verifier's is local.
  """
  chex.assert_rank([x, positions, mask], [3, 2, 3])
  return transformer.first_layers(
    config.network,
    params,
    config.layers,
    transformer.scaled(config.verifier, x),
    positions,
    mask,
    cache,
    start,
    tuple(config.verifier.local_layers[i] for i in config.start),
  )
