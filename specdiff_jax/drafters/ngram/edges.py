"""An n-gram model as the source of a lattice's edges."""

import dataclasses

import jax
import jax.numpy as jnp

from specdiff_jax.drafters import lattice
from specdiff_jax.drafters.ngram import model


@dataclasses.dataclass(frozen=True)
class Edges:
  """What a pair of tokens says beyond the two alone.

  s_k(c | x) = s_k(c) + weight (log p(c | x) - log p(c)), normalised over the
  candidates. The model is of order 2: in interpolated Kneser-Ney all but the
  longest n-grams are counted by what stands before them, not by how often they
  stand there, and longer ones would want more of the path than an edge knows.
  """

  def __call__(self, params: model.Tables, marginals, scores, index, scale):
    token = marginals.ids[index]  # [B, G, K]
    parent = lattice.parents(marginals, token)
    after = jnp.broadcast_to(token[:, :, None], (*token.shape, token.shape[-1]))
    added = model.log_probabilities(params, parent[..., None], after)
    added = (added - params.log_p[after]) * scale[:, None, None, None]
    here = jnp.take_along_axis(scores, index, axis=-1)
    rows = jax.nn.log_softmax(here[:, :, None] + added, axis=-1)
    return rows[:, 0, 0], rows[:, 1:]
