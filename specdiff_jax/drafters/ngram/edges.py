"""An n-gram model as the source of a lattice's edges."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters.ngram import model


@dataclasses.dataclass(frozen=True)
class Edges:
  """What a pair of tokens says beyond the two alone.

  s_k(c | x) = s_k(c) + weight (log p(c | x) - log p(c)), normalised over the
  candidates, with the p of pairs and of single tokens: longer n-grams would
  want more of the path than an edge knows.
  """

  def __call__(
    self,
    params: model.Tables,
    marginals: marginals_lib.Marginals,
    scores: jax.Array,
    index: jax.Array,
    scale: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    token = marginals.ids[index]  # [B, G, K]
    parent = lattice.parents(marginals, token)
    pairs: Any = params.replace(longer=params.longer[:1])
    after = jnp.broadcast_to(token[:, :, None], (*token.shape, token.shape[-1]))
    added = model.log_probabilities(pairs, parent[..., None], after)
    added = (added - params.log_p[after]) * scale[:, None, None, None]
    here = jnp.take_along_axis(scores, index, axis=-1)
    rows = jax.nn.log_softmax(here[:, :, None] + added, axis=-1)
    return rows[:, 0, 0], rows[:, 1:]
