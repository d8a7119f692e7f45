"""How much the verifier's logits move with the shape of its passes.

The verifier reads the same texts twice, each time with prefill and a cache of
its own: once as plain decoding does, a token a pass, and once in passes as wide
as a drafted system's, along a chain. So the difference holds all that differs
between the two ways of decoding: the matmuls' shapes and the cache's contents.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.models import transformer

_NEAR = 10.0  # nats behind the best: less likely tokens do not come into play


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def read(model, dtype, bucket, widths, params, tokens, prompt, length, at):
  """Reads texts twice, in passes of each of two widths.

  Args:
    model: the verifier.
    dtype: of its caches.
    bucket: P, tokens that prefill reads.
    widths: slots of a pass of plain decoding (of which one counts), and of the
      system (of which all do: a chain of the text's own tokens).
    params: the verifier's.
    tokens: [B, T] prompts and completions from the left.
    prompt: [B] prompt lengths.
    length: [B] lengths of the whole.
    at: [B] places of tokens.

  Returns:
    [B] the largest change of a margin: of a likely token's logit less the
    best one's, where they choose a token of the completion; and [B, V] the
    first reading's logits that choose token `at`.
  """
  plain, drafted = widths

  def score(cache, start, take, width):
    """Reads tokens start + take, `width` of them: logits [B, width, V]."""
    place = jnp.minimum(start[:, None] + take, tokens.shape[1] - 1)
    tree = tree_lib.chain(
        jnp.take_along_axis(tokens, place, axis=1),
        jnp.ones(place.shape, bool),
    )
    slots = jax.tree.leaves(cache)[0].shape[-2]
    mask = tree_lib.cache_mask(tree, start + 1, slots)
    hidden, cache, _ = model.apply(
        {'params': params},
        tree.token,
        start[:, None] + jnp.arange(width),
        mask,
        cache,
        start,
    )
    return model.apply({'params': params}, hidden, method='logits'), cache

  def step(cache, start):
    logits, cache = score(cache, start, jnp.zeros(plain, jnp.int32), plain)
    return cache, logits[:, 0]

  def look(one, other, place, moved, found):
    """Takes in logits [B, N, V] that choose the tokens at `place` [B, N]."""
    counts = (place >= prompt[:, None]) & (place < length[:, None])
    best = jnp.argmax(one, axis=-1, keepdims=True)
    behind = one - jnp.take_along_axis(one, best, axis=-1)
    change = behind - (other - jnp.take_along_axis(other, best, axis=-1))
    likely = ~(behind < -_NEAR)  # a NaN counts
    move = jnp.max(jnp.where(likely, jnp.abs(change), 0), axis=-1)
    move = jnp.where(counts, move, 0)
    here = (place == at[:, None])[..., None]
    found = found + jnp.sum(jnp.where(here, one, 0), axis=1)
    return jnp.maximum(moved, jnp.max(move, axis=1)), found

  def chunk(number, carry):
    caches, moved, found = carry
    start = prompt + number * drafted
    offsets = jnp.arange(drafted)
    cache, one = lax.scan(step, caches[0], start + offsets[:, None])
    other, wide = score(caches[1], start, offsets, drafted)
    one = jnp.swapaxes(one, 0, 1)
    place = start[:, None] + 1 + offsets
    return ((cache, wide), *look(one, other, place, moved, found))

  begun = [_prefill(model, dtype, bucket, w, params, tokens, prompt)
           for w in widths]
  caches = tuple(cache for _, cache in begun)
  (one, _), (other, _) = begun
  batch, vocab = one.shape[0], one.shape[-1]
  carry = look(
      one, other, prompt[:, None], jnp.zeros(batch), jnp.zeros((batch, vocab))
  )
  chunks = jnp.max(-(-(length - prompt) // drafted))
  _, moved, found = lax.fori_loop(0, chunks, chunk, (caches, *carry))
  return moved, found


def _prefill(model, dtype, bucket, width, params, tokens, prompt):
  """Reads prompts as the engine does: logits [B, 1, V] and the cache."""
  batch, size = tokens.shape
  cache = transformer.empty_cache(model.config, batch, size + width, dtype)
  mask = transformer.causal_mask(prompt, bucket)
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, size + width - bucket)))
  hidden, cache, _ = model.apply(
      {'params': params},
      tokens[:, :bucket],
      jnp.broadcast_to(jnp.arange(bucket), (batch, bucket)),
      mask,
      cache,
      jnp.zeros_like(prompt),
  )
  last = hidden[jnp.arange(batch), prompt - 1][:, None]
  return model.apply({'params': params}, last, method='logits'), cache
