"""The network of DFlash drafters (2602.06036), as z-lab publishes them.

A few Qwen3-like layers fill a block: the last committed token and masks, which
see each other. Beside the block's own keys and values each layer has those of
the verified text, made of the verifier's hidden states: the same fused state
for all layers, mapped by each layer's own weights. Embedding and head are the
verifier's. A slot is predicted by the output at its own position.

DFlash 2 puts a convolution around attention and MLP, over the slots of a block
alone; in DSpark's blocks the committed token's own output is the first draft.

N blocks of a row are computed together over one context: many anchors in
training, branches of one draft (`d2sd`), a single block in decoding.
"""

from collections.abc import Sequence
import dataclasses
import math
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

_MOST_BLOCK = 1024  # a file must not ask for more work than any drafter


@dataclasses.dataclass(frozen=True)
class DFlashConfig:
  """A DFlash drafter; raises InputError on impossible values.

  Attributes:
    network: the sizes of its layers; vocab_size and width are the verifier's.
      In its local layers a slot sees the `window` tokens that end with it, and
      none behind it.
    features: verifier layers whose outputs it reads, 0-based.
    block: slots of a block, the last committed token among them.
    mask_id: the verifier's id whose embedding stands for what is not known.
    verifier_layers: how many the verifier has; 0 where that is not told.
    taps: slots that a convolution reads, itself and those before; 0: none.
    group: channels that share what a convolution adds by its input.
    from_anchor: whether the first slot's output is a draft: slot k is then
      predicted by the output before it.
    head: a `heads.Head` whose tensors lie beside those of the network, which
      does not read them.
  """

  network: config_lib.TransformerConfig
  features: tuple[int, ...]
  block: int
  mask_id: int
  verifier_layers: int = 0
  taps: int = 0
  group: int = 16
  from_anchor: bool = False
  head: Any = None

  def __post_init__(self):
    config_lib.check_type('DFlashConfig', 'block', int, self.block)
    if self.taps and (
      self.taps > self.block or self.network.width % self.group
    ):
      raise errors.InputError(
        f'the convolutions of a DFlash drafter have {self.taps} taps and groups '
        f'of {self.group} channels, but a block has {self.block} slots and '
        f'{self.network.width} channels; correct conv_kernel_size or '
        'conv_group_size in its config.json.'
      )
    if not 2 <= self.block <= _MOST_BLOCK or not self.features:
      raise errors.InputError(
        f'a DFlash drafter has a block of {self.block} slots and reads the '
        f'layers {self.features} of the verifier, but it needs 2 to '
        f'{_MOST_BLOCK} and at least 1; correct block_size or dflash_config '
        'in its config.json.'
      )
    ids = range(self.network.vocab_size)
    if self.mask_id not in ids:
      raise errors.InputError(
        f'the mask token of a DFlash drafter has the id {self.mask_id}, but '
        f'its vocabulary has the ids 0 to {ids[-1]}; correct '
        'dflash_config.mask_token_id in its config.json.'
      )

  @property
  def layers(self) -> int:
    return self.network.layers

  @property
  def gamma(self) -> int:
    """Tokens that a block drafts."""
    return self.block - self.first

  @property
  def first(self) -> int:
    """The first slot whose output is a draft."""
    return 0 if self.from_anchor else 1


@dataclasses.dataclass(frozen=True)
class TrainedConfig:
  """Sizes of one that is trained here; widths follow the verifier's.

  Attributes:
    gamma: tokens that a block drafts.
    layers: of the drafter.
    features: verifier layers (0-based outputs) that it reads.
    mask_id: token that stands for what is not known.
    vocab: number of tokens it can draft, the verifier's most frequent ones.
    window: tokens that a slot of its layers sees; 0 for all of them.
    verifier: the verifier's own sizes.
    taps: of its convolutions; 0: it has none.
    from_anchor: 1 where the committed token's output is the first draft.
  """

  gamma: int
  layers: int
  features: tuple[int, ...]
  mask_id: int
  vocab: int
  window: int
  verifier: config_lib.TransformerConfig
  taps: int = 0
  from_anchor: int = 0

  kind: ClassVar[str] = 'dflash'
  may_be_zero: ClassVar[tuple[str, ...]] = (
      'mask_id', 'window', 'taps', 'from_anchor',
  )  # fmt: skip

  def __post_init__(self):
    config_lib.require_transformer(self.verifier, 'A DFlash drafter')
    _ = self.run_as  # raises InputError on an impossible mask token

  @property
  def run_as(self) -> DFlashConfig:
    """Its network, whose layers are Qwen3's whatever the verifier's are."""
    c = self.verifier
    network = config_lib.TransformerConfig(
      c.vocab_size, c.width, self.layers, c.heads, c.kv_heads, c.head_dim,
      c.mlp_width, c.rope_base, c.norm_eps, max_positions=c.max_positions,
      qk_norm=True, window=self.window, rope_scaling=c.rope_scaling,
    )  # fmt: skip
    return DFlashConfig(
      network, self.features, self.gamma + 1 - self.from_anchor, self.mask_id,
      c.layers, self.taps, math.gcd(16, c.width) if self.taps else 16,
      bool(self.from_anchor),
    )  # fmt: skip

  def shapes(self):
    """Returns the tree of trained parameters as shapes."""
    return jax.eval_shape(lambda: initial(self, jax_settings.key(0)))


def published_features(layers: int, count: int = 5) -> tuple[int, ...]:
  """Returns the layers that published drafters read of a verifier's.

  `count` of them, evenly from the second to the last but two, or fewer where
  these are not different; a single one is that in the middle.

  Example: published_features(36) == (1, 9, 17, 25, 33)
  """
  count = max(1, min(count, layers - 3))
  if count == 1:
    return (layers // 2,)
  return tuple(round(1 + i * (layers - 4) / (count - 1)) for i in range(count))


def shapes(config: DFlashConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  layer = layer_lib.shapes(config.network) | _conv_shapes(config)
  network = layers_lib.layered(_top_shapes(config), layer, config.layers)
  head = config.head.shapes() if config.head else {}
  return network | {f'head.{name}': leaf.shape for name, leaf in head.items()}


def _conv_shapes(config: DFlashConfig) -> layers_lib.Shapes:
  width, taps = config.network.width, config.taps
  return {
    f'{name}{kind}': shape
    for name in ('attention_conv', 'mlp_conv')
    for kind, shape in (
      ('', (2, taps, width)),  # before and after
      ('_map', (2 * taps * width // config.group, width)),
    )
    if taps
  }


def _top_shapes(config: DFlashConfig) -> layers_lib.Shapes:
  width = config.network.width
  return {
    'fuse': (width, len(config.features) * width),
    'context_norm': (width,),
    'final_norm': (width,),
  }


class Layer(layer_lib.LayerParts):
  """One layer, whose queries also see keys that the blocks do not have."""

  convolutions: Any = None  # their shapes

  def setup(self):
    super().setup()
    layers_lib.make_params(self, self.convolutions or {}, self.param_dtype)

  def __call__(self, x, context, mask, seen, own, cos, sin):
    """Returns x [B, N, M, E]; the rest is that of `window_attention`."""
    h = self.norm(x, self.attention_norm)
    h, finish = self._convolved('attention_conv', h)
    out = self._attended(h, context, mask, seen, own, cos, sin)
    x = x + finish(self.attention_output(out))
    h, finish = self._convolved('mlp_conv', self.norm(x, self.mlp_norm))
    return x + finish(self.mlp(h))

  def _attended(self, h, context, mask, seen, own, cos, sin):
    if h.shape[1] == 1 and own is None:
      view = views.View(cos[:, 0], sin[:, 0], mask[:, 0], seen)
      found = self.attended(h[:, 0], cache_lib.Layer(*context), view)
      if found:
        return found[0][:, None]
    query, *block = self.queries_keys_values(h, cos, sin)
    query = query * self.config.score_scale
    return window_layer.window_attention(query, context, block, mask, seen, own)

  def _convolved(self, name, h):
    """Returns normed h [B, N, M, E] convolved, and what convolves the output.

    Both by weights of their own, to which the same map of h adds.
    """
    if not self.convolutions:
      return h, lambda out: out
    weight = getattr(self, name)  # [2, taps, E]
    added = layers_lib.dense(h, getattr(self, f'{name}_map'))
    added = added.reshape(*h.shape[:-1], *weight.shape[:2], -1)
    group = h.shape[-1] // added.shape[-1]
    kernels = weight + jnp.repeat(added, group, axis=-1)
    return (
      convolution(h, kernels[..., 0, :, :]),
      lambda out: convolution(out, kernels[..., 1, :, :]),
    )


def convolution(x: jax.Array, kernels: jax.Array) -> jax.Array:
  """Returns sum_t kernels[.., i, t, :] x[.., i - t, :] for each slot i.

  Args:
    x: [.., M, E]; before its first slot there are zeros.
    kernels: [.., M, taps, E].
  """
  size, room = x.shape[-2], [(0, 0)] * (x.ndim - 2)
  total = jnp.zeros(())
  for tap in range(kernels.shape[-2]):
    before = jnp.pad(x, [*room, (tap, 0), (0, 0)])[..., :size, :]
    total = total + kernels[..., tap, :] * before
  return total


class DFlash(nn.Module):
  """Makes keys of hidden states (`context`), and fills blocks."""

  config: DFlashConfig
  param_dtype: Any = jnp.float32
  remat: bool = False  # compute each layer again on the way back

  def setup(self):
    layers_lib.make_params(self, _top_shapes(self.config), self.param_dtype)
    network = self.config.network
    layer = nn.remat(Layer) if self.remat else Layer
    self.layer = [
      layer(network, self.param_dtype, _conv_shapes(self.config))
      for _ in range(network.layers)
    ]

  def context(
    self, features: jax.Array, positions: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns each layer's (keys, values) [B, Hkv, T, Dh] of verified tokens.

    Args:
      features: [B, T, F, E] outputs of the verifier's layers.
      positions: [B, T].
    """
    chex.assert_rank([features, positions], [4, 2])
    network = self.config.network
    joined = features.reshape(features.shape[:2] + (-1,))
    fused = layers_lib.dense(joined, self.fuse)
    h = layers_lib.rms_norm(fused, self.context_norm, network.norm_eps)
    cos, sin = views.rope_of(network, positions, local=False)
    return tuple(layer.keys_values(h, cos, sin) for layer in self.layer)

  def __call__(
    self,
    x: jax.Array,
    anchors: jax.Array,
    context: Sequence[tuple[jax.Array, jax.Array]],
    serving: bool = False,
  ) -> jax.Array:
    """Returns the final states [B, N, M, E] of blocks.

    A block sees itself, and of the context what lies before its anchor.

    Args:
      x: [B, N, M, E] embedded tokens of blocks.
      anchors: [B, N] position of the first token of each.
      context: keys and values of each layer, each [B, Hkv, S, Dh], from
        position 0 on.
      serving: whether there is no gradient: what no block sees is not read.
    """
    chex.assert_rank([x, anchors], [4, 2])
    network, size = self.config.network, x.shape[2]
    positions = anchors[..., None] + jnp.arange(size)
    cos, sin = views.rope_of(network, positions, local=False)
    index = jnp.arange(context[0][0].shape[2])
    before = index < anchors[..., None, None]  # [B, N, 1, S]
    masks: dict[bool, Any] = {False: (before, None)}
    if network.window:
      near = index > positions[..., None] - network.window
      # Slots are near each other but in windows shorter than the block.
      apart = jnp.arange(size)[:, None] - jnp.arange(size)
      masks[True] = before & near, (apart >= 0) & (apart < network.window)
    seen = attention.span(before[:, :, 0]) if serving else None
    view = jax.lax.optimization_barrier((cos, sin, masks, seen))
    cos, sin, masks, seen = view
    for layer, local, keys in zip(
      self.layer, network.local_layers, context, strict=True
    ):
      mask, own = masks[local]
      x = layer(x, keys, mask, seen, own, cos, sin)
    return layers_lib.rms_norm(x, self.final_norm, network.norm_eps)


def initial(config: TrainedConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random parameters, float32."""
  read = jnp.zeros((1, 1, len(config.features), config.verifier.width))
  made: Any = DFlash(config.run_as).init(
    key, read, jnp.zeros((1, 1), jnp.int32), method='context'
  )
  params = made['params']
  for i in range(config.layers):
    # What changes nothing: the slot itself.
    params[f'layer_{i}'] |= {
      name: jnp.zeros(shape).at[:, :1].set(0.0 if '_map' in name else 1.0)
      for name, shape in _conv_shapes(config.run_as).items()
    }
  return params


def initial_from_verifier(
  config: TrainedConfig, key: jax.Array, verifier
) -> dict[str, Any]:
  """Returns parameters whose layers are the verifier's last ones.

  The fused features start as the state nearest to what those layers read there,
  under the mean of their norms, so that keys of the context start near the
  verifier's own. What the verifier's layers lack, or have besides, is new, or
  left out.
  """
  params = initial(config, key)
  c, verifier = config.verifier, layer_lib.parted(config.verifier, verifier)
  number = lambda x: jnp.asarray(x, jnp.float32)
  first = c.layers - config.layers
  for i in range(config.layers):
    layer = transformer.layer_params(verifier, first + i)
    for name, own in params[f'layer_{i}'].items():
      offset = c.norm_offset if name.endswith('norm') else 0.0
      params[f'layer_{i}'][name] = (
        number(layer[name]) + offset if name in layer else own
      )
  params['final_norm'] = number(verifier['final_norm']) + c.norm_offset
  norms = [params[f'layer_{i}']['attention_norm'] for i in range(config.layers)]
  params['context_norm'] = sum(norms) / len(norms)
  near = min(config.features, key=lambda layer: abs(layer - first + 1))
  at = config.features.index(near) * c.width
  fuse = 0.1 * params['fuse']
  params['fuse'] = fuse.at[:, at : at + c.width].add(jnp.eye(c.width))
  return params


# Not a language model of its own: it is called otherwise.
networks.register(DFlashConfig, DFlash, shapes)
