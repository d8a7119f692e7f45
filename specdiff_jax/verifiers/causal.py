"""A causal language model as a verifier, whatever its network."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks
from specdiff_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class CausalVerifier:
  """Scores trees with a network that reads each token after those before it.

  Attributes:
    network: module called as `transformer.Transformer` is.
    cache_dtype: dtype of the KV cache.
  """

  network: nn.Module
  cache_dtype: str = 'float32'

  @property
  def vocab_size(self) -> int:
    return self.network.config.vocab_size

  @property
  def width(self) -> int:
    return self.network.config.width

  @property
  def max_positions(self) -> int:
    return self.network.config.max_positions

  def read(self, params, cache, prompt, start, size, features):
    batch = prompt.length.shape[0]
    index = start + jnp.arange(size)
    keys = jnp.arange(cache.slots)
    mask = (keys <= index[:, None]) & (keys < prompt.length[:, None, None])
    return networks.apply(
      self.network,
      params,
      lax.dynamic_slice_in_dim(prompt.tokens, start, size, axis=1),
      jnp.broadcast_to(index, (batch, size)),
      mask,
      cache,
      jnp.broadcast_to(start, (batch,)),
      features,
    )

  def score(self, params, cache, tree, length, features):
    start = length - 1
    hidden, cache, taken = networks.apply(
      self.network,
      params,
      tree.token,
      start[:, None] + tree.depth,
      tree_lib.cache_mask(tree, length, cache.slots),
      cache,
      start,
      features,
    )
    return self.head(params, hidden), cache, taken

  def commit(self, cache, tree, verdict, length, chain):
    if chain:
      return cache
    return cache.gathered(verdict.path, length - 1, tree.token.shape[1])

  def embed(self, params: Mapping[str, Any], tokens):
    return layers_lib.lookup(params['embed'], tokens)

  def head(self, params, states):
    return networks.apply(self.network, params, states, method='logits')

  def empty(self, batch, slots):
    # An accepted path is then moved in all layers at once.
    config = self.network.config
    return cache_lib.empty(
      config, batch, slots, self.cache_dtype, config.attention == 'kernel'
    )

  def spec(self, tree, mesh):
    return rules.shardings(tree, SPLIT, mesh)


SPLIT = (*cache_lib.SPLIT, *rules.TRANSFORMER)
