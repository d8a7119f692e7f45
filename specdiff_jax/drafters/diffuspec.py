"""DiffuSpec (2510.02358): a path through a diffusion drafter's window.

It trains nothing: over any drafter that fills windows it searches the path that
is verified (`path_search`), and chooses how long the next window is.
"""

import dataclasses
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp

from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import path_search
from specdiff_jax.drafters import window
from specdiff_jax.drafters.ngram import model as ngram_model


@dataclasses.dataclass(frozen=True)
class DraftLength:
  """The controller of k, the slots of a draft (ADL, section 4.3).

    L_gen = min(s - 1, k), s the first end token of the raw draft     (Eq. 9)
    m <- (1 - rho) m + rho L, m = 0 at first, of L_gen and L_acc      (Eq. 10)
    k <- clip(floor(m_gen) + delta [m_acc >= m_gen], k_min, k_max)    (Eq. 11)

  The means are float32: exact for 18 cycles of rho = 1/2. After them another
  precision could only tell a mean that comes up to an integer from that integer,
  or two means apart that have been fed the same for as long: k is the choice of
  what is drafted, and no text depends on it.

  Attributes:
    k_min: the shortest draft.
    k_max: the longest, and the first.
    delta: by how much it grows while all is accepted.
    rho: weight of the last cycle.
    sizes: how many sizes are compiled, from k_min to k_max: a draft is computed
      in the smallest that holds it, and cut to k.
  """

  k_min: int
  k_max: int
  delta: int = 10
  rho: float = 0.5
  sizes: int = 3

  @property
  def levels(self) -> tuple[int, ...]:
    """The compiled sizes, ascending."""
    span, steps = self.k_max - self.k_min, max(self.sizes - 1, 1)
    found = {self.k_max - span * i // steps for i in range(self.sizes)}
    return tuple(sorted(found))

  def next(
    self, mean: jax.Array, generated: jax.Array, accepted: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the means after a cycle, and k.

    Args:
      mean: [B, 2] float32 of L_gen and L_acc.
      generated: [B] L_gen.
      accepted: [B] L_acc.
    """
    new = jnp.stack([generated, accepted], axis=1).astype(jnp.float32)
    mean = (1 - self.rho) * mean + self.rho * new
    ahead, kept = mean[:, 0], mean[:, 1]
    k = jnp.floor(ahead).astype(jnp.int32)
    k += jnp.where(kept >= ahead, self.delta, 0)
    return mean, jnp.clip(k, self.k_min, self.k_max)


@flax.struct.dataclass
class DiffuSpecParams:
  """What drafting reads."""

  inner: Any  # of the drafter of windows
  ngram: ngram_model.Tables | None
  forced: jax.Array  # [] int32 the compiled size of every row, -1 to choose
  confidence: Any = None  # of the head that cuts drafts


@flax.struct.dataclass
class DiffuSpecState:
  """What a row remembers."""

  inner: Any
  k: jax.Array  # [B] int32 slots of the next draft
  generated: jax.Array  # [B] int32 L_gen of the last one
  mean: jax.Array  # [B, 2] float32 of L_gen and L_acc


@dataclasses.dataclass(frozen=True)
class DiffuSpec:
  """Verifies one path through the window of another drafter.

  Attributes:
    inner: fills the window, at most as long as its gamma.
    search: finds the path; None for each slot's likeliest token.
    length: chooses how long drafts are; None for gamma slots.
    confidence: head that cuts a draft before the verifier is asked; None: none.
    threshold: product of confidences that a draft's slots have at least. What is
      left of the whole window counts as L_gen, so that sizes follow it, and a
      draft is as long as its size has room.
  """

  inner: window.Window
  search: path_search.PathSearch | None = path_search.PathSearch()
  length: DraftLength | None = None
  confidence: heads.Confidence | None = None
  threshold: float = 0.0

  chain = True
  proposal = 'deterministic'  # chosen by a search: no marginal is its q
  calibrates = False

  @property
  def buckets(self) -> tuple[int, ...]:
    levels = self.length.levels if self.length else (self.max_depth,)
    return tuple(k + 1 for k in levels)

  @property
  def max_depth(self) -> int:
    return self.inner.gamma

  @property
  def features(self) -> tuple[int, ...]:
    return self._inner.features

  @property
  def _inner(self) -> protocols.FeatureDrafter:
    return cast(protocols.FeatureDrafter, self.inner)

  def init(self, params, context):
    zeros = jnp.zeros(context.length.shape, jnp.int32)
    return DiffuSpecState(
      inner=self._inner.init(params.inner, context),
      k=zeros + self.max_depth,
      generated=zeros,
      mean=jnp.zeros((zeros.size, 2), jnp.float32),
    )

  def read(self, params, state, context, features, start):
    inner = self._inner.read(
      params.inner, state.inner, context, features, start
    )
    return state.replace(inner=inner)

  def draft(self, params, state, context, sampling, noise, slots):
    # A confidence is asked of all slots, else lengths could never grow again.
    size = slots - 1 if self.confidence is None else self.max_depth
    inner = dataclasses.replace(self.inner, gamma=size)  # pyright: ignore[reportArgumentType]  # a dataclass
    marginals, kept = inner.denoise(
      params.inner, state.inner, context, sampling, noise
    )
    scores = marginals_lib.conditioned(marginals, sampling, noise)
    ends = jnp.isin(marginals.ids, jnp.asarray(context.end_ids, jnp.int32))
    index = jnp.argmax(scores, axis=-1)  # the raw draft
    ended = jnp.cumsum(ends[index], axis=1) > 0
    generated = jnp.sum(~ended, axis=1)
    k = jnp.minimum(state.k, slots - 1)
    if self.confidence is None:
      generated = jnp.minimum(generated, k)
    else:
      sure = self.confidence.kept(
        params.confidence, marginals, marginals.ids[index], self.threshold
      )
      generated, k = jnp.minimum(generated, sure), jnp.minimum(sure, slots - 1)
      index, scores = index[:, : slots - 1], scores[:, : slots - 1]
    length = k
    candidates = None
    if self.search is not None:
      log_q = jax.nn.log_softmax(scores, axis=-1)
      lattice = self.search.lattice(log_q, ends, k)
      index, length = self._path(
        self.search, lattice, params.ngram, context, marginals, sampling, noise
      )
      candidates = jnp.where(lattice.kept, marginals.ids[lattice.index], -1)
    token = jnp.concatenate(
      [marginals.root[:, None], marginals.ids[index]], axis=1
    ).astype(jnp.int32)
    tree = tree_lib.chain(token, jnp.arange(slots) <= length[:, None])
    tree = tree.replace(candidates=candidates)
    return tree, state.replace(inner=kept, generated=generated)

  def _path(
    self, search, lattice, ngram, context, marginals, sampling, noise
  ) -> path_search.Path:
    before = ngram.order - 1 if ngram is not None else 0
    place = context.length[:, None] - before + jnp.arange(before)
    text = context.tokens[
      jnp.arange(place.shape[0])[:, None], jnp.maximum(place, 0)
    ]
    hot = sampling.temperature > 0

    def drawn():
      token = marginals.ids[lattice.index]
      positions = context.length[:, None] + jnp.arange(token.shape[1])
      g = sampling_lib.gumbel(noise, positions, token)
      return jnp.where(hot[:, None, None], g, 0)

    g = jax.lax.cond(jnp.any(hot), drawn, lambda: jnp.zeros_like(lattice.log_q))
    return search.search(
      lattice,
      marginals.ids,
      ngram,
      jnp.where(place >= 0, text, -1),
      g,
      jnp.where(hot, sampling.temperature, 1),
    )

  def observe(self, params, state, context, verdict, features, slots):
    inner = self._inner.observe(
      params.inner, state.inner, context, verdict, features, slots
    )
    state = state.replace(inner=inner)
    if self.length is None:
      return state
    mean, k = self.length.next(state.mean, state.generated, verdict.count)
    return state.replace(mean=mean, k=k)

  def wanted(self, params, state):
    sizes = jnp.array(self.buckets)
    index = jnp.sum(state.k[:, None] + 1 > sizes, axis=1).astype(jnp.int32)
    forced = params.forced
    return jnp.where(forced >= 0, forced, index), jnp.ones_like(index)

  def enter(self, params, state, context, slots):
    del params, context, slots
    return state

  def forced(self, params, index):
    return params.replace(forced=jnp.int32(index))

  def calibrated(self, params, costs, states):
    del costs, states
    return params
