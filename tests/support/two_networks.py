"""A throw-away family of two networks, as D2SD has: one module, one line.

Each is a table from a token to a state that the verifier's head reads. The
first drafts a token, the second the one after it.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from specdiff_jax.core import fields
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.drafters import family
from specdiff_jax.drafters import scores


@dataclasses.dataclass(frozen=True)
class First:
  """Sizes of the first network."""

  vocab: int
  verifier: Any

  kind: ClassVar[str] = 'dual.first'
  may_be_zero: ClassVar[tuple[str, ...]] = ()
  layers: ClassVar[int] = 1
  features: ClassVar[tuple[int, ...]] = ()

  def shapes(self):
    shape = self.verifier.vocab_size, self.verifier.width
    return {'table': jax.ShapeDtypeStruct(shape, jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Second(First):
  """Sizes of the second network."""

  kind: ClassVar[str] = 'dual.second'


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a new network, of either part."""

  vocab: int = fields.field(64, 'size of the draft vocabulary', low=1)


OPTIONS = {'first': Options, 'second': Options}


def sizes(config):
  """Returns the sizes of new networks of one part."""

  def make(options, gamma, verifier):
    del gamma
    return config(min(options.vocab, verifier.vocab_size), verifier)

  return make


def initial(config, key):
  shape = config.shapes()['table'].shape
  return {'table': jax.random.normal(key, shape)}


def from_verifier(config, key, verifier):
  return {'table': jnp.asarray(verifier['embed'], jnp.float32)}


def score_of(config):
  """Returns the score of windows, each slot by the token before it."""

  def score(params, frozen, batch, gamma, shown=None):
    states = params['table'][batch['tokens']]
    positions = jnp.broadcast_to(jnp.arange(states.shape[1]), states.shape[:2])
    place = jnp.minimum(
      scores.places(batch.anchors, gamma), states.shape[1] - 1
    )
    return scores.Predictions(states, positions, place)

  return score


@dataclasses.dataclass(frozen=True)
class Pair:
  """Drafts one token with each network."""

  chain: ClassVar[bool] = True
  proposal: ClassVar[str] = 'deterministic'
  buckets: ClassVar[tuple[int, ...]] = (3,)
  max_depth: ClassVar[int] = 2
  features: ClassVar[tuple[int, ...]] = ()

  def init(self, params, context):
    return ()

  def draft(self, params, state, context, sampling, noise, slots):
    rows = jnp.arange(context.length.shape[0])
    tokens = [context.tokens[rows, context.length - 1]]
    for part in ('first', 'second'):
      one = params[part]
      best = jnp.argmax(one.network['table'][tokens[-1]] @ one.head.T, axis=-1)
      tokens.append(one.vocab[best])
    token = jnp.stack(tokens, axis=1).astype(jnp.int32)
    return tree_lib.chain(token, jnp.ones_like(token, bool), None), state

  def observe(self, params, state, *rest):
    return state


def _drafter(parts, checkpoint, serving):
  return Pair(), {
    part: family.with_head(one, checkpoint) for part, one in parts.items()
  }


FAMILY = family.Family(
  networks={
    part: family.Network(
      sizes(config), config, initial, from_verifier, __name__
    )
    for part, config in (('first', First), ('second', Second))
  },
  drafter=_drafter,
)
