"""From the marginals of one denoising pass to a draft tree.

A one-pass drafter gives a law for each slot of its window, independent of the
other slots' tokens. The strategies here decide what is verified of it: one
chain, K chains drawn independently, the same chains merged into a prefix tree,
K chains that begin with different tokens, or the N most probable prefixes.
"""

import dataclasses
from typing import ClassVar, Protocol

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types


@flax.struct.dataclass
class Marginals:
  """The laws of a window's slots, over W tokens that can be drafted."""

  logits: jax.Array  # [B, G, W] float32, before temperature
  ids: jax.Array  # [W] int32 the tokens
  root: jax.Array  # [B] int32 last committed token
  length: jax.Array  # [B] committed tokens; slot j is at position length + j
  vocab_size: int = flax.struct.field(pytree_node=False)


class Strategy(Protocol):
  """Makes trees of marginals: a frozen dataclass, static under jit."""

  proposal: str
  chain: bool

  def slots(self, gamma: int) -> int:
    """Returns the size of a whole tree over a window of gamma slots."""

  def pick(
      self,
      marginals: Marginals,
      sampling: types.Sampling,
      noise: types.Noise,
  ) -> jax.Array:
    """Returns [B, G] which of the W tokens each slot takes, taken alone."""

  def __call__(
      self,
      marginals: Marginals,
      sampling: types.Sampling,
      noise: types.Noise,
      slots: int,
  ) -> types.DraftTree:
    """Returns a tree of `slots` slots."""


@dataclasses.dataclass(frozen=True)
class Tempered:
  """The law that drafts are drawn from.

  Attributes:
    temperature: of the drafter; 0 takes the verifier's own temperature, top-k
      and top-p (and at temperature 0 the most likely token).
    top_k: draws among the k most likely tokens; 0 switches it off.
    keep_q: whether trees carry `log_q`, for rules that read it.
  """

  temperature: float = 0.0
  top_k: int = 0
  keep_q: bool = False

  def law(self, sampling: types.Sampling) -> types.Sampling:
    """Returns the parameters of the drafter's law."""
    if not self.temperature:
      return sampling
    like = jnp.ones_like
    return types.Sampling(
        temperature=self.temperature * like(sampling.temperature),
        top_k=self.top_k * like(sampling.top_k),
        top_p=like(sampling.top_p),
    )

  def kept(
      self, log_q: jax.Array, ids: jax.Array, vocab_size: int
  ) -> jax.Array | None:
    """Returns log_q [B, G, W] over the verifier's tokens [B, G, V], if kept."""
    if not self.keep_q:
      return None
    shape = log_q.shape[:2] + (vocab_size,)
    return jnp.full(shape, -jnp.inf).at[..., ids].set(log_q)


@dataclasses.dataclass(frozen=True)
class Chain(Tempered):
  """One chain: 'argmax', 'sample', or 'shared_noise'.

  With shared noise slot t takes argmax(log q_t + g_t), g_t the very noise that
  the verifier will use at that position, which raises acceptance at
  temperature > 0. All three are the same at temperature 0.
  """

  mode: str = 'argmax'

  chain: ClassVar[bool] = True

  @property
  def proposal(self) -> str:
    return 'iid' if self.mode == 'sample' else 'deterministic'

  def slots(self, gamma: int) -> int:
    return gamma + 1

  def pick(self, marginals, sampling, noise):
    logits, law = marginals.logits, self.law(sampling)
    greedy = jnp.argmax(logits, axis=-1)
    hot = law.temperature > 0

    def perturbed():
      if self.mode == 'shared_noise':
        g = shared_noise(marginals, noise)
      else:
        g = own_noise(noise, marginals.length, logits.shape[1:])
      token = jnp.argmax(sampling_lib.law(logits, law) + g, axis=-1)
      return jnp.where(hot[:, None], token, greedy)

    if self.mode == 'argmax':
      return greedy
    return lax.cond(jnp.any(hot), perturbed, lambda: greedy)

  def __call__(self, marginals, sampling, noise, slots):
    logits = marginals.logits[:, : slots - 1]
    marginals = marginals.replace(logits=logits)
    index = self.pick(marginals, sampling, noise)
    log_q = None
    if self.keep_q:
      log_q = sampling_lib.log_probabilities(logits, self.law(sampling))
      log_q = self.kept(log_q, marginals.ids, marginals.vocab_size)
      log_q = jnp.pad(log_q, ((0, 0), (1, 0), (0, 0)))
    token = jnp.concatenate(
        [marginals.root[:, None], marginals.ids[index]], axis=1
    ).astype(jnp.int32)
    return tree_lib.chain(token, jnp.ones_like(token, bool), log_q)


@dataclasses.dataclass(frozen=True)
class Drafts(Tempered):
  """K chains from one pass: SpecDiff-2's joint drafts.

  `arrangement` says how they are laid out: 'chains' keeps them apart (what
  rejection with replacement and self-selection read); 'distinct' too, but
  their first tokens are drawn without replacement; 'merged' joins equal
  beginnings in a prefix tree of at most `budget` slots, breadth first. At
  temperature 0 all drafts of an untempered drafter are the same.
  """

  drafts: int = 8
  arrangement: str = 'merged'
  budget: int = 0  # of a merged tree; 0 for room for all

  chain: ClassVar[bool] = False

  @property
  def proposal(self) -> str:
    proposals = {'chains': 'iid', 'distinct': 'distinct', 'merged': 'unknown'}
    return proposals[self.arrangement]

  def slots(self, gamma: int) -> int:
    whole = self.drafts * gamma + 1
    merged = self.arrangement == 'merged' and self.budget
    return min(self.budget, whole) if merged else whole

  def pick(self, marginals, sampling, noise):
    del sampling, noise
    return jnp.argmax(marginals.logits, axis=-1)

  def __call__(self, marginals, sampling, noise, slots):
    if self.arrangement != 'merged':
      gamma = (slots - 1) // self.drafts
      marginals = marginals.replace(logits=marginals.logits[:, :gamma])
    if self.arrangement == 'distinct' and self.drafts > marginals.ids.size:
      raise errors.InputError(
          f'{self.drafts} drafts cannot begin with different tokens: the '
          f'drafter has {marginals.ids.size}. Lower config.drafts.'
      )
    law = self.law(sampling)
    log_q = sampling_lib.log_probabilities(marginals.logits, law)
    shape = (self.drafts,) + log_q.shape[1:]
    scores = log_q[:, None] + own_noise(noise, marginals.length, shape)
    index = jnp.argmax(scores, axis=-1)  # [B, K, G]
    valid = jnp.ones(index.shape, bool)
    if self.arrangement == 'distinct':
      # Gumbel-top-k: the order of scores is that of draws without replacement.
      top, first = lax.top_k(scores[:, 0, 0], self.drafts)
      index = index.at[:, :, 0].set(first)
      valid &= (top > -jnp.inf)[..., None]
    token = marginals.ids[index]
    if self.arrangement == 'merged':
      return merged(token, marginals.root, slots)
    kept = self.kept(log_q, marginals.ids, marginals.vocab_size)
    if kept is not None:
      whole = (kept.shape[0], self.drafts) + kept.shape[1:]
      kept = jnp.broadcast_to(kept[:, None], whole)
    return tree_lib.chains(token, valid, marginals.root, kept)


@dataclasses.dataclass(frozen=True)
class BestFirst:
  """The prefixes of largest prod_j q_j that fit a budget (DDTree, 2604.12989).

  No other tree of as many slots has more expected accepted tokens under q. At
  temperature > 0 q is conditioned on the noise that the verifier will use:
  log q_t + g_t takes the place of log q_t, since y_t = argmax(log p_t + g_t).
  """

  budget: int

  proposal: ClassVar[str] = 'deterministic'
  chain: ClassVar[bool] = False

  def slots(self, gamma: int) -> int:
    del gamma
    return self.budget

  def pick(self, marginals, sampling, noise):
    return jnp.argmax(self._scores(marginals, sampling, noise), axis=-1)

  def _scores(self, marginals, sampling, noise):
    def perturbed():
      logits = sampling_lib.law(marginals.logits, sampling)
      hot = (sampling.temperature > 0)[:, None, None]
      return logits + jnp.where(hot, shared_noise(marginals, noise), 0)

    return lax.cond(
        jnp.any(sampling.temperature > 0), perturbed, lambda: marginals.logits
    )

  def __call__(self, marginals, sampling, noise, slots):
    scores = self._scores(marginals, sampling, noise)
    log_q = jax.nn.log_softmax(scores, axis=-1)
    return best_first(log_q, marginals.ids, marginals.root, slots)


def shared_noise(marginals: Marginals, noise: types.Noise) -> jax.Array:
  """Returns the verifier's own noise [B, G, W] at the window's positions."""
  m = marginals
  return noise_at(noise, m.length, m.logits.shape[1], m.ids, m.vocab_size)


def noise_at(
    noise: types.Noise,
    length: jax.Array,
    gamma: int,
    ids: jax.Array,
    vocab_size: int,
) -> jax.Array:
  """Returns the verifier's noise [B, G, W] of tokens [W], from length on."""
  positions = length[:, None] + jnp.arange(gamma)
  return sampling_lib.gumbel(noise, positions, vocab_size)[..., ids]


def own_noise(
    noise: types.Noise, length: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """Returns Gumbel noise [B, *shape] that is drawn afresh in every cycle."""
  keys = sampling_lib.fresh(noise, sampling_lib.DRAFT, length)
  return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def merged(
    token: jax.Array, root: jax.Array, slots: int
) -> types.DraftTree:
  """Returns the prefix tree of K chains [B, K, G], breadth first.

  Chains a b and a c give slots root, a, b, c; what does not fit is left out.
  """
  batch, drafts, gamma = token.shape
  alike = token[:, :, None] == token[:, None]  # [B, K, K, G]
  alike = jnp.cumprod(alike, axis=-1) > 0
  # The first chain with the same beginning owns the slot.
  owner = jnp.argmax(alike, axis=2)  # [B, K, G]
  own = owner == jnp.arange(drafts)[None, :, None]

  def by_depth(x):
    return jnp.swapaxes(x, 1, 2).reshape(batch, gamma * drafts)

  new = by_depth(own)
  place = jnp.where(new, jnp.cumsum(new, axis=1), slots)
  of_owner = jnp.swapaxes(place.reshape(batch, gamma, drafts), 1, 2)
  owner_above = jnp.pad(owner[..., :-1], ((0, 0), (0, 0), (1, 0)))
  above = jnp.pad(of_owner[..., :-1], ((0, 0), (0, 0), (1, 0)))
  parent = jnp.take_along_axis(above, owner_above, axis=1)
  depth = jnp.broadcast_to(jnp.arange(1, gamma + 1), token.shape)
  return _placed(
      place, by_depth(token), by_depth(parent), by_depth(depth), root, slots
  )


def best_first(
    log_q: jax.Array, ids: jax.Array, root: jax.Array, slots: int
) -> types.DraftTree:
  """Returns the most probable prefixes under marginals [B, G, W].

  A beam of N = slots - 1 holds, for each depth, all prefixes that can be among
  the N best: a prefix is never likelier than its own beginnings, and of each
  slot's tokens only the N likeliest can matter.
  """
  batch, gamma, size = log_q.shape
  width = slots - 1
  choices = min(width, size)
  value, index = lax.top_k(log_q, choices)
  token = ids[index]  # [B, G, C]
  score = jnp.zeros((batch, 1))
  scores, tokens, parents = [], [], []
  for depth in range(gamma):
    paths = score.shape[1]
    total = (score[..., None] + value[:, depth, None]).reshape(batch, -1)
    score, chosen = lax.top_k(total, min(width, total.shape[1]))
    tokens.append(
        jnp.take_along_axis(token[:, depth], chosen % choices, axis=1)
    )
    # Index in the pool of all depths; the root lies before it, at -1.
    offset = sum(s.shape[1] for s in scores) - paths if scores else -1
    parents.append(offset + chosen // choices)
    scores.append(score)
  pool = jnp.concatenate(scores, axis=1)
  depth = jnp.concatenate(
      [jnp.full(s.shape[1], d + 1) for d, s in enumerate(scores)]
  )
  # Ties go to the lower index, hence to the shallower prefix.
  best, chosen = lax.top_k(pool, min(width, pool.shape[1]))
  rows = jnp.arange(batch)[:, None]
  place = jnp.full(pool.shape, slots).at[rows, chosen].set(
      jnp.where(best > -jnp.inf, 1 + jnp.arange(chosen.shape[1]), slots)
  )
  parent = jnp.concatenate(parents, axis=1)
  above = jnp.take_along_axis(place, jnp.maximum(parent, 0), axis=1)
  return _placed(
      place,
      jnp.concatenate(tokens, axis=1),
      jnp.where(parent < 0, 0, above),
      jnp.broadcast_to(depth, pool.shape),
      root,
      slots,
  )


def _placed(place, token, parent, depth, root, slots) -> types.DraftTree:
  """Returns the tree with node i in slot place[i]; from `slots` on: nowhere."""
  batch = place.shape[0]
  rows = jnp.arange(batch)[:, None]

  def scatter(first, values):
    empty = jnp.zeros((batch, slots), values.dtype).at[:, 0].set(first)
    return empty.at[rows, place].set(values, mode='drop')

  return types.DraftTree(
      token=scatter(root, token.astype(jnp.int32)),
      parent=scatter(0, parent.astype(jnp.int32)),
      depth=scatter(0, depth.astype(jnp.int32)),
      valid=scatter(True, jnp.ones(token.shape, bool)),
  )
