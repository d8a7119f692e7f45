"""Strategies: from the marginals of one denoising pass to a draft tree.

What is verified of a window: one chain, K chains drawn independently, the same
chains merged into a prefix tree, K chains that begin with different tokens, or
the N most probable prefixes.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import prefix_trees


@dataclasses.dataclass(frozen=True)
class Tempered:
  """The distribution that drafts are drawn from.

  Attributes:
    temperature: of the drafter; 0 takes the verifier's own temperature, top-k
      and top-p (and at temperature 0 the most likely token).
    top_k: draws among the k most likely tokens; 0 switches it off.
    keep_q: whether trees carry `log_q`, for rules that read it.
  """

  temperature: float = 0.0
  top_k: int = 0
  keep_q: bool = False

  def tempered(self, sampling: types.Sampling) -> types.Sampling:
    """Returns the drafter's sampling, given the verifier's."""
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
  ) -> jax.Array:
    """Returns log_q [B, G, W] over the verifier's tokens [B, G, V]."""
    shape = log_q.shape[:2] + (vocab_size,)
    return jnp.full(shape, -jnp.inf).at[..., ids].set(log_q)


@dataclasses.dataclass(frozen=True)
class Chain(Tempered):
  """One chain: 'argmax', 'sample', or 'shared_noise'.

  With shared noise slot t takes argmax(log q_t + g_t), g_t the very noise that
  the verifier will use at that position, which raises acceptance at
  temperature > 0. All three are the same at temperature 0.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Chain(mode='sample').proposal
    'iid'
  """

  mode: str = 'argmax'

  chain = True

  @property
  def proposal(self) -> str:
    return 'iid' if self.mode == 'sample' else 'deterministic'

  def slots(self, gamma: int) -> int:
    return gamma + 1

  def pick(self, marginals, sampling, noise):
    logits, mine = marginals.logits, self.tempered(sampling)
    greedy = jnp.argmax(logits, axis=-1)
    hot = mine.temperature > 0

    def perturbed():
      if self.mode == 'shared_noise':
        length, ids = marginals.length, marginals.ids
        g = marginals_lib.noise_at(noise, length, logits.shape[1], ids)
      else:
        g = marginals_lib.own_noise(noise, marginals.length, logits.shape[1:])
      token = sampling_lib.largest(sampling_lib.warped(logits, mine) + g)
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
      log_q = sampling_lib.log_probabilities(logits, self.tempered(sampling))
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

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Drafts(drafts=2, arrangement='chains').slots(gamma=4)
    9
  """

  drafts: int = 8
  arrangement: str = 'merged'
  budget: int = 0  # of a merged tree; 0 for room for all

  chain = False

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
    mine = self.tempered(sampling)
    log_q = sampling_lib.log_probabilities(marginals.logits, mine)
    length, drafts = marginals.length, self.drafts
    index = marginals_lib.own_draws(log_q, noise, length, drafts)  # [B, K, G]
    valid = jnp.ones(index.shape, bool)
    if self.arrangement == 'distinct':
      first, score = marginals_lib.distinct(log_q[:, 0], noise, length, drafts)
      index = index.at[:, :, 0].set(first)
      valid &= (score > -jnp.inf)[..., None]
    token = marginals.ids[index]
    if self.arrangement == 'merged':
      return prefix_trees.merged(token, marginals.root, slots)
    kept = None
    if self.keep_q:
      kept = self.kept(log_q, marginals.ids, marginals.vocab_size)
      whole = (kept.shape[0], self.drafts) + kept.shape[1:]
      kept = jnp.broadcast_to(kept[:, None], whole)
    return tree_lib.chains(token, valid, marginals.root, kept)


@dataclasses.dataclass(frozen=True)
class BestFirst:
  """The prefixes of largest prod_j q_j that fit a budget (DDTree, 2604.12989).

  No other tree of as many slots has more expected accepted tokens under q,
  conditioned on the noise that the verifier will use (`marginals.conditioned`).

  Example:
    >>> import specdiff_jax as sd
    >>> sd.BestFirst(budget=32).slots(gamma=4)
    32
  """

  budget: int

  proposal = 'deterministic'
  chain = False

  def slots(self, gamma: int) -> int:
    del gamma
    return self.budget

  def pick(self, marginals, sampling, noise):
    scores = marginals_lib.conditioned(marginals, sampling, noise)
    return jnp.argmax(scores, axis=-1)

  def __call__(self, marginals, sampling, noise, slots):
    scores = marginals_lib.conditioned(marginals, sampling, noise)
    log_q = jax.nn.log_softmax(scores, axis=-1)
    return prefix_trees.best_first(log_q, marginals.ids, marginals.root, slots)
