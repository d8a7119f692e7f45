"""An n-gram model over token ids, in the back-off form, on the device.

Level n holds the n-grams as (entry of the first n - 1 tokens at level n - 1,
last token), so that an id of any size fits 32 bits. The entry of a pair is found
by a hash table of static shape: its buckets are runs of a few entries, all of
which are compared, so that a pair is found exactly or not at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors

_BUCKET = 8  # entries that a look-up compares
_MOST_BITS = 28  # of the number of buckets
_MISSING = -1  # an entry that is not there


class Level(NamedTuple):
  """The n-grams of one order, on the host.

  Attributes:
    parent: [N] entry of the first n - 1 tokens, at the level below; at the
      lowest level 0.
    token: [N] int32 the last token; at the lowest level all ids, in order, and
      after them the mark of a text's begin.
    log_p: [N] float32 log-probability of the last token after the others;
      -inf of n-grams that are contexts alone.
    backoff: [N] float32 what is added where a longer n-gram is not there.
  """

  parent: np.ndarray
  token: np.ndarray
  log_p: np.ndarray
  backoff: np.ndarray


class Hashed(flax.struct.PyTreeNode):
  """A level from 2 on, by buckets."""

  first: jax.Array  # [H] int32 where each bucket begins
  parent: jax.Array  # [N + 8] int32, in the order of buckets
  token: jax.Array  # [N + 8] int32
  entry: jax.Array  # [N + 8] int32 which entry of the level it is
  log_p: jax.Array  # [N] float32
  backoff: jax.Array  # [N] float32


class Tables(flax.struct.PyTreeNode):
  """What `log_probabilities` reads."""

  log_p: jax.Array  # [V + 1] float32 of single tokens
  backoff: jax.Array  # [V + 1] float32
  longer: tuple[Hashed, ...]  # of 2, 3, ... tokens

  @property
  def order(self) -> int:
    """Tokens of the longest n-grams."""
    return 1 + len(self.longer)


def tables(levels: Sequence[Level]) -> Tables:
  """Returns the arrays of a model for the device."""
  lowest = levels[0]
  return Tables(
    log_p=jnp.asarray(lowest.log_p),
    backoff=jnp.asarray(lowest.backoff),
    longer=tuple(map(_hashed, levels[1:])),
  )


def _hashed(level: Level) -> Hashed:
  bits = max(level.token.size, 1).bit_length()
  while True:
    place = np.asarray(_hash(level.parent, level.token, np)) >> (32 - bits)
    count = np.bincount(place, minlength=1 << bits)
    if count.max() <= _BUCKET:
      break
    bits += 1
    if bits > _MOST_BITS:  # n-grams that were chosen for it
      raise errors.InputError(
        f'{_BUCKET + 1} n-grams of the model cannot be told apart by their '
        'hashes, as those of no text are; fit it again.'
      )
  order = np.argsort(place, kind='stable')
  spare = (0, _BUCKET)  # a bucket at the end is read past it
  pad = lambda x: jnp.asarray(np.pad(x, spare, constant_values=_MISSING))
  # Of an order without n-grams there is still something to read.
  some = lambda x: jnp.asarray(np.pad(x, (0, not x.size)))
  return Hashed(
    first=jnp.asarray((np.cumsum(count) - count).astype(np.int32)),
    parent=pad(level.parent[order].astype(np.int32)),
    token=pad(level.token[order].astype(np.int32)),
    entry=pad(order.astype(np.int32)),
    log_p=some(level.log_p),
    backoff=some(level.backoff),
  )


def _hash(parent, token, np):
  """Returns uint32 [...] that spread pairs; `np` is numpy or jax.numpy."""
  x = parent.astype(np.uint32) * np.uint32(0x9E3779B1)
  x = (x ^ (x >> 15)) + token.astype(np.uint32)
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _find(level: Hashed, parent: jax.Array, token: jax.Array) -> jax.Array:
  """Returns the entries [...] of pairs [...]; _MISSING where there is none."""
  bits = level.first.size.bit_length() - 1
  begin = level.first[_hash(parent, token, jnp) >> (32 - bits)]
  near = begin[..., None] + jnp.arange(_BUCKET)
  same = level.parent[near] == parent[..., None]
  same &= level.token[near] == token[..., None]
  same &= (parent >= 0)[..., None]
  return jnp.where(same, level.entry[near], _MISSING).max(-1)


def log_probabilities(
  model: Tables, previous: jax.Array, candidates: jax.Array
) -> jax.Array:
  """Returns log p(candidate | previous tokens), in nats.

  log p(w | u) is that of the n-gram u w, or, where it is not there, the back-off
  of u plus log p(w | u without its first token).

  Args:
    model: of order n.
    previous: [..., n - 1] int32 the tokens before, the nearest last; -1 before
      the beginning of a text.
    candidates: [..., C] int32.

  Returns:
    [..., C] float32.
  """
  begin = model.log_p.size - 1
  previous = jnp.where(previous < 0, begin, previous)
  found = model.log_p[candidates]
  for size, level in enumerate(model.longer, 1):
    # The entry of the last `size` tokens, from its first token up.
    context = previous[..., previous.shape[-1] - size]
    for at, above in enumerate(model.longer[: size - 1], 1):
      token = previous[..., previous.shape[-1] - size + at]
      context = _find(above, context, token)
    below = model.backoff if size == 1 else model.longer[size - 2].backoff
    backoff = jnp.where(context >= 0, below[context], 0)[..., None]
    entry = _find(
      level,
      jnp.broadcast_to(context[..., None], candidates.shape),
      candidates,
    )
    found = jnp.where(entry >= 0, level.log_p[entry], backoff + found)
  return found
