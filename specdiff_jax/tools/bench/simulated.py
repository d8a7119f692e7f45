"""Simulated acceptance: what a system would cost with a drafter of given skill.

A drafter that was never trained (`config.drafter=random`) runs as it is, and
its tokens are then replaced by those that plain decoding is known to write, each
with a given probability, and by others where that fails. The verifier checks
them as it checks any: the text stays its own, times are those of the real passes,
and only tau is made up.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.core import protocols
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib


class Params(flax.struct.PyTreeNode):
  """The drafter's own params, and what plain decoding writes.

  `rate` is the probability that a token of the chain is plain decoding's, given
  that those before it are.
  """

  own: types.Params
  rate: jax.Array  # []
  texts: jax.Array  # [N, T] int32 prompts and what follows them
  prompts: jax.Array  # [N] int32 tokens of each prompt


@dataclasses.dataclass(frozen=True)
class Simulated:
  """A drafter whose likeliest chain is right with a given rate.

  Attributes:
    drafter: whose passes run.
    vocab_size: V.
  """

  drafter: protocols.Drafter
  vocab_size: int

  proposal = 'unknown'

  @property
  def buckets(self) -> tuple[int, ...]:
    return self.drafter.buckets

  @property
  def max_depth(self) -> int:
    return self.drafter.max_depth

  @property
  def chain(self) -> bool:
    return self.drafter.chain

  @property
  def features(self) -> tuple[int, ...]:
    return self.drafter.features

  def init(self, params, context):
    size = min(context.tokens.shape[1], params.texts.shape[1])
    same = context.tokens[:, None, :size] == params.texts[:, :size]
    past = jnp.arange(size) >= params.prompts[:, None]
    found = jnp.all(same | past, axis=-1)  # [B, N]
    found &= context.length[:, None] - 1 == params.prompts
    return self.drafter.init(params.own, context), jnp.argmax(found, axis=1)

  def read(self, params, state, context, features, start):
    own, text = state
    # Only where the drafter has features, and so reads them.
    drafter: Any = self.drafter
    return drafter.read(params.own, own, context, features, start), text

  def draft(self, params, state, context, sampling, noise, slots):
    own, text = state
    tree, own = self.drafter.draft(
      params.own, own, context, sampling, noise, slots
    )
    place = context.length[:, None] - 1 + tree.depth  # [B, M]
    known = params.texts[text[:, None], place]  # past its end: the last one
    # A coin a place of a text: as good as one a cycle, and no state.
    coin = jax.vmap(jax.vmap(_coin, (None, 0)))(text, place) < params.rate
    right = _first_chain(tree) & coin
    other = (known + 1) % self.vocab_size
    wrong = jnp.where(tree.token == known, other, tree.token)
    token = jnp.where(right, known, wrong)
    token = token.at[:, 0].set(context.last).astype(jnp.int32)
    return tree.replace(token=token, candidates=None, log_q=None), (own, text)

  def observe(self, params, state, context, verdict, features, slots):
    own, text = state
    own = self.drafter.observe(
      params.own, own, context, verdict, features, slots
    )
    return own, text


def _coin(text: jax.Array, place: jax.Array) -> jax.Array:
  key = jax.random.fold_in(jax_settings.key(0), text)
  return jax.random.uniform(jax.random.fold_in(key, place))


def _first_chain(tree: types.DraftTree) -> jax.Array:
  """Returns [B, M]: whether a slot and its ancestors are all first children."""
  slot = jnp.arange(tree.parent.shape[1])
  siblings = tree.parent[:, :, None] == tree.parent[:, None]
  elder = siblings & (slot < slot[:, None]) & (slot > 0) & tree.valid[:, None]
  first = tree.valid & ~jnp.any(elder, axis=2)
  return ~jnp.any(tree_lib.lines(tree) & ~first[:, None], axis=2)


def check(rate: float | None) -> None:
  """Raises InputError unless it is a probability, or None."""
  if rate is not None and not 0 <= rate <= 1:
    raise errors.InputError(
      f'simulate is {rate}, but it is a probability: give 0 to 1.'
    )


def check_session(session: session_lib.Session, coupled: bool) -> None:
  """Raises InputError where acceptance cannot be simulated.

  Args:
    session: what decodes.
    coupled: whether its very tokens are plain decoding's.
  """
  why = ''
  if session.engine.adaptive is not None:
    why = 'it chooses among sizes'
  elif not coupled or session.engine.rule.reads_q:
    why = "its text is plain decoding's in distribution alone"
  if why:
    raise errors.InputError(
      f'the acceptance of {session.name!r} cannot be simulated: {why}; leave the '
      'system out, or take rule=match.'
    )


def of(
  session: session_lib.Session,
  rate: float,
  requests: Sequence[request_lib.Request],
  completions: Sequence[Sequence[int]],
) -> session_lib.Session:
  """Returns the session with a simulated drafter.

  Args:
    session: which `check_session` lets pass.
    rate: see `Params`.
    requests: all that it will be asked.
    completions: plain decoding's tokens of each.
  """
  engine = session.engine
  texts = [[*a.prompt, *b] for a, b in zip(requests, completions, strict=True)]
  room = max(map(len, texts)) + engine.drafter.max_depth + 1
  table = np.array([t + [t[-1]] * (room - len(t)) for t in texts], np.int32)
  prompts = np.array([len(one.prompt) for one in requests], np.int32)
  drafter = Simulated(engine.drafter, engine.verifier.vocab_size)
  return dataclasses.replace(
    session,
    engine=dataclasses.replace(engine, drafter=drafter),
    drafter_params=Params(
      session.drafter_params,
      jnp.float32(rate),
      jnp.asarray(table),
      jnp.asarray(prompts),
    ),
  )
