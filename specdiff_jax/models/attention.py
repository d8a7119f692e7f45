"""Attention: parts of one softmax over keys that lie apart, and their sum.

A part is what queries get of some keys: weights that are not normalised yet,
their sum, and the largest score. Parts of the same queries are merged by it
(log-sum-exp), so that keys need not lie in one array: a drafter's block beside
the KV cache of the text, branches beside the prefix that they share. Within a
part keys are read whole (`dense`), or chunk by chunk (`chunked`):

  scores of a chunk -> larger of the tops -> both sums faded to it -> added

so that no scores are written to memory, and chunks past the longest row are not
read. A chunk of which a query sees nothing changes no bit of its result. A third
form, `attention_kernel`, is one kernel with all that stands around it.
"""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.models import cache as cache_lib
from specdiff_jax.parallel import pin

_SCORES = 1 << 26  # bytes of scores that are made at once: half a v5e's VMEM
MASKED = -1e30  # finite, so that a query that sees nothing yields no NaN


class Part(NamedTuple):
  """What queries [B, Hkv, .., Dh] get of some keys."""

  out: jax.Array  # [B, Hkv, .., Dh] float32 sum of weights times values
  total: jax.Array  # [B, Hkv, ..] sum of weights
  top: jax.Array  # [B, Hkv, ..] the score of weight 1


class Span(NamedTuple):
  """Which slots any query sees: from the first to before the last."""

  first: jax.Array  # [] int32
  last: jax.Array  # [] int32


def span(mask: jax.Array) -> Span:
  """Returns the span of mask [B, M, S]."""
  seen, size = jnp.any(mask, axis=(0, 1)), mask.shape[-1]
  first = jnp.argmax(seen).astype(jnp.int32)
  return Span(first, size - jnp.argmax(seen[::-1]).astype(jnp.int32))


def attend(
  query: jax.Array,
  layer: cache_lib.Layer,
  mask: jax.Array,
  seen: Span | None = None,
  scale: float = 0.0,
  form: str = '',
  own: cache_lib.Layer | None = None,
) -> jax.Array:
  """Attends with grouped queries.

  Args:
    query: [B, M, H, Dh] float32.
    layer: keys and values of S slots.
    mask: [B, M, S] bool, True where a query sees a slot; M may be 1.
    seen: `span(mask)`; None where all is read, as for a gradient.
    scale: of the scores; 0 for Dh ** -0.5.
    form: see `part`.
    own: keys and values of more slots, which every query sees.

  Returns:
    [B, M, H * Dh] float32.
  """
  batch, slots, heads, head_dim = query.shape
  kv_heads = layer.kv_heads
  query = query * (scale or head_dim**-0.5)
  # Query rows of one kv head are stacked [g0m0, g0m1, .., g1m0, ..], so that
  # each (row, kv head) is one plain matmul.
  query = query.reshape(batch, slots, kv_heads, -1, head_dim)
  query = query.transpose(0, 2, 3, 1, 4)
  parts = [part(query, layer, mask[:, None, None], seen, form)]
  if own is not None:
    every = jnp.ones((1, 1, 1, 1, own.slots), bool)
    parts.append(part(query, own, every))
  out = merged(*parts).transpose(0, 3, 1, 2, 4)
  return out.reshape(batch, slots, heads * head_dim)


def part(
  query: jax.Array,
  layer: cache_lib.Layer,
  mask: jax.Array,
  seen: Span | None = None,
  form: str = '',
) -> Part:
  """Returns what queries get of a layer's keys.

  Args:
    query: [B, Hkv, .., Dh] float32, scaled.
    layer: keys and values of S slots.
    mask: broadcasts to [B, Hkv, .., S].
    seen: slots that any query sees; None reads all of them at once.
    form: 'dense' or 'chunked'; else chunks on a TPU beyond one of them, on a GPU
      beyond four, and on a CPU all at once.
  """
  if seen is None or form == 'dense':
    return dense(query, layer, mask)
  if form == 'chunked':
    return chunked(query, layer, mask, seen)
  if layer.slots <= cache_lib.CHUNK:
    return dense(query, layer, mask)
  return lax.platform_dependent(
    query, layer, mask, seen,
    cpu=lambda query, layer, mask, seen: dense(query, layer, mask),
    cuda=_on_gpu, rocm=_on_gpu, default=chunked,
  )  # fmt: skip


def _on_gpu(query, layer, mask, seen):
  # The host reads how often a loop turns there, unless that is known: without
  # command buffers over loops it would wait for the device in every layer.
  del seen
  if layer.slots <= 4 * cache_lib.CHUNK:
    return dense(query, layer, mask)
  return chunked(query, layer, mask, None)


def dense(query: jax.Array, layer: cache_lib.Layer, mask: jax.Array) -> Part:
  """Returns the part of all keys, read at once; see `part`."""
  return _part(query, *layer.whole(), mask)


def chunked(
  query: jax.Array,
  layer: cache_lib.Layer,
  mask: jax.Array,
  seen: Span | None,
) -> Part:
  """Returns the part of all keys, read chunk by chunk; see `part`.

  The last chunk is shorter where S is no multiple of it. Of many rows some are
  done at once: their scores have to stay in a chip's scratch memory.
  """
  batch = query.shape[0]
  rows = _rows_at_once(query, layer)
  if rows == batch:
    return _chunks(query, layer, mask, seen, 0)

  def some(number):
    row = number * rows
    of = [
      lax.dynamic_slice_in_dim(x, row, rows) if x.shape[0] == batch else x
      for x in (query, mask)
    ]
    return _chunks(of[0], layer, of[1], seen, row)

  parts = lax.map(some, jnp.arange(batch // rows))
  return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), parts)


def _rows_at_once(query: jax.Array, layer: cache_lib.Layer) -> int:
  """Returns the most rows, a divisor of all, whose scores of a chunk fit."""
  batch, size = query.shape[0], min(cache_lib.CHUNK, layer.slots)
  if pin.split():
    return batch
  each = 4 * size * math.prod(query.shape[1:-1])
  fitting = (n for n in range(batch, 1, -1) if batch % n == 0)
  return next((n for n in fitting if n * each <= _SCORES), 1)


def _chunks(query, layer, mask, seen, row) -> Part:
  """Returns the part of the keys of rows from `row` on."""
  size = min(cache_lib.CHUNK, layer.slots)
  whole, rest = divmod(layer.slots, size)

  def read(start, count, so_far):
    here = lax.dynamic_slice_in_dim(mask, start, count, axis=-1)
    key, value = layer.part(start, count, row, query.shape[0])
    return added(so_far, _part(query, key, value, here))

  so_far = Part(
    jnp.zeros(query.shape, jnp.float32),
    jnp.zeros(query.shape[:-1], jnp.float32),
    jnp.full(query.shape[:-1], MASKED, jnp.float32),
  )
  first, last = 0, whole
  if seen is not None:
    first, last = seen.first // size, jnp.minimum(-(-seen.last // size), whole)
  with jax.named_scope(f'trips_{whole}'):  # at most; `aot` counts them
    so_far = lax.fori_loop(
      first, last, lambda i, x: read(i * size, size, x), so_far
    )
  if not rest:
    return so_far
  # Also a loop: beside a branch that reads a fixed place, compilers laid out the
  # cache anew, and copied all of it.
  tail = 1 if seen is None else (seen.last > whole * size).astype(jnp.int32)
  with jax.named_scope('trips_1'):
    return lax.fori_loop(
      whole, whole + tail, lambda i, x: read(i * size, rest, x), so_far
    )


def added(one: Part, other: Part) -> Part:
  """Returns the part of both parts' keys."""
  top = jnp.maximum(one.top, other.top)
  fade, other_fade = jnp.exp(one.top - top), jnp.exp(other.top - top)
  return Part(
    one.out * fade[..., None] + other.out * other_fade[..., None],
    one.total * fade + other.total * other_fade,
    top,
  )


def merged(*parts: Part) -> jax.Array:
  """Returns the weighted values [B, Hkv, .., Dh] of the keys of all parts."""
  whole = parts[0]
  for one in parts[1:]:
    whole = added(whole, one)
  return whole.out / whole.total[..., None]


def _part(query, key, value, mask) -> Part:
  """Returns the part of keys and values [B, Hkv, S, Dh]."""
  rows = query.shape[:-1]
  flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
  scores = jnp.einsum(
    'bkqd,bksd->bkqs',
    flat.astype(key.dtype),
    key,
    preferred_element_type=jnp.float32,
  ).reshape(*rows, -1)
  scores = jnp.where(mask, scores, MASKED)
  top = lax.stop_gradient(scores.max(-1))
  weights = jnp.exp(scores - top[..., None])
  out = jnp.einsum(
    'bkqs,bksd->bkqd',
    weights.reshape(*flat.shape[:3], -1).astype(value.dtype),
    value,
    preferred_element_type=jnp.float32,
  ).reshape(query.shape)
  return Part(out, weights.sum(-1), top)
