"""The network of a one-pass masked-diffusion drafter.

A window of G masked slots is filled in one pass. Each slot starts from the
verifier's states of the last verified token, the embedding of the anchor (the
last committed token, which the verifier has not read yet) and, where the text
repeats itself, the embedding of the token that prompt lookup would copy: a
hint that the network weighs against all else. Slots see each other in both
directions and the committed text through keys and values made of the
verifier's own features (DFlash, 2602.06036): the prefix never sees the masks,
so its keys are exact in serving and shared by all windows in training.

A layer is one of the verifier's family, so that it can start as one of the
verifier's last layers whatever that has: biases, norms of heads, the RoPE of a
local layer. Only the window of a local layer is left out: what drafters see of
the context is limited elsewhere, for all layers alike.

N windows of each row are computed together: many anchors in training, one in
decoding, by the same code.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from specdiff_jax.core import ngram as ngram_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import transformer
from specdiff_jax.models import transformer_layer as layer_lib


# Root mean square of the residual stream before the last layers of SmolLM2.
_STREAM = 16.0


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
  """Sizes of a drafter; widths follow the verifier's.

  Attributes:
    gamma: G, slots of the window.
    layers: of the drafter.
    features: verifier layers (0-based outputs) that it reads; the last of
      them also starts the slots.
    trunk: hidden width of the MLP that starts the slots.
    vocab: number of tokens it can draft, the verifier's most frequent ones.
    ngram: longest match of the lookup hint; 0 for no hint.
    verifier: the verifier's own sizes.
  """

  gamma: int
  layers: int
  features: tuple[int, ...]
  trunk: int
  vocab: int
  ngram: int
  verifier: config_lib.TransformerConfig

  kind: ClassVar[str] = 'diffusion'

  def __post_init__(self):
    config_lib.require_transformer(self.verifier, 'A diffusion drafter')

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Which layers turn their heads as the verifier's local ones do."""
    return self.verifier.local_layers[-self.layers :]

  def shapes(self):
    """Returns the tree of trained parameters as shapes; `vocab` aside."""
    return jax.eval_shape(lambda: initial(self, jax.random.key(0)))


class _DrafterLayer(layer_lib.LayerParts):
  """A layer of the verifier's family over windows."""

  def context(self, x, cos, sin):
    """Maps x [..., T, E] to rotated keys and values [..., Hkv, T, Dh]."""
    return self.keys_values(self.norm(x, self.attention_norm), cos, sin)

  def __call__(self, x, context, mask, cos, sin):
    """Updates x [B, N, G, E]; mask [B, N, S] over the context."""
    h = self.norm(x, self.attention_norm)
    query = self.queries(h, cos, sin) * self.config.score_scale
    window = self.keys_values(h, cos, sin)
    return self.after(x, window_attention(query, context, window, mask))


def window_attention(query, context, window, mask):
  """Attends to the context and to the own window, under one softmax.

  Args:
    query: [B, N, G, H, Dh] float32, scaled.
    context: keys and values [B, Hkv, S, Dh], shared by the N windows.
    window: keys and values [B, N, Hkv, G, Dh].
    mask: [B, N, S] bool, what each window sees of the context.

  Returns:
    [B, N, G, H * Dh] float32.
  """
  batch, windows, slots, heads, head_dim = query.shape
  kv_heads, size = context[0].shape[1:3]
  group = heads // kv_heads
  query = query.reshape(batch, windows, slots, kv_heads, group, head_dim)
  query = query.transpose(0, 3, 1, 4, 2, 5)  # [B, Hkv, N, H/Hkv, G, Dh]
  flat = query.reshape(batch, kv_heads, -1, head_dim)
  f32 = dict(preferred_element_type=jnp.float32)
  outer = jnp.einsum(
      'bkqd,bksd->bkqs', flat.astype(context[0].dtype), context[0], **f32
  ).reshape(query.shape[:-1] + (size,))
  outer = jnp.where(mask[:, None, :, None, None], outer, -1e30)
  inner = jnp.einsum('bknrgd,bnkcd->bknrgc', query, window[0])
  top = jnp.maximum(outer.max(-1), inner.max(-1))[..., None]
  top = jax.lax.stop_gradient(top)
  outer, inner = jnp.exp(outer - top), jnp.exp(inner - top)
  total = outer.sum(-1, keepdims=True) + inner.sum(-1, keepdims=True)
  out = jnp.einsum(
      'bkqs,bksd->bkqd',
      outer.reshape(batch, kv_heads, -1, size).astype(context[1].dtype),
      context[1],
      **f32,
  ).reshape(query.shape)
  out = (out + jnp.einsum('bknrgc,bnkcd->bknrgd', inner, window[1])) / total
  out = out.transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(batch, windows, slots, heads * head_dim)


class DrafterNetwork(nn.Module):
  """Fills N windows of G slots for each row."""

  config: DrafterConfig
  param_dtype: Any = jnp.float32
  remat: bool = False  # compute each layer again on the way back

  def setup(self):
    c = self.config
    width = c.verifier.width
    matrix, ones = layers_lib.normal(), nn.initializers.ones
    zeros = nn.initializers.zeros

    def param(name, init, *shape):
      return self.param(name, init, shape, self.param_dtype)

    read = len(c.features) * width
    self.fuse = param('fuse', matrix, width, read)
    self.trunk = param('trunk', matrix, c.trunk, read + width)
    self.slot_shift = param(
        'slot_shift', nn.initializers.normal(0.5), c.gamma, c.trunk
    )
    self.slot_scale = param('slot_scale', ones, c.gamma, c.trunk)
    self.expand = param('expand', matrix, width, c.trunk)
    self.stream = param('stream', ones, width)
    if c.ngram:
      self.hint = param('hint', matrix, width, width)
      self.matched = param('matched', zeros, c.ngram + 1, width)
    layer = nn.remat(_DrafterLayer) if self.remat else _DrafterLayer
    self.layer = [
        layer(c.verifier, self.param_dtype) for _ in range(c.layers)
    ]
    final = layers_lib.initializer('final_norm', 1.0 - c.verifier.norm_offset)
    self.final_norm = param('final_norm', final, width)

  def context(self, features: jax.Array, positions: jax.Array):
    """Maps features [B, T, F, E] to keys and values of every layer."""
    h = layers_lib.dense(self._read(features), self.fuse)
    turns, kinds = self._turns(positions), self.config.local_layers
    return tuple(
        layer.context(h, *turns[local])
        for layer, local in zip(self.layer, kinds, strict=True)
    )

  def _turns(self, positions):
    """Returns (cos, sin) of global layers (False) and of local ones."""
    return {
        local: transformer.rope_of(self.config.verifier, positions, local)
        for local in sorted(set(self.config.local_layers))
    }

  def _read(self, features):
    normed = layers_lib.rms_norm(features, None, 1e-6)
    return normed.reshape(normed.shape[:-2] + (-1,))

  def __call__(self, last, anchor, hint, matched, context, mask, positions):
    """Returns the final states of all slots [B, N, G, E].

    Args:
      last: [B, N, F, E] features of the token before the anchor.
      anchor: [B, N, E] embedding of the last committed token.
      hint: [B, N, G, E] embeddings of the copied tokens.
      matched: [B, N, G] length of the lookup match, 0 for none.
      context: keys and values of each layer, [B, Hkv, S, Dh].
      mask: [B, N, S] what of the context a window sees.
      positions: [B, N, G] absolute positions of the slots.
    """
    c = self.config
    read = self._read(last)
    anchor = layers_lib.rms_norm(anchor, None, 1e-6)
    hidden = layers_lib.dense(
        jnp.concatenate([read, anchor], axis=-1), self.trunk
    )
    hidden = hidden[..., None, :] + self.slot_shift.astype(jnp.float32)
    hidden = jax.nn.silu(hidden) * self.slot_scale.astype(jnp.float32)
    x = layers_lib.dense(hidden, self.expand)
    x = x + read[..., None, -c.verifier.width :]
    if c.ngram:
      hint = layers_lib.rms_norm(hint, None, 1e-6)
      hint = layers_lib.dense(hint, self.hint)
      hint = hint + self.matched.astype(jnp.float32)[matched]
      x = x + jnp.where(matched[..., None] > 0, hint, 0.0)
    x = x * self.stream.astype(jnp.float32)
    turns = self._turns(positions)
    for layer, local, kv in zip(
        self.layer, c.local_layers, context, strict=True
    ):
      x = layer(x, kv, mask, *turns[local])
    return layers_lib.rms_norm(
        x, self.final_norm, c.verifier.norm_eps, c.verifier.norm_offset
    )


def initial(config: DrafterConfig, key: jax.Array):
  """Returns random parameters, float32."""
  c = config.verifier
  batch, windows, size = 1, 1, 1
  kv = jnp.zeros((batch, c.kv_heads, size, c.head_dim))
  network = DrafterNetwork(config)
  features = jnp.zeros((batch, size, len(config.features), c.width))

  def touch(module):
    module.context(features, jnp.zeros((batch, size), jnp.int32))
    return module(
        features,
        jnp.zeros((batch, windows, c.width)),
        jnp.zeros((batch, windows, config.gamma, c.width)),
        jnp.zeros((batch, windows, config.gamma), jnp.int32),
        ((kv, kv),) * config.layers,
        jnp.ones((batch, windows, size), bool),
        jnp.zeros((batch, windows, config.gamma), jnp.int32),
    )

  return nn.init(touch, network)(key)['params']


def initial_from_verifier(config: DrafterConfig, key: jax.Array, verifier):
  """Returns parameters whose layers are the verifier's last ones.

  The fused features start as the state that those layers read in the
  verifier, so that the keys of the context start as the verifier's own; the
  slots start at the scale that the residual stream has there, so that what
  the layers add stays in proportion.
  """
  params = initial(config, key)
  c = config.verifier
  first = c.layers - config.layers
  for i in range(config.layers):
    params[f'layer_{i}'] = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32),
        dict(transformer.layer_params(verifier, first + i)),
    )
  params['stream'] = _STREAM * params['stream']
  params['final_norm'] = jnp.asarray(verifier['final_norm'], jnp.float32)
  if first - 1 in config.features:
    at = config.features.index(first - 1) * c.width
    fuse = 0.1 * params['fuse']
    params['fuse'] = fuse.at[:, at : at + c.width].add(jnp.eye(c.width))
  return params


def hints(
    config: DrafterConfig, tokens: jax.Array, anchors: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what lookup would copy after each anchor.

  Args:
    config: for gamma and ngram.
    tokens: [B, T].
    anchors: [B, N] index of the last committed token of each window.

  Returns:
    Tokens [B, N, G] and match lengths [B, N].
  """
  if not config.ngram:
    zeros = jnp.zeros(anchors.shape, jnp.int32)
    return jnp.zeros(anchors.shape + (config.gamma,), jnp.int32), zeros

  def one(tokens, anchor):
    return ngram_lib.continuation(
        tokens, anchor + 1, config.gamma, config.ngram
    )

  return jax.vmap(jax.vmap(one, (None, 0)))(tokens, anchors)


def fill(
    config: DrafterConfig,
    params,
    embed: jax.Array,
    tokens: jax.Array,
    anchors: jax.Array,
    last: jax.Array,
    context: Sequence[tuple[jax.Array, jax.Array]],
    first: jax.Array | None = None,
    revealed: tuple[jax.Array, jax.Array] | None = None,
    remat: bool = False,
) -> jax.Array:
  """Returns the final states [B, N, G, E] of the windows after the anchors.

  One function for training and serving. Multiplied with rows of the
  verifier's head they give the logits of each slot.

  Args:
    config: sizes.
    params: of `DrafterNetwork`.
    embed: [V, E] the verifier's embedding.
    tokens: [B, T] committed tokens.
    anchors: [B, N].
    last: [B, N, F, E] features of the token before each anchor.
    context: keys and values of each layer; a window sees those before its
      anchor.
    first: [B] position of the context's first key; by default 0.
    revealed: which slots are decided already, [B, N, G] bool, and their tokens
      [B, N, G]. A decided slot takes the place of the longest lookup match.
    remat: see `DrafterNetwork`.
  """
  copied, matched = hints(config, tokens, anchors)
  matched = jnp.broadcast_to(matched[..., None], copied.shape)
  if revealed is not None:
    decided, token = revealed
    copied = jnp.where(decided, token, copied)
    matched = jnp.where(decided, config.ngram, matched)
  anchor_token = jnp.take_along_axis(tokens, anchors, axis=1)
  size = context[0][0].shape[2]
  index = jnp.arange(size)[None]
  index = index if first is None else first[:, None] + index
  mask = index[:, None] < anchors[..., None]
  positions = anchors[..., None] + 1 + jnp.arange(config.gamma)
  return DrafterNetwork(config, remat=remat).apply(
      {'params': params},
      last,
      layers_lib.lookup(embed, anchor_token),
      layers_lib.lookup(embed, copied),
      matched,
      context,
      mask,
      positions,
  )


def windows(
    config: DrafterConfig,
    params,
    embed: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    features: jax.Array,
    anchors: jax.Array,
) -> jax.Array:
  """Returns logits [B, N, G, vocab] of many windows of one pass (training).

  As `window_states`, times `head` [vocab, E]: the rows of the verifier's head
  that can be drafted.
  """
  x = window_states(config, params, embed, tokens, features, anchors)
  return layers_lib.dense(x, head)


def window_states(
    config: DrafterConfig,
    params,
    embed: jax.Array,
    tokens: jax.Array,
    features: jax.Array,
    anchors: jax.Array,
    revealed: tuple[jax.Array, jax.Array] | None = None,
    remat: bool = False,
) -> jax.Array:
  """Returns the final states [B, N, G, E] of many windows of one pass.

  Args:
    config: sizes.
    params: of `DrafterNetwork`.
    embed: [V, E] the verifier's embedding.
    tokens: [B, T].
    features: [B, T, F, E] of the verifier over these tokens.
    anchors: [B, N], each >= 1.
    revealed: slots that are decided already; see `fill`.
    remat: see `DrafterNetwork`.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  context = DrafterNetwork(config).apply(
      {'params': params}, features, positions, method='context'
  )
  last = jax.vmap(lambda f, a: f[a])(features, jnp.maximum(anchors - 1, 0))
  return fill(
      config, params, embed, tokens, anchors, last, context,
      revealed=revealed, remat=remat,
  )  # fmt: skip
