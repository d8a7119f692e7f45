"""EAGLE-3 (2503.01840) with the tree of EAGLE-2 (2406.16858).

Of each depth the F likeliest prefixes are read by the drafter at once, one row
each; each gets its K likeliest next tokens, with

  score(c_1 .. c_d) = sum_j log q(c_j | text, c_1 .. c_{j-1})

and the N prefixes of largest score are the tree. Under F = K = 1 it is a chain.

A token's key is made of the verifier's state at the token before it, hence

  position    0  1  2  3  4  5     committed a b c d, accepted x, bonus y
  features    a  b  c  d  x        known once x is accepted
  keys           b  c  d  x  y     the last two are made when the next draft
                                   begins, which then goes on from y
"""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import chunks
from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import prefix_trees
from specdiff_jax.drafters.eagle import network as eagle
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import layers as layers_lib
from specdiff_jax.models import networks


@flax.struct.dataclass
class State:
  """The KV cache, and fused states that have not made keys yet."""

  cache: cache_lib.Cache
  hidden: jax.Array  # [B, D+1, E] float32
  first: jax.Array  # [B] position of the key that the first of them makes


class _Level(NamedTuple):
  """The prefixes of one depth that are scored, [B, F K] each."""

  score: jax.Array
  token: jax.Array  # the last of each
  parent: jax.Array  # in the pool of all depths; -1: the root


@dataclasses.dataclass(frozen=True)
class Eagle:
  """Drafts a tree by a network that goes on from its own outputs.

  Attributes:
    config: of the network.
    gamma: depth of the tree.
    tree: its slots, F and K.
    keep_q: whether a chain carries `log_q`, for `verify`; no rule reads it.
  """

  config: eagle.EagleConfig
  gamma: int
  tree: lattice.Lattice
  keep_q: bool = False

  proposal = 'deterministic'

  def __post_init__(self):
    if self.tree.candidates > self.config.vocab:
      raise errors.InputError(
        f'candidates is {self.tree.candidates}, but the drafter has '
        f'{self.config.vocab} tokens. Lower it.'
      )

  @property
  def features(self) -> tuple[int, ...]:
    return self.config.features

  @property
  def chain(self) -> bool:
    return self.tree.frontier == self.tree.candidates == 1

  @property
  def max_depth(self) -> int:
    return min(self.gamma, self.tree.budget - 1)

  @property
  def buckets(self) -> tuple[int, ...]:
    whole = 1 + self.tree.candidates * sum(self._rows)
    return (min(self.tree.budget, whole),)

  @property
  def _rows(self) -> list[int]:
    """How many prefixes of each depth, from the root on, are continued."""
    rows = [1]
    while len(rows) < self.max_depth:
      rows.append(min(self.tree.frontier, rows[-1] * self.tree.candidates))
    return rows

  def init(self, params, context):
    del params
    batch, depth = context.length.shape[0], self.max_depth
    network = self.config.network
    return State(
      cache_lib.empty(network, batch, context.cache.slots, context.cache.dtype),
      jnp.zeros((batch, depth + 1, network.width)),
      context.length - 1,
    )

  def read(self, params, state, context, features, start):
    h = self._run(params, features, method='fused')
    # The last key is made of a token that is not known yet: it is made again.
    _, cache = self._text(params, context, h, state.cache, start + 1)
    place = context.length - 2 - start  # of the last known token
    last = chunks.last(state.hidden[:, 0], h, place)
    hidden = state.hidden.at[:, 0].set(last)
    return state.replace(cache=cache, hidden=hidden)

  def observe(self, params, state, context, verdict, features, slots):
    del verdict, slots
    hidden = self._run(params, features, method='fused')
    return state.replace(hidden=hidden, first=context.length)

  def draft(self, params, state, context, sampling, noise, slots):
    root = context.length - 1
    out, cache = self._text(
      params, context, state.hidden, state.cache, state.first
    )
    slot, batch = jnp.arange(cache.slots), len(root)
    last = jnp.clip(root - state.first, 0, out.shape[1] - 1)
    # [B, F, E] of the prefixes that go on.
    out = out[jnp.arange(batch), last][:, None]
    seen = ((slot > 0) & (slot <= root[:, None]))[:, None]
    score, parent = jnp.zeros((batch, 1)), jnp.full((batch, 1), -1)
    line, pair = jnp.zeros((batch, 1, 0), bool), None
    pool, drafted, begin = [], [], 0
    for depth in range(1, self.max_depth + 1):
      log_q = self._following(params, context, sampling, noise, out, depth)
      drafted.append(log_q[:, 0])
      value, index = sampling_lib.top_k(log_q, self.tree.candidates)
      token = params.vocab[index]
      above = jnp.broadcast_to(parent[..., None], value.shape)
      level = _Level(score[..., None] + value, token, above)
      level = jax.tree.map(lambda x: x.reshape(batch, -1), level)
      pool.append(level)
      if depth == self.max_depth:
        break
      rows = self._rows[depth]
      score, best = sampling_lib.top_k(level.score, rows)
      parent, begin = begin + best, begin + level.token.shape[1]
      token = jnp.take_along_axis(level.token, best, axis=1)
      above = (best // self.tree.candidates)[..., None]
      out = jnp.take_along_axis(out, above, axis=1)
      line = jnp.take_along_axis(line, above, axis=1)  # whom each sees
      own = jnp.broadcast_to(jnp.eye(rows, dtype=bool), (batch, rows, rows))
      line = jnp.concatenate([line, own], axis=-1)
      out, pair = self._run(
        params, context.embed(token)[:, None], out[:, None],
        jnp.broadcast_to((root + depth)[:, None], token.shape)[:, None],
        cache.layer(0).pair, seen, pair, line[:, None, None, None],
        serving=True, method='beside',
      )  # fmt: skip
      out = out[:, 0]
    tree = self._tree(context.last, pool, slots)
    if self.keep_q and self.chain:
      shape = batch, slots, context.verifier.vocab_size
      whole = jnp.full(shape, -jnp.inf).at[:, 1:, params.vocab]
      tree = tree.replace(log_q=whole.set(jnp.stack(drafted, axis=1)))
    return tree, state.replace(cache=cache)

  def _tree(self, root, pool, slots):
    """Returns the tree of the best prefixes of all levels."""
    if self.chain:
      token = jnp.stack([root, *(one.token[:, 0] for one in pool)], axis=1)
      return tree_lib.chain(token, jnp.ones_like(token, bool))
    sizes = [one.token.shape[1] for one in pool]
    depth = jnp.asarray(np.repeat(np.arange(1, len(pool) + 1), sizes))
    every = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *pool)
    best, chosen = sampling_lib.top_k(every.score, slots - 1)
    token, parent = (jnp.take_along_axis(x, chosen, axis=1) for x in every[1:])
    tree = prefix_trees.of_pool(
      best, chosen, token, parent, depth[chosen], root, slots, self.max_depth
    )
    of_depth = [
      jnp.pad(one.token, ((0, 0), (0, max(sizes) - size)), constant_values=-1)
      for one, size in zip(pool, sizes, strict=True)
    ]
    return tree.replace(candidates=jnp.stack(of_depth, axis=1))

  def _following(self, params, context, sampling, noise, out, depth):
    """Returns log q [B, F, W] of the tokens after outputs.

    Under the verifier's noise of their position, which all parents share, and
    normalised after it: no score rises above its parent's.
    """
    x = self._run(params, out, method='normed')
    marginals = marginals_lib.Marginals(
      logits=layers_lib.dense(x, params.head)[:, :, None],
      ids=params.vocab,
      root=context.last,
      length=context.length + depth - 1,
      vocab_size=context.verifier.vocab_size,
    )
    scores = marginals_lib.conditioned(marginals, sampling, noise)
    return jax.nn.log_softmax(scores[:, :, 0], axis=-1)

  def _text(self, params, context, h, cache, start):
    """Reads the tokens from `start` [B] on, after states h [B, T, E]."""
    index = start[:, None] + jnp.arange(h.shape[1])
    most = context.tokens.shape[1] - 1
    tokens = jnp.take_along_axis(
      context.tokens, jnp.minimum(index, most), axis=1
    )
    slot = jnp.arange(cache.slots)
    # The first token of a text has no key: nothing is known before it.
    out, layer = self._run(
      params, context.embed(tokens), h, index,
      (slot > 0) & (slot <= index[..., None]), cache.layer(0), start,
      method='text',
    )  # fmt: skip
    return out, cache.updated(0, layer)

  def _run(self, params, *args, **more):
    return networks.apply(
      eagle.Eagle(self.config), params.network, *args, **more
    )
