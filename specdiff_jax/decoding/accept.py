"""Acceptance rules: which path of a verified tree is kept."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types


@dataclasses.dataclass(frozen=True)
class SampleAndMatch:
  """Rule M: draw one token y ~ p at each node, move to the child that has it.

  Lossless for any tree, drafter and selection, since the emitted token is the
  verifier's own draw; temperature 0 is the case y = argmax. The noise is keyed
  by position, so the output equals seeded plain sampling token for token.
  """

  needs: ClassVar[frozenset[str]] = frozenset(
      {'deterministic', 'iid', 'autoregressive', 'unknown'}
  )

  def __call__(
      self,
      tree: types.DraftTree,
      logits: jax.Array,
      length: jax.Array,
      sampling: types.Sampling,
      noise: types.Noise,
      max_depth: int,
  ) -> types.Verdict:
    """See `AcceptanceRule`. The token after depth d has position length + d."""
    positions = length[:, None] + tree.depth
    token = sampling_lib.choose(logits, positions, sampling, noise)
    return tree_lib.matched_path(tree, jnp.asarray(token), max_depth)
