"""How much the verifier's logits move with the shape of its passes.

The verifier reads the same texts twice, each time with prefill and a cache of
its own: once as plain decoding does, a token a pass, and once in passes as wide
as a drafted system's, along the last branch of a tree. So the difference holds
all that differs between the two ways of decoding: the matmuls' shapes, the
cache's contents, and where a branch's keys lie while it is scored, which is not
where plain decoding has them: attention adds them up in another order.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import protocols
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import prefill as prefill_lib

_NEAR = 10.0  # nats behind the best: less likely tokens do not come into play


class Passes(NamedTuple):
  """The shapes of the verifier's passes in two ways of decoding."""

  plain: int  # slots of plain decoding's, of which the first counts
  drafted: int  # slots of the system's
  depth: int  # of the branch in its last slots; in a chain these are all


def passes(plain: int, drafter: protocols.Drafter) -> Passes:
  """Returns those of plain decoding in `plain` slots, and of a system."""
  slots = drafter.buckets[-1]
  # In a tree a branch lies behind another one's slots, if only one of them.
  room = slots - 1 if drafter.chain else max(1, slots - 2)
  return Passes(plain, slots, min(drafter.max_depth, room))


def branch(token: jax.Array, slots: int) -> tuple[types.DraftTree, jax.Array]:
  """Returns a tree that ends in a branch, and the branch's path [B, D+1].

  Slots between the root and the branch repeat the root as its children: they
  only take up room, like the branches that are not accepted.

  Args:
    token: [B, D+1] the root and the branch.
    slots: M, at least D+1.
  """
  depth = token.shape[1] - 1
  gap = slots - 1 - depth
  tree = tree_lib.chain(
    jnp.concatenate([jnp.repeat(token[:, :1], gap + 1, 1), token[:, 1:]], 1),
    jnp.ones((token.shape[0], slots), bool),
  )
  slot = jnp.arange(slots)
  below = slot <= gap + 1  # the root's children
  tree = tree.replace(
    parent=jnp.where(below, 0, tree.parent),
    depth=jnp.where(below, jnp.minimum(slot, 1), tree.depth - gap),
    ancestors=None,
  )
  path = jnp.where(jnp.arange(depth + 1) == 0, 0, jnp.arange(depth + 1) + gap)
  return tree, jnp.broadcast_to(path, token.shape)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def read(verifier, bucket, ways, params, tokens, prompt, length, at):
  """Reads texts twice, in each of two ways.

  Args:
    verifier: the strategy.
    bucket: P, tokens that prefill reads.
    ways: the two ways, `Passes`.
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
  size = ways.depth + 1  # tokens that a pass of the system reads

  def score(cache, start, count, width):
    """Reads `count` tokens from `start` [B] on: logits [B, count, V]."""
    place = start[:, None] + jnp.arange(count)
    place = jnp.minimum(place, tokens.shape[1] - 1)
    tree, path = branch(jnp.take_along_axis(tokens, place, axis=1), width)
    logits, cache, _ = verifier.score(params, cache, tree, start + 1, ())
    verdict = types.Verdict(path, path[:, -1], path[:, -1])
    cache = verifier.commit(cache, tree, verdict, start + 1, chain=False)
    return jnp.take_along_axis(logits, path[..., None], axis=1), cache

  def step(cache, start):
    logits, cache = score(cache, start, 1, ways.plain)
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
    start = prompt + number * size
    offsets = jnp.arange(size)
    cache, one = lax.scan(step, caches[0], start + offsets[:, None])
    other, wide = score(caches[1], start, size, ways.drafted)
    one = jnp.swapaxes(one, 0, 1)
    place = start[:, None] + 1 + offsets
    return ((cache, wide), *look(one, other, place, moved, found))

  def prefill(width):
    asked = types.Prompt(tokens[:, :bucket], prompt)
    cache = verifier.empty(tokens.shape[0], tokens.shape[1] + width)
    return prefill_lib.read(verifier, params, asked, cache)

  (one, cache), (other, wide) = (prefill(width) for width in ways[:2])
  batch, vocab = one.shape[0], one.shape[-1]
  carry = look(
    one, other, prompt[:, None], jnp.zeros(batch), jnp.zeros((batch, vocab))
  )
  chunks = jnp.max(-(-(length - prompt) // size))
  _, moved, found = lax.fori_loop(0, chunks, chunk, ((cache, wide), *carry))
  return moved, found
