"""Networks by the type of their config: one call for all of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.core import jax_settings
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2
from specdiff_jax.models import transformer

Config = config_lib.TransformerConfig | gpt2.GPT2Config  # of verifiers

# For each config its module of linen, and the shapes of its tensors.
_NETWORKS: dict[type[Any], tuple[Any, Any]] = {
    config_lib.TransformerConfig: (
        transformer.Transformer, transformer.shapes,
    ),
    gpt2.GPT2Config: (gpt2.GPT2, gpt2.shapes),
}  # fmt: skip


def register(
  config: type[Any],
  module: type[nn.Module],
  shapes: Callable[[Any], dict[str, tuple[int, ...]]],
) -> None:
  """Registers a network.

  The module that defines a config calls it, so whoever holds a config can use
  `network`.
  """
  _NETWORKS[config] = (module, shapes)


def network(config: Config) -> nn.Module:
  """Returns the network of these sizes.

  Example: network(TransformerConfig(...)).apply({'params': params}, tokens,
  positions, mask)
  """
  return _NETWORKS[type(config)][0](config)


def apply(module: nn.Module, params: Any, *args: Any, **more: Any) -> Any:
  """Returns what a network makes of its arguments, given its params."""
  return module.apply({'params': params}, *args, **more)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  return _NETWORKS[type(config)][1](config)


def abstract(config: Config, dtype: Any) -> dict[str, Any]:
  """Returns the tree of a model's params as shapes, stacked or not.

  Example: abstract(presets.published('qwen2.5_72b'), 'bfloat16')
  """
  one = jnp.zeros((1, 1), jnp.int32)
  params = jax.eval_shape(
    lambda: network(config).init(
      jax_settings.key(0), one, one, jnp.ones((1, 1, 1), bool)
    )['params']
  )
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
