"""A drafter that knows the continuation, and errs where it is told to."""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from specdiff_jax.core import types


@flax.struct.dataclass
class Script:
  """What `Scripted` reads."""

  truth: jax.Array  # [V, T] text of the prompt that begins with a token
  error: jax.Array  # [P, M] added to the right token, by cycle and slot


@dataclasses.dataclass(frozen=True)
class Scripted:
  """Drafts the known continuation plus errors, in a tree of any shape.

  Attributes:
    parents: the parent of each slot; 0 of the first.
    chain: whether that is a chain; a wrong answer is a negative control.
    vocab_size: V.
  """

  parents: tuple[int, ...]
  chain: bool
  vocab_size: int

  proposal: ClassVar[str] = 'unknown'
  features: ClassVar[tuple[int, ...]] = ()

  @property
  def depths(self) -> list[int]:
    depths = [0]
    for parent in self.parents[1:]:
      depths.append(depths[parent] + 1)
    return depths

  @property
  def buckets(self) -> tuple[int, ...]:
    return (len(self.parents),)

  @property
  def max_depth(self) -> int:
    return max(self.depths)

  def init(self, params, context):
    return jnp.zeros_like(context.length)

  def draft(self, params, state, context, sampling, noise, slots):
    length = context.length[:, None]
    depth = jnp.array(self.depths)[None]
    place = jnp.minimum(length - 1 + depth, params.truth.shape[1] - 1)
    truth = params.truth[context.tokens[:, 0]]
    token = jnp.take_along_axis(truth, place, axis=1)
    token = token + params.error[state % len(params.error)]
    token %= self.vocab_size
    shape = token.shape
    tree = types.DraftTree(
      token=token.at[:, 0].set(context.last),
      parent=jnp.broadcast_to(jnp.array(self.parents), shape),
      depth=jnp.broadcast_to(depth, shape),
      valid=jnp.ones(shape, bool),
    )
    return tree, state + 1

  def observe(self, params, state, context, verdict, features, slots):
    return state
