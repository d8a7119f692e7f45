"""Recorded texts, decoded again: what a drafter says where serving drafts.

The engine runs as it is, with its prefill, its passes of the verifier and its
caches. Only what decides the text is replaced: a drafter around the drafter
proposes the recorded tokens, as many as the real draft has right and the next
one, and a rule accepts them.

  text               a b c d e f        a is the last committed token
  real draft         a b c x y          which has two tokens right
  proposed           a b c d            b and c are accepted, d is the bonus
"""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any, cast, ClassVar

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.drafters import heads


@flax.struct.dataclass
class Texts:
  """What is replayed, and the params of the drafter that listens."""

  drafter: Any
  tokens: jax.Array  # [B, T]
  length: jax.Array  # [B]
  vocab: jax.Array  # [W] tokens whose scores are compared


class Heard(flax.struct.PyTreeNode):
  """What a drafter said of the window after each row's anchor."""

  anchor: jax.Array  # [B]
  scores: jax.Array  # [B, G, C] log-probabilities, up to a constant of a slot
  # [B, G, C] which tokens of the draft vocabulary they are of; (): of all.
  index: Any
  shown: jax.Array  # [B, G] slots whose tokens the drafter was shown
  # [B, G] slots that the text has, behind tokens that the drafter went on from
  # as training does.
  valid: jax.Array


@flax.struct.dataclass
class State:
  """The drafter's own state, and what it said last."""

  drafter: Any
  heard: Heard


@dataclasses.dataclass(frozen=True)
class Replay:
  """Drafts along recorded texts.

  Attributes:
    inner: drafter of chains of its likeliest tokens, with their `log_q`.
    causal: whether each of its tokens follows from those before.
    head: head whose scores are compared in place of the drafter's alone, after
      the text's own tokens; None: there is none.
    candidates: tokens of a slot that the head scores beside the text's.
    prefixes: whether the window is shown its first tokens, as many as the
      anchor's remainder, as D2SD's second drafter is.
  """

  inner: protocols.Drafter
  causal: bool = False
  head: heads.Head | None = None
  candidates: int = 0
  prefixes: bool = False

  chain: ClassVar[bool] = True
  proposal: ClassVar[str] = 'deterministic'

  @property
  def buckets(self) -> tuple[int, ...]:
    return (self.inner.buckets[-1] + 1,)  # with room for the bonus token

  @property
  def max_depth(self) -> int:
    return self.inner.max_depth

  @property
  def features(self) -> tuple[int, ...]:
    return self.inner.features

  def init(self, params, context):
    batch, gamma = context.length.size, self.max_depth
    size, index = params.vocab.size, ()
    if self.head is not None:
      size = self.candidates + 1
      index = jnp.zeros((batch, gamma, size), jnp.int32)
    none = jnp.zeros((batch, gamma), bool)
    heard = Heard(
      anchor=jnp.zeros(batch, jnp.int32),
      scores=jnp.zeros((batch, gamma, size), jnp.float32),
      index=index,
      shown=none,
      valid=none,
    )
    return State(self.inner.init(params.drafter, context), heard)

  def read(self, params, state, context, features, start):
    inner = cast(protocols.FeatureDrafter, self.inner)
    read = inner.read(params.drafter, state.drafter, context, features, start)
    return state.replace(drafter=read)

  def observe(self, params, state, context, verdict, features, slots):
    after = self.inner.observe(
      params.drafter, state.drafter, context, verdict, features, slots - 1
    )
    return state.replace(drafter=after)

  def draft(self, params, state, context, sampling, noise, slots):
    place = context.length[:, None] - 1 + jnp.arange(slots)
    last = params.tokens.shape[1] - 1
    text = jnp.take_along_axis(
      params.tokens, jnp.minimum(place, last), axis=1
    ).astype(jnp.int32)
    there = place < params.length[:, None]
    target, valid = text[:, 1:-1], there[:, 1:-1]
    shown = jnp.zeros(target.shape, bool)
    if self.prefixes:
      number = (context.length - 1) % self.max_depth
      shown = (jnp.arange(self.max_depth) < number[:, None]) & valid
    token, scores, index, inner = self._listen(
      params, state.drafter, context, sampling, noise, target, shown
    )
    right = jnp.cumprod((token == target) & valid, axis=1)
    before = jnp.ones(right.shape, bool)
    if self.causal:
      before = right > 0
    if self.head is not None:  # which knows no other parent
      before = jnp.isin(target, params.vocab)
    valid &= jnp.pad(before[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    # `log_q` may be weakly typed: another type is another program.
    scores = lax.convert_element_type(scores, jnp.float32)
    heard = Heard(context.length - 1, scores, index, shown, valid & ~shown)
    proposed = jnp.sum(right, axis=1, keepdims=True) + 1
    tree = tree_lib.chain(text, there & (jnp.arange(slots) <= proposed))
    return tree, State(inner, heard)

  def _listen(self, params, state, context, sampling, noise, target, shown):
    """Returns drafted tokens [B, G], scores, their index and the state."""
    given = params.drafter, state, context
    inner: Any = self.inner
    if self.prefixes:
      m = inner.branches(*given, target[:, None], shown[:, None])
      logits = m.logits[:, 0, : self.max_depth]
      token = m.ids[jnp.argmax(logits, axis=-1)]
      scores = jnp.full((*token.shape, m.vocab_size), -jnp.inf)
      scores = scores.at[..., m.ids].set(logits)[..., params.vocab]
      return jnp.where(shown, target, token), scores, (), state
    if self.head is not None:
      m, state = inner.denoise(*given, sampling, noise)
      token = m.ids[jnp.argmax(m.logits, axis=-1)]
      return token, *self._of_head(m, target), state
    tree, state = inner.draft(*given, sampling, noise, self.max_depth + 1)
    scores = tree.log_q[:, 1:][..., params.vocab]
    return tree.token[:, 1:], scores, (), state

  def _of_head(self, m, target):
    """Returns what the head says after the text's own tokens, and of which."""
    assert self.head is not None
    own = jnp.argmax(m.ids == target[..., None], axis=-1)[..., None]
    _, others = sampling_lib.top_k(m.logits, self.candidates)
    index = jnp.concatenate([own, others], axis=-1).astype(jnp.int32)
    one = jnp.ones(m.length.shape)
    start, trans = self.head(m.edges, m, m.logits, index, one)
    scores = jnp.concatenate([start[:, None], trans[:, :, 0]], axis=1)
    return scores, index


@dataclasses.dataclass(frozen=True)
class Follow:
  """Accepts a chain but for its last valid slot, whose token is the bonus."""

  needs: ClassVar[frozenset[str]] = frozenset(protocols.PROPOSALS)
  reads_q: ClassVar[bool] = False
  one_chain: ClassVar[bool] = True

  def __call__(self, tree, logits, length, sampling, noise, max_depth):
    del logits, length, sampling, noise
    count = jnp.maximum(jnp.sum(tree.valid, axis=1) - 2, 0)
    slot = jnp.arange(max_depth + 1)
    path = jnp.where(slot <= count[:, None], slot, 0)
    bonus = tree.token[jnp.arange(count.size), count + 1]
    return types.Verdict(path, count.astype(jnp.int32), bonus)


def walk(
  engine: engine_lib.Engine,
  params: types.Params,
  texts: Texts,
  prompt: Sequence[int],
  bucket: int,
) -> Iterator[tuple[Heard, np.ndarray]]:
  """Yields what is heard in each cycle, and which rows [B] were live.

  Args:
    engine: whose drafter is a `Replay`.
    params: the verifier's.
    texts: what is replayed.
    prompt: tokens of each row's prompt.
    bucket: P, that prompts are padded to.
  """
  batch = len(prompt)
  rows, before = jnp.arange(batch), jnp.asarray(prompt, jnp.int32)
  zeros = jnp.zeros(batch, jnp.int32)
  known = jnp.arange(bucket) < before[:, None]
  state = engine.prefill(
    params,
    texts,
    types.Prompt(jnp.where(known, texts.tokens[:, :bucket], 0), before),
    texts.length - before,
    jnp.full(1, -1, jnp.int32),
    types.Sampling(jnp.zeros(batch), zeros, jnp.ones(batch)),
    sampling_lib.request_noise(0, rows),
  )
  # The text's own first token in place of the one that was chosen: nothing
  # has read it yet.
  first = texts.tokens[rows, before]
  state = state.replace(tokens=state.tokens.at[rows, before].set(first))
  while not (done := np.asarray(state.done)).all():
    state = engine.decode(params, texts, state, jnp.int32(1))
    # The next call takes the state's memory.
    yield jax.tree.map(jnp.copy, state.drafter.heard), ~done
