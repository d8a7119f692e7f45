"""Attention of a decode cycle as one kernel a layer, for GPUs (Pallas, Triton).

  what weights made of x -> heads turned (RoPE) -> new pairs into the cache ->
  chunk by chunk: scores, tree mask, online softmax, weighted values

A GPU waits longer for the start of a kernel than a step at batch 1 takes for the
rest of it; XLA makes eight or more of this. A program handles 16 rows of what
shares a key: fewer are repeated, more are other programs', so that a row's
result does not depend on how many there are. Keys are read in parts of `CHUNK`
slots, by a program each, and what these made is added in order.

On a CPU it is interpreted, for tests.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from specdiff_jax.models import attention
from specdiff_jax.models import cache as cache_lib

ROWS = 16  # of a program: what a matrix unit takes at least
KEYS = 64  # that are read at once
MOST_ROWS = 64 * ROWS  # that share a key; of a tree of 64, but not of a prompt
MOST_PARTS = 4  # of longer caches bytes count, and not kernels


def fits(query_rows: int, layer: cache_lib.Layer) -> bool:
  """Whether so many rows of a kv head and so many slots are for the kernel."""
  parts = pl.cdiv(layer.slots, cache_lib.CHUNK)
  return query_rows <= MOST_ROWS and parts <= MOST_PARTS


def attend(
  heads: Sequence[jax.Array],
  angles: tuple[jax.Array, jax.Array],
  layer: cache_lib.Layer,
  mask: jax.Array,
  seen: attention.Span,
  scale: float,
  start: jax.Array | None = None,
  dtype: Any = jnp.float32,
) -> tuple[jax.Array, cache_lib.Layer]:
  """Attends with grouped queries to a cache and to the tokens' own keys.

  Args:
    heads: float32 queries [B, M, H, Dh], keys and values [B, M, Hkv, Dh],
      before RoPE.
    angles: its cos and sin [B, M, Dh/2].
    layer: keys and values of S slots.
    mask: [B, M, S] bool, True where a query sees a slot; M may be 1.
    seen: `attention.span(mask)`.
    scale: of the scores.
    start: [B] slots that the new pairs take, where `mask` tells who sees them;
      None: they are not kept, and every query sees them all.
    dtype: of the result.

  Returns:
    [B, M, H * Dh], and the layer, written.
  """
  run = functools.partial(
    _run,
    scale=scale,
    kept=start is not None,
    dtype=dtype,
    chunk=cache_lib.CHUNK,
  )
  if start is None:
    start = jnp.zeros(mask.shape[0], jnp.int32)
  index = jnp.zeros((), jnp.int32) if layer.index is None else layer.index
  # Of one product of merged weights XLA sees that this is all of it.
  flat = (x.reshape(*x.shape[:2], -1) for x in heads)
  joint = jnp.concatenate(list(flat), axis=-1)
  out, keys, values = lax.platform_dependent(
    joint, *angles, start, *seen, index, mask, *layer.pair,
    cuda=functools.partial(run, interpret=False),
    rocm=functools.partial(run, interpret=False),
    default=functools.partial(run, interpret=True),
  )  # fmt: skip
  return out, cache_lib.Layer(keys, values, layer.index)


@functools.partial(
  jax.jit, static_argnames=('scale', 'kept', 'dtype', 'chunk', 'interpret')
)
def _run(
  joint, cos, sin, start, first, last, index, mask, keys, values,
  *, scale, kept, dtype, chunk, interpret,
):  # fmt: skip
  batch, slots = joint.shape[:2]
  kv_heads, size, head_dim = keys.shape[-3:]
  heads = joint.shape[-1] // head_dim
  joint = joint.reshape(batch, slots, heads, head_dim)
  heads -= 2 * kv_heads
  parts = pl.cdiv(size, chunk)
  rows = (batch, parts, slots, heads)
  tiles = pl.cdiv(slots * heads // kv_heads, ROWS)
  made = [jax.ShapeDtypeStruct((*rows, head_dim), dtype)]
  if parts > 1:
    made = [jax.ShapeDtypeStruct((*rows, head_dim), jnp.float32)]
    made += 2 * [jax.ShapeDtypeStruct(rows, jnp.float32)]
  pair = (keys, values) if kept else ()
  aliases = {8 + i: len(made) + i for i in range(len(pair))}
  stored = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in pair]
  found = pl.pallas_call(
    functools.partial(
      _program, scale=scale, kept=kept, chunk=chunk, interpret=interpret
    ),
    out_shape=made + stored,
    grid=(batch, kv_heads, tiles * parts),
    input_output_aliases=aliases,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name='attention',
  )(joint, cos, sin, start, first, last, index, mask, keys, values)
  whole, pair = found[0], found[len(made) :] or (keys, values)
  if parts > 1:
    each = (attention.Part(*(x[:, i] for x in found[:3])) for i in range(parts))
    whole = attention.merged(*each).astype(dtype)
  return whole.reshape(batch, slots, -1), *pair


def _program(
  heads, cos, sin, start, first, last, index, mask, keys, values, *outs,
  scale, kept, chunk, interpret,
):  # fmt: skip
  """Attends with 16 rows of a kv head to a part of its keys."""
  row, kv_head, which = (pl.program_id(axis) for axis in range(3))
  if kept:
    *outs, keys, values = outs
  out, *sums = outs
  slots, head_dim = heads.shape[1], heads.shape[3]
  size, kv_heads = keys.shape[-2], keys.shape[-3]
  group = (heads.shape[2] - 2 * kv_heads) // kv_heads
  tiles = pl.cdiv(slots * group, ROWS)
  part = which // tiles
  # Sizes are powers of 2: what is beyond the end is what is at the beginning,
  # once more.
  depth = _arange(head_dim, 16)[None]
  inside, depth = depth < head_dim, depth % head_dim
  at = (which % tiles * ROWS + jnp.arange(ROWS)) % (slots * group)
  slot, head = at // group, kv_head * group + at % group
  where = (row, kv_head) if keys.ndim == 4 else (index[...], row, kv_head)

  def turned(slot, head):
    """Returns heads [.., Dh] after RoPE."""
    half = head_dim // 2
    other = jnp.where(depth < half, depth + half, depth - half)
    slot, head = slot[:, None], head[:, None]
    x, y = heads[row, slot, head, depth], heads[row, slot, head, other]
    c, s = (a[row, slot, depth % half] for a in (cos, sin))
    return x * c + jnp.where(depth < half, -y, y) * s

  def new(slot):
    """Returns keys and values of new tokens."""
    key = turned(slot, jnp.full_like(slot, (group * kv_heads) + kv_head))
    value_head = (group + 1) * kv_heads + kv_head
    value = heads[row, slot[:, None], value_head, depth]
    return key.astype(keys.dtype), value.astype(values.dtype)

  query = turned(slot, head) * scale
  query = jnp.where(inside, query, 0.0).astype(keys.dtype)

  def part_of(key, value, seen):
    scores = lax.dot_general(
      query, key, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen, scores, attention.MASKED)
    largest = scores.max(-1)
    weights = jnp.exp(scores - largest[:, None])
    mixed = jnp.dot(
      weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return attention.Part(mixed, weights.sum(-1), largest)

  many = min(KEYS, chunk)

  def turn(number, so_far):
    place = number * many + jnp.arange(many)
    here = jnp.minimum(place, size - 1)
    seen_by = slot if mask.shape[1] > 1 else jnp.zeros_like(slot)
    seen = mask[row, seen_by[:, None], here[None]]
    key = keys[*where, here[:, None], depth]
    value = values[*where, here[:, None], depth]
    return attention.added(so_far, part_of(key, value, seen & (place < size)))

  so_far = attention.Part(
    jnp.zeros((ROWS, depth.size), jnp.float32),
    jnp.zeros(ROWS, jnp.float32),
    jnp.full(ROWS, attention.MASKED, jnp.float32),
  )
  if kept:
    taken = _arange(slots) % slots
    key, value = new(taken)
    # As an update of a slice: what has no room is moved back.
    to = jnp.minimum(start[row], size - slots) + taken[:, None]
    keys[*where, to, depth] = key
    values[*where, to, depth] = value
    if not interpret:
      triton.debug_barrier()  # before this program's threads read them
  else:
    own = _arange(slots, 16)
    ours = (own < slots) & (part == 0)
    so_far = attention.added(
      so_far, part_of(*new(own % slots), ours[None] & (at >= 0)[:, None])
    )
  begin = jnp.maximum(first[...], part * chunk) // many
  end = jnp.minimum(last[...], (part + 1) * chunk)
  so_far = lax.fori_loop(begin, pl.cdiv(end, many), turn, so_far)
  result = so_far.out
  if sums:
    for ref, sum_of in zip(sums, so_far[1:], strict=True):
      ref[row, part, slot, head] = sum_of
  else:
    result = attention.merged(so_far).astype(out.dtype)
  out[row, part, slot[:, None], head[:, None], depth] = result


def _arange(size, least=1):
  return jnp.arange(pl.next_power_of_2(max(size, least)))
