"""What a diffusion drafter makes of windows of a text, by `network`.

N windows of each row are computed together: many anchors in training, one in
decoding, by the same code.
"""

from collections.abc import Callable, Sequence
import functools

import chex
import jax
import jax.numpy as jnp

from specdiff_jax.core import ngram as ngram_lib
from specdiff_jax.drafters.diffusion import network as drafter_network
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks


def hints(
  config: drafter_network.DrafterConfig, tokens: jax.Array, anchors: jax.Array
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
  config: drafter_network.DrafterConfig,
  params,
  embed: Callable[[jax.Array], jax.Array],
  tokens: jax.Array,
  anchors: jax.Array,
  last: jax.Array,
  context: Sequence[tuple[jax.Array, jax.Array]],
  first: jax.Array | None = None,
  revealed: tuple[jax.Array, jax.Array] | None = None,
  remat: bool = False,
  serving: bool = False,
) -> jax.Array:
  """Returns the final states [B, N, G, E] of the windows after the anchors.

  One function for training and serving. Multiplied with rows of the
  verifier's head they give the logits of each slot.

  Args:
    config: sizes.
    params: of `drafter_network.DrafterNetwork`.
    embed: the verifier's embeddings [..., E] of tokens [...].
    tokens: [B, T] committed tokens.
    anchors: [B, N].
    last: [B, N, F, E] features of the token before each anchor.
    context: keys and values of each layer; a window sees those before its
      anchor.
    first: [B] position of the context's first key; by default 0.
    revealed: which slots are decided already, [B, N, G] bool, and their tokens
      [B, N, G]. A decided slot takes the place of the longest lookup match.
    remat: see `drafter_network.DrafterNetwork`.
    serving: whether there is no gradient.
  """
  chex.assert_rank([tokens, anchors, last], [2, 2, 4])
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
  return networks.apply(
    drafter_network.DrafterNetwork(config, remat=remat),
    params,
    last,
    embed(anchor_token),
    embed(copied),
    matched,
    context,
    mask,
    positions,
    serving,
  )


def window_states(
  config: drafter_network.DrafterConfig,
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
    params: of `drafter_network.DrafterNetwork`.
    embed: [V, E] the verifier's embedding.
    tokens: [B, T].
    features: [B, T, F, E] of the verifier over these tokens.
    anchors: [B, N], each >= 1.
    revealed: slots that are decided already; see `fill`.
    remat: see `drafter_network.DrafterNetwork`.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  context = networks.apply(
      drafter_network.DrafterNetwork(config), params, features, positions,
      method='context',
  )  # fmt: skip
  last = jax.vmap(lambda f, a: f[a])(features, jnp.maximum(anchors - 1, 0))
  return fill(
      config, params, functools.partial(layers_lib.lookup, embed), tokens,
      anchors, last, context,
      revealed=revealed, remat=remat,
  )  # fmt: skip
