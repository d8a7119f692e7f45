"""Sampling distributions, and noise keyed by absolute position.

The token at position t of a request is argmax(log p_t + g_t) with Gumbel
noise g_t = Gumbel(fold_in(request key, t)): a function of the request, the
position and the verifier alone. So the output of seeded sampling is the same
whatever the drafter, the tree or the batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import jax_settings
from specdiff_jax.core import types

Array = jax.Array | np.ndarray
# How noise is keyed; the same seed gives another text where this is another.
KEYED = 'threefry2x32, requests of 64 bits'


def request_noise(seed: int, low: Array, high: Array | int = 0) -> types.Noise:
  """Returns the noise of requests [B]; the row of the batch plays no part.

  Args:
    seed: 0 to 2**32 - 1.
    low: [B] the low 32 bits of the numbers of the requests.
    high: [B] the high ones; see `halves`.
  """
  return types.Noise(_keys(jax_settings.key(seed), low, high))


@jax.jit  # one call for each prompt: a dozen when dispatched one by one
def _keys(root: jax.Array, low: Array, high: Array | int) -> jax.Array:
  def one(low: Any, high: Any):
    return jax.random.fold_in(jax.random.fold_in(root, high), low)

  return jax.vmap(one)(low, jnp.broadcast_to(high, low.shape))


def halves(numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the low and the high 32 bits of numbers below 2**64."""
  whole = np.array(numbers, np.uint64)
  low = whole & np.uint64(0xFFFFFFFF)
  return low.astype(np.uint32), (whole >> np.uint64(32)).astype(np.uint32)


def gumbel(
  noise: types.Noise, positions: jax.Array, tokens: jax.Array | int
) -> jax.Array:
  """Returns g [B, N, W] of absolute positions [B, N] and tokens.

  Equal to `jax.random.gumbel` of `fold_in(key, position)`, of which each token
  is a counter of its own: that of some tokens is drawn for them alone.

  Args:
    noise: keys of the requests.
    positions: [B, N].
    tokens: [W] or [B, N, W] ids, or their number for all from 0 on.
  """
  if isinstance(tokens, int):
    tokens = jnp.arange(tokens)
  data = jax.random.key_data(noise.key)
  at = positions.astype(jnp.uint32)
  first, second = _threefry(data[:, :1], data[:, 1:], at)
  ids = tokens.astype(jnp.uint32)
  high, low = _threefry(first[..., None], second[..., None], ids)
  ones = jnp.uint32(0x3F800000)  # exponent of [1, 2)
  u = lax.bitcast_convert_type(((high ^ low) >> 9) | ones, jnp.float32) - 1
  tiny = jnp.finfo(jnp.float32).tiny
  return -jnp.log(-jnp.log(jnp.maximum(tiny, u + tiny)))


def _threefry(
  key1: jax.Array, key2: jax.Array, counter: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns jax's Threefry-2x32 of counters (0, counter), without its loops.

  Those go through memory on CPU, and GPUs get a kernel that nothing fuses with.
  """
  keys = (key1, key2, key1 ^ key2 ^ jnp.uint32(0x1BD11BDA))
  x, y = key1, counter + key2
  for block in range(5):
    for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
      x = x + y
      y = ((y << bits) | (y >> (32 - bits))) ^ x
    x = x + keys[(block + 1) % 3]
    y = y + keys[(block + 2) % 3] + jnp.uint32(block + 1)
  return x, y


def largest(x: jax.Array) -> jax.Array:
  """Returns the first index [...] of the largest of x [..., V], as `argmax`.

  XLA's argmax computes on CPU what it reads one entry at a time: four times
  slower where that is noise.
  """

  def in_two(x: jax.Array):
    index = jnp.arange(x.shape[-1])
    at = jnp.where(x == x.max(-1, keepdims=True), index, index[-1])
    return at.min(-1)

  return lax.platform_dependent(
    x, cpu=in_two, default=lambda x: jnp.argmax(x, axis=-1)
  )


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns values and indices [..., k] of the largest of x, as `lax.top_k`.

  Behind a barrier: XLA's CPU backend no longer finds the form that it runs
  fast where a part of the result is taken, and sorts all of x (250 times slower
  over a vocabulary).
  """
  return lax.optimization_barrier(lax.top_k(x, k))


_BLOCK = 128  # tokens whose sum `drawn` looks at before each of them

# Purposes of draws that are made afresh in each cycle.
DRAFT, ACCEPT, RESIDUAL, DISTINCT = 0, 1, 2, 3


def fresh(noise: types.Noise, purpose: int, length: jax.Array) -> jax.Array:
  """Returns keys [B] that no other (request, cycle, purpose) has.

  A row's length grows with every cycle, so it tells the cycles apart.
  Positions stay far below the numbers that stand for purposes.
  """

  def one(key: jax.Array, length: jax.Array):
    key = jax.random.fold_in(key, 2**31 - 1 - purpose)
    return jax.random.fold_in(key, length)

  return jax.vmap(one)(noise.key, length)


def warped(logits: jax.Array, sampling: types.Sampling) -> jax.Array:
  """Returns unnormalised log-probabilities after temperature, top-k, top-p.

  Rows of temperature 0 keep their logits as they are. Top-p keeps the token
  that crosses the threshold; ties break to the lowest id.

  Args:
    logits: [B, N, V] float32.
    sampling: parameters [B].
  """
  temperature = sampling.temperature[:, None, None]
  logits = logits / jnp.where(temperature > 0, temperature, 1.0)
  filtered = (sampling.top_k > 0) | (sampling.top_p < 1)
  return lax.cond(
    jnp.any(filtered & (sampling.temperature > 0)),
    lambda: _filter(logits, sampling),
    lambda: logits,
  )


def log_probabilities(logits: jax.Array, sampling: types.Sampling) -> jax.Array:
  """Returns the normalised log of `warped`; a point mass at temperature 0."""
  logits = warped(logits, sampling)
  greedy = (sampling.temperature <= 0)[:, None, None]
  best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
  return jnp.where(greedy, jnp.log(best), jax.nn.log_softmax(logits, axis=-1))


def drawn(log_p: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns indices [.., K] drawn from log-probabilities [.., W], independently.

  By inverting the cumulative sum: first of blocks of tokens, then within one. That
  takes an exponential for each token, where Gumbel noise takes two logarithms and a
  random number for each token and draw. A token of probability 0 is never drawn.

  Args:
    log_p: need not be normalised; -inf for none.
    uniform: [.., K] in [0, 1).
  """
  *rows, size = log_p.shape
  p = jnp.exp(log_p - jnp.max(log_p, axis=-1, keepdims=True))
  p = jnp.pad(p, [(0, 0)] * len(rows) + [(0, -size % _BLOCK)])
  p = p.reshape(*rows, -1, _BLOCK)
  upto = jnp.cumsum(p.sum(-1), axis=-1)  # [.., N]
  target = uniform * upto[..., -1:]
  block = jnp.sum(upto[..., None, :] <= target[..., None], axis=-1)  # [.., K]
  before = jnp.take_along_axis(
    jnp.pad(upto, [(0, 0)] * len(rows) + [(1, 0)]), block, axis=-1
  )
  inside = jnp.take_along_axis(p, block[..., None], axis=-2)  # [.., K, _BLOCK]
  passed = jnp.cumsum(inside, axis=-1) <= (target - before)[..., None]
  # Sums in another order may end below the target: the last token that counts.
  last = jnp.max(jnp.where(inside > 0, np.arange(_BLOCK), 0), axis=-1)
  place = jnp.minimum(jnp.sum(passed, axis=-1), last)
  return block * _BLOCK + place


def logprobs(logits: jax.Array, token: jax.Array) -> jax.Array:
  """Returns [B, N]: log-probabilities of tokens [B, N] under logits [B, N, V].

  Of the model's own distribution: temperature 1, neither top-k nor top-p.
  """
  chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def _filter(logits: jax.Array, sampling: types.Sampling) -> jax.Array:
  """Returns the logits that top-k and then top-p keep, -inf for the others.

  Both keep the first tokens of one order until so much lies before: tokens, or
  probability of what top-k left. Nothing is sorted, a threshold is searched;
  and all sums are of integers, so that their order changes nothing.
  """
  order, mass = _order(logits), _mass(logits)
  top_k, top_p = sampling.top_k[:, None], sampling.top_p[:, None]
  most = jnp.iinfo(jnp.int32).max

  def keep(step: jax.Array, kept: jax.Array):
    weight = jnp.where(kept, jnp.where(step == 0, 1, mass), 0)
    share = jnp.ceil(top_p * weight.sum(-1)).astype(jnp.int32)
    count = jnp.where(top_k > 0, top_k, most)
    share = jnp.where(top_p < 1, jnp.maximum(share, 1), most)
    return kept & _first(order, weight, jnp.where(step == 0, count, share))

  kept = lax.fori_loop(
    jnp.where(jnp.any(top_k > 0), 0, 1),
    jnp.where(jnp.any(top_p < 1), 2, 1),
    keep,
    jnp.ones(logits.shape, bool),
  )
  greedy = (sampling.temperature <= 0)[:, None, None]
  return jnp.where(kept | greedy, logits, -jnp.inf)


def _order(x: jax.Array) -> jax.Array:
  """Returns int32 that compare as the float32 x do; 0 equals -0."""
  x = x.astype(jnp.float32)
  bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)
  return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)


def _mass(logits: jax.Array) -> jax.Array:
  """Returns probabilities [B, N, V] as int32, in units of 2**-30.

  They are divided by a sum of integers too. The first, of weights that are
  rounded up, is too large, above all where few tokens have most of the mass;
  it serves for a finer one. No sum reaches 2**31.
  """
  vocab = logits.shape[-1]
  weight = jnp.exp(logits - logits.max(-1, keepdims=True))

  def total(of: jax.Array) -> jax.Array:
    return of.astype(jnp.int32).sum(-1, keepdims=True).astype(jnp.float32)

  unit = 2.0 ** (31 - vocab.bit_length())
  scale = 2.0**30 * (unit / total(jnp.ceil(weight * unit)))
  scale *= 2.0**30 / (total(jnp.round(weight * scale)) + vocab / 2)
  return jnp.round(weight * scale).astype(jnp.int32)


def _first(order: jax.Array, weight: jax.Array, goal: jax.Array) -> jax.Array:
  """Returns [B, N, V]: whether less than the goal [B, N] lies before a token.

  Tokens are ordered by falling `order` [B, N, V], equal ones by id. What is
  searched is the last one of them: the largest pair (order, place from the
  end) down to which the tokens weigh the goal, two bits a pass.
  """
  backwards = jnp.arange(order.shape[-1])[::-1]
  digits = -(-order.shape[-1].bit_length() // 2)

  def heavier(order: jax.Array, last: jax.Array, place: jax.Array):
    last, place = last[..., None], place[..., None]
    return (order > last) | ((order == last) & (backwards >= place))

  def step(i: jax.Array, found: tuple[jax.Array, jax.Array]):
    above = i < 16  # of the order's 32 bits
    shift = 2 * jnp.where(above, 15 - i, 15 + digits - i)
    unit = jnp.stack([above, ~above]).astype(jnp.int32) << shift
    last, place = (
      x[..., None] + jnp.arange(1, 4) * u for x, u in zip(found, unit)
    )
    down_to = heavier(order[..., None, :], last, place)
    mass = jnp.where(down_to, weight[..., None, :], 0).sum(-1)
    digit = (mass >= goal[..., None]).sum(-1)
    return tuple(x + digit * u for x, u in zip(found, unit))

  least = jnp.full(order.shape[:2], jnp.iinfo(jnp.int32).min)
  found = (least, jnp.zeros_like(least))
  return heavier(order, *lax.fori_loop(0, 16 + digits, step, found))


def choose(
  logits: jax.Array,
  positions: jax.Array,
  sampling: types.Sampling,
  noise: types.Noise,
  span: int = 0,
) -> jax.Array:
  """Returns the verifier's token for each position.

  Args:
    logits: [B, N, V] float32.
    positions: [B, N] absolute position of the token that is chosen.
    sampling: of each row; temperature 0 takes the argmax and draws no noise.
    noise: keys of the requests.
    span: if given, all positions of a row lie among so many from its first
      on, and the noise of each is drawn once.

  Returns:
    [B, N] int32.
  """
  greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def sampled():
    shared = 0 < span < positions.shape[1]  # else each is drawn at its place
    wanted = positions[:, :1] + jnp.arange(span) if shared else positions
    g = gumbel(noise, wanted, logits.shape[-1])
    if shared and span > 1:
      offset = jnp.clip(positions - positions[:, :1], 0, span - 1)
      g = jnp.take_along_axis(g, offset[..., None], axis=1)
    token = largest(warped(logits, sampling) + g).astype(jnp.int32)
    return jnp.where(sampling.temperature[:, None] > 0, token, greedy)

  return lax.cond(jnp.any(sampling.temperature > 0), sampled, lambda: greedy)
