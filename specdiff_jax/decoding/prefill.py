"""Prompts of any length, read chunk by chunk.

A chunk sees itself and what was read before it, so that nothing of the size of
a prompt is held but its KV cache, and what a chunk sees of it; what a drafter
makes of the verifier's features it makes of each chunk. Chunks past the longest
prompt are not read.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import chunks as chunks_lib
from specdiff_jax.core import protocols
from specdiff_jax.core import types

CHUNK = 1024  # tokens of each row that are read at once


def read(
  verifier: protocols.Verifier,
  params: types.Params,
  prompt: types.Prompt,
  carry: Any,
  features: tuple[int, ...] = (),
  take: Callable[[Any, Any, jax.Array | None, jax.Array], Any] | None = None,
) -> tuple[jax.Array, Any]:
  """Reads prompts [B, P] into a cache.

  Args:
    verifier: what reads.
    params: of the verifier.
    prompt: lengths are at least 1.
    carry: the verifier's cache; or, with `take`, what has it as `cache`.
    features: layers whose outputs are wanted.
    take: (carry, cache, features [B, C, F, E], start [B]) -> carry, after each
      chunk of C tokens from `start` on.

  Returns:
    Logits [B, 1, V] after each prompt, and the carry.
  """
  batch, length = prompt.tokens.shape
  size = min(CHUNK, length)

  def chunk(number, so_far):
    last, carry = so_far
    # The last chunk may begin earlier and read some tokens again.
    start = jnp.minimum(number * size, length - size)
    states, cache, taken = verifier.read(
      params,
      carry.cache if take else carry,
      prompt,
      start,
      size,
      features,
    )
    last = chunks_lib.last(last, states, prompt.length - 1 - start)
    if not take:
      return last, cache
    starts = jnp.broadcast_to(start, (batch,))
    return last, take(carry, cache, taken, starts)

  begun = jnp.zeros((batch, verifier.width), jnp.float32), carry
  if size == length:
    last, carry = chunk(0, begun)
  else:
    chunks = -(-jnp.max(prompt.length) // size)
    with jax.named_scope(f'trips_{-(-length // size)}'):  # at most, for `aot`
      last, carry = lax.fori_loop(0, chunks, chunk, begun)
  return verifier.head(params, last[:, None]), carry
