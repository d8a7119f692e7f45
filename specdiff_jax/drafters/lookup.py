"""Prompt lookup: copies what followed the last tokens earlier in the text."""

import dataclasses

import jax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import limits
from specdiff_jax.core import ngram as ngram_lib
from specdiff_jax.core import tree
from specdiff_jax.drafters import chain


@dataclasses.dataclass(frozen=True)
class PromptLookup(chain.Chain):
  """Drafts the continuation of the longest n-gram match; no model at all."""

  gamma: int
  ngram: int = 3

  proposal = 'deterministic'

  def __post_init__(self):
    if not 1 <= self.ngram <= limits.MOST_NGRAM:
      raise errors.InputError(
        f'ngram={self.ngram}, but prompt lookup looks for matches of 1 to '
        f'{limits.MOST_NGRAM} tokens.'
      )

  def draft(self, params, state, context, sampling, noise, slots):
    del params, sampling, noise
    copied, matched = jax.vmap(
      lambda t, n: ngram_lib.continuation(t, n, slots - 1, self.ngram)
    )(context.tokens, context.length)
    token = jnp.concatenate([context.last[:, None], copied], axis=1)
    valid = jnp.broadcast_to(matched[:, None] > 0, token.shape)
    return tree.chain(token, valid), state
