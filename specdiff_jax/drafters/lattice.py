"""Lattices: trees of each slot's likeliest tokens, whose edges know the parent.

Marginals say of each slot alone what it may be. A source says what a slot may
be after each candidate of the one before; the tree then holds the likeliest
prefixes under that (PCTree, 2608.02123).
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import prefix_trees
from specdiff_jax.drafters import strategies


class Source(Protocol):
  """Where the edges of a lattice come from: a frozen dataclass."""

  def __call__(
    self,
    params: Any,
    marginals: marginals_lib.Marginals,
    scores: jax.Array,
    index: jax.Array,
    scale: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns log-probabilities start [B, K] and trans [B, G - 1, K, K].

    Those of each row are normalised, over the draft vocabulary or over the
    candidates: none may be above 0.

    Args:
      params: its arrays, which are `marginals.edges`.
      marginals: of the window's slots; `states` are what a head reads, and
        `root` is the parent of the first slot's candidates.
      scores: [B, G, W] unnormalised log-probabilities of each slot alone, after
        temperature and filters and with the noise of its position, which all
        parents share.
      index: [B, G, K] the candidates, by their places among the W tokens.
      scale: [B] what is multiplied with what it adds to scores: the lattice's
        weight by the temperature.
    """
    ...


def parents(marginals: marginals_lib.Marginals, token: jax.Array) -> jax.Array:
  """Returns what may come before each slot, of candidates [B, G, K].

  Before the first one that is the last committed token.
  """
  root = jnp.broadcast_to(marginals.root[:, None, None], token[:, :1].shape)
  return jnp.concatenate([root, token[:, :-1]], axis=1)


@dataclasses.dataclass(frozen=True)
class Lattice(strategies.BestFirst):
  """The likeliest prefixes of each slot's K likeliest tokens.

  At temperature > 0 the verifier's noise is added before the K are taken, and
  each parent's row is normalised after it: scores would rise otherwise, and
  prefixes be taken without their beginnings.

  Attributes:
    budget: slots of the tree, its root included.
    frontier: F, prefixes of each depth that are continued.
    candidates: K, tokens of each slot.
    source: what tells the edges; None: the marginals, whatever the parent.
    weight: of what the source adds to the scores of a slot alone.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Lattice(budget=32, candidates=4).slots(gamma=4)
    32
  """

  frontier: int = 8
  candidates: int = 8
  source: Source | None = None
  weight: float = 1.0

  def __post_init__(self):
    for name, least in (('budget', 2), ('frontier', 1), ('candidates', 1)):
      if (value := getattr(self, name)) < least:
        raise errors.InputError(
          f'{name} is {value}, but a lattice needs at least {least}.'
        )

  def __call__(self, marginals, sampling, noise, slots):
    m, size = marginals, marginals.ids.size
    if self.candidates > size:
      raise errors.InputError(
        f'candidates is {self.candidates}, but the drafter has {size} tokens. '
        'Lower it.'
      )
    scores = marginals_lib.conditioned(m, sampling, noise)
    if self.source is None:
      log_q = jax.nn.log_softmax(scores, axis=-1)
      value, index = sampling_lib.top_k(log_q, self.candidates)
      start, trans = value[:, 0], value[:, 1:, None]
    else:
      _, index = sampling_lib.top_k(scores, self.candidates)
      hot = sampling.temperature > 0
      scale = self.weight / jnp.where(hot, sampling.temperature, 1.0)
      start, trans = self.source(m.edges, m, scores, index, scale)
    token = m.ids[index]
    return prefix_trees.lattice(
      start, trans, token, m.root, slots, self.frontier
    )
