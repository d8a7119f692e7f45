"""The network of EAGLE-3 drafters (2503.01840): one layer that feeds itself.

At position t the layer reads the token there and a state h of the token before:
the verifier's, fused of a low, a middle and a high layer, where the verifier has
read that token; else the layer's own output there.

  h_t  = W_fuse [H_low; H_middle; H_high]_{t-1}     or  o_{t-1}
  o_t  = layer(x = [norm(embed(token_t)); norm(h_t)], residual from h_t)
  log q(token_{t+1}) = head(norm(o_t))

Queries, keys and values are made of x, which is twice as wide. The embedding is
the verifier's.
"""

import dataclasses
from typing import Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.drafters.diffusion import layer as window_layer
from specdiff_jax.models import attention
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer as layer_lib
from specdiff_jax.models import views

_FUSED = 3  # verifier layers that published drafters read


@dataclasses.dataclass(frozen=True)
class EagleConfig:
  """An EAGLE drafter; raises InputError on impossible values.

  Attributes:
    network: the sizes of its layer; vocab_size and width are the verifier's.
    features: verifier layers whose outputs it reads, 0-based; () for those of
      `published_features`.
    vocab: tokens that it can draft.
  """

  network: config_lib.TransformerConfig
  features: tuple[int, ...]
  vocab: int

  def __post_init__(self):
    most = self.network.vocab_size
    if self.layers != 1 or not 1 <= self.vocab <= most:
      raise errors.InputError(
        f'an EAGLE drafter has {self.layers} layers and {self.vocab} tokens, '
        f'but it needs 1, and 1 to {most}; correct num_hidden_layers or '
        'draft_vocab_size in its config.json.'
      )

  @property
  def layers(self) -> int:
    return self.network.layers


@dataclasses.dataclass(frozen=True)
class TrainedConfig:
  """Sizes of one that is trained here; widths follow the verifier's.

  Attributes:
    features: verifier layers (0-based outputs) that it reads.
    vocab: number of tokens it can draft, the verifier's most frequent ones.
    verifier: the verifier's own sizes.
  """

  features: tuple[int, ...]
  vocab: int
  verifier: config_lib.TransformerConfig

  kind: ClassVar[str] = 'eagle'
  may_be_zero: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    config_lib.require_transformer(self.verifier, 'An EAGLE drafter')

  @property
  def layers(self) -> int:
    return 1

  @property
  def run_as(self) -> EagleConfig:
    """Its network, whose layer is Llama's whatever the verifier's are."""
    c = self.verifier
    network = config_lib.TransformerConfig(
      c.vocab_size, c.width, 1, c.heads, c.kv_heads, c.head_dim, c.mlp_width,
      c.rope_base, c.norm_eps, max_positions=c.max_positions,
      rope_scaling=c.rope_scaling,
    )  # fmt: skip
    return EagleConfig(network, self.features, self.vocab)

  def shapes(self):
    """Returns the tree of trained parameters as shapes."""
    return jax.eval_shape(lambda: initial(self, jax_settings.key(0)))


def published_features(layers: int) -> tuple[int, ...]:
  """Returns the layers that published drafters read: low, middle and high.

  For a verifier with few layers these are moved to layers that it has.

  Example: published_features(32) == (1, 15, 28)
  """
  usual = 1, layers // 2 - 1, layers - 4
  return tuple(sorted({min(max(x, 0), layers - 1) for x in usual}))


def shapes(config: EagleConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  head = {'head': (config.vocab, config.network.width)}
  layer = _layer_shapes(config.network)
  return layers_lib.layered(_top_shapes(config) | head, layer, 1)


def _top_shapes(config: EagleConfig) -> layers_lib.Shapes:
  width = config.network.width
  read = len(config.features) or _FUSED
  return {'fuse': (width, read * width), 'final_norm': (width,)}


def _layer_shapes(config: config_lib.TransformerConfig) -> layers_lib.Shapes:
  table = layer_lib.shapes(config) | {'hidden_norm': (config.width,)}
  for name in layer_lib.GROUPS[0]:
    table[name] = (table[name][0], 2 * config.width)
  return table


class Layer(layer_lib.LayerParts):
  """The layer, over a text and its KV cache, or over windows beside them.

  `attention_norm` is that of the embedding.
  """

  def table(self):
    return _layer_shapes(self.config)

  def text(self, x, h, cache, start, view):
    """Returns the outputs [B, T, E] and the cache with their keys."""
    cos, sin, mask, seen = view
    query, key, value = self._projected(x, h, cos, sin)
    if cache is None:
      cache = cache_lib.Layer(key, value)
    else:
      cache = cache.written((key, value), start)
    scale = self.config.score_scale
    out = attention.attend(query, cache, mask, seen, scale)
    return self.after(h, out), cache

  def beside(self, x, h, context, mask, seen, before, own, cos, sin):
    """Returns the outputs [B, N, M, E], and the windows' pairs with theirs."""
    query, key, value = self._projected(x, h, cos, sin)
    if before is not None:
      key = jnp.concatenate([before[0], key], axis=-2)
      value = jnp.concatenate([before[1], value], axis=-2)
    query, pair = query * self.config.score_scale, (key, value)
    out = window_layer.window_attention(query, context, pair, mask, seen, own)
    return self.after(h, out), pair

  def _projected(self, x, h, cos, sin):
    both = self.norm(x, self.attention_norm), self.norm(h, self.hidden_norm)
    joined = jnp.concatenate(both, axis=-1)
    return self.queries_keys_values(joined, cos, sin)


class Eagle(nn.Module):
  """Reads a text (`text`), and goes on from it (`beside`)."""

  config: EagleConfig
  param_dtype: Any = jnp.float32

  def setup(self):
    layers_lib.make_params(self, _top_shapes(self.config), self.param_dtype)
    self.layer = [Layer(self.config.network, self.param_dtype)]

  def fused(self, features: jax.Array) -> jax.Array:
    """Maps the verifier's states [B, T, F, E] of tokens to h [B, T, E]."""
    joined = features.reshape(features.shape[:2] + (-1,))
    return layers_lib.dense(joined, self.fuse)

  def normed(self, out: jax.Array) -> jax.Array:
    """Maps outputs to what the head reads."""
    return layers_lib.rms_norm(
      out, self.final_norm, self.config.network.norm_eps
    )

  def text(
    self,
    x: jax.Array,
    h: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    cache: cache_lib.Layer | None = None,
    start: jax.Array | None = None,
  ) -> tuple[jax.Array, cache_lib.Layer]:
    """Returns the outputs [B, T, E] of a text, and its keys and values.

    Args:
      x: [B, T, E] embedded tokens.
      h: [B, T, E] states of the token before each.
      positions: [B, T].
      mask: [B, T, S] over the cache, or [B, T, T] without one.
      cache: updated at `start`.
      start: [B] first cache slot that the T tokens take.
    """
    chex.assert_rank([x, h, positions, mask], [3, 3, 2, 3])
    network = self.config.network
    view = views.views_of(network, positions, mask, start, (False,))[False]
    return self.layer[0].text(x, h, cache, start, view)

  def beside(
    self,
    x: jax.Array,
    h: jax.Array,
    positions: jax.Array,
    context: cache_lib.Pair,
    mask: jax.Array,
    before: cache_lib.Pair | None = None,
    own: jax.Array | None = None,
    serving: bool = False,
  ) -> tuple[jax.Array, cache_lib.Pair]:
    """Returns outputs [B, N, M, E] of M tokens that follow others in N windows.

    Args:
      x: [B, N, M, E] embedded tokens.
      h: [B, N, M, E] outputs at the token before each.
      positions: [B, N, M].
      context: keys and values [B, Hkv, S, Dh] of the text.
      mask: [B, N, S] what the windows see of it.
      before: keys and values [B, N, Hkv, C, Dh] of the windows' tokens so far.
      own: what a token sees of the C + M of its window, as bool that broadcasts
        to [B, Hkv, N, H / Hkv, M, C + M]; None for all of it.
      serving: whether there is no gradient: what no window sees is not read.

    Returns:
      The outputs, and `before` with the M tokens behind it.
    """
    chex.assert_rank([x, h, positions, mask], [4, 4, 3, 3])
    cos, sin = views.rope_of(self.config.network, positions, local=False)
    seen = attention.span(mask) if serving else None
    return self.layer[0].beside(
      x, h, context, mask, seen, before, own, cos, sin
    )


def initial(config: TrainedConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random parameters, float32.

  `head` is what training adds to the verifier's rows: at first nothing.
  """
  one = jnp.zeros((1, 1, config.verifier.width))
  at = jnp.zeros((1, 1), jnp.int32)
  made: Any = Eagle(config.run_as).init(
    key, one, one, at, at[None] == 0, method='text'
  )
  head = jnp.zeros((config.vocab, config.verifier.width))
  return {**made['params'], 'head': head}


def initial_from_verifier(
  config: TrainedConfig, key: jax.Array, verifier
) -> dict[str, Any]:
  """Returns parameters whose layer is the verifier's last one.

  It goes by the fused state, which starts as the highest of those that are
  read; what it makes of the token is new.
  """
  params = initial(config, key)
  c, verifier = config.verifier, layer_lib.parted(config.verifier, verifier)
  layer = transformer.layer_params(verifier, c.layers - 1)
  number = lambda x: jnp.asarray(x, jnp.float32)
  own, copied = params['layer_0'], ('output', 'gate', 'up', 'down')
  own |= {name: number(layer[name]) for name in copied}
  for name in layer_lib.GROUPS[0]:
    own[name] = own[name].at[:, c.width :].set(number(layer[name]))
  own['hidden_norm'] = number(layer['attention_norm']) + c.norm_offset
  own['mlp_norm'] = number(layer['mlp_norm']) + c.norm_offset
  params['final_norm'] = number(verifier['final_norm']) + c.norm_offset
  fuse = 0.1 * params['fuse']
  params['fuse'] = fuse.at[:, -c.width :].add(jnp.eye(c.width))
  return params


# Not a language model of its own: it is called otherwise.
networks.register(EagleConfig, Eagle, shapes)
