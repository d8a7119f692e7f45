"""The network of a masked language model that was made of the verifier.

All the verifier's layers, which start as they are and learn to see to both
sides, between its embedding and its head, both frozen and shared. Output i
goes on predicting token i + 1 (shifted), and a token that texts hardly have
stands for what is masked (DiffuLLaMA, arXiv 2410.17891).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specdiff_jax.drafters.autoregressive import network as causal_network
from specdiff_jax.drafters.masked_lm import model as masked_lm
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers


@dataclasses.dataclass(frozen=True)
class AdaptedConfig:
  """Sizes of such a drafter: the verifier's.

  Attributes:
    mask_id: the token that is the mask.
    verifier: the verifier's own sizes.
  """

  mask_id: int
  verifier: config_lib.TransformerConfig

  kind: ClassVar[str] = 'masked_lm'
  may_be_zero: ClassVar[tuple[str, ...]] = ('mask_id',)
  features = ()  # it reads none

  def __post_init__(self):
    _ = self.model  # raises InputError on an impossible mask token

  @property
  def vocab(self) -> int:
    """It can draft all tokens but the mask."""
    return self.verifier.vocab_size

  @property
  def layers(self) -> int:
    return self.verifier.layers

  @property
  def run_as(self) -> causal_network.CausalConfig:
    """The sizes of its layers, as a network that is run under any mask."""
    every = tuple(range(self.layers))
    return causal_network.CausalConfig(every, self.vocab, self.verifier)

  @property
  def model(self) -> masked_lm.MaskedLM:
    """What `drafter` serves; its params are those of `whole`."""
    network = dataclasses.replace(self.verifier, scan_layers=False)
    return masked_lm.MaskedLM(network, self.mask_id, shifted=True)

  def shapes(self):
    """Returns the tree of trained parameters as shapes."""
    return self.run_as.shapes()


def initial(config: AdaptedConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random parameters, float32."""
  return causal_network.initial(config.run_as, key)


def initial_from_verifier(
  config: AdaptedConfig, key: jax.Array, verifier
) -> dict[str, Any]:
  """Returns the verifier's layers and final norm, float32."""
  return causal_network.initial_from_verifier(config.run_as, key, verifier)


def whole(params, verifier) -> dict[str, Any]:
  """Returns the params of a whole language model: with embedding and head."""
  shared = {n: verifier[n] for n in ('embed', 'head') if n in verifier}
  return {**params, **shared}


def states(
  config: AdaptedConfig,
  params,
  embed: jax.Array,
  tokens: jax.Array,
  mask: jax.Array,
) -> jax.Array:
  """Returns the final states [B, T, E] of tokens [B, T], mask [B, T, T]."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  x = layers.lookup(embed, tokens)
  return causal_network.over(config.run_as, params, x, positions, mask)[0]
