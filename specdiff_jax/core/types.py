"""The nouns of decoding, and the two protocols that systems implement.

Dimension letters, used as suffixes of locals and arguments and in comments:

  B  rows (sequences decoded together)      K  drafts
  T  token buffer                           V  vocabulary of the verifier
  S  cache slots                            E  width
  M  slots of the draft tree                L  layers
  D  depth of the deepest path              H  heads
  G  gamma, the drafted window              F  verifier layers read as features

Every system proposes a token tree of static size; the verifier scores it in
one pass; one rule walks it. A chain is a tree, plain autoregressive decoding
is the tree with only its root.
"""

from typing import Any, ClassVar, Protocol

import flax.struct
import jax

Params = Any  # a pytree of arrays
State = Any  # a pytree whose every leaf is [B, ...]


@flax.struct.dataclass
class DraftTree:
  """A tree of drafted tokens; slot 0 is the last committed token."""

  token: jax.Array  # [B, M] int32
  parent: jax.Array  # [B, M] int32; parent[i] < i, and parent[0] = 0
  depth: jax.Array  # [B, M] int32; depth[0] = 0
  valid: jax.Array  # [B, M] bool; an invalid slot is never accepted
  log_q: jax.Array | None = None  # [B, M, V] the law each slot was drawn from


@flax.struct.dataclass
class Verdict:
  """What an acceptance rule says of a tree."""

  path: jax.Array  # [B, D+1] slots by depth, from slot 0; 0 past `count`
  count: jax.Array  # [B] accepted draft tokens, 0 to D
  bonus: jax.Array  # [B] the verifier's own token after the accepted path


@flax.struct.dataclass
class Sampling:
  """The law that tokens are drawn from, per row; dynamic, so never retraced.

  temperature 0 is greedy decoding; top_k 0 and top_p 1 switch those off.
  """

  temperature: jax.Array  # [B] float32, >= 0
  top_k: jax.Array  # [B] int32, >= 0
  top_p: jax.Array  # [B] float32, in (0, 1]


@flax.struct.dataclass
class Noise:
  """Keys of the position-keyed noise: a function of (request, position)."""

  key: jax.Array  # [B] typed keys: fold_in(seed, request id), never the row


@flax.struct.dataclass
class Context:
  """What a drafter may look at."""

  tokens: jax.Array  # [B, T] int32, committed tokens from the left
  length: jax.Array  # [B] committed tokens; the last is not in the cache yet
  verifier: Params  # the verifier's params: shared embedding and head
  cache: Any  # the verifier's cache, `length - 1` tokens of each row


@flax.struct.dataclass
class Stats:
  """Counters of one row, prefill excluded."""

  cycles: jax.Array  # [B] int32 verifier calls in which the row was live
  emitted: jax.Array  # [B] int32 tokens emitted by those calls
  accepted: jax.Array  # [B, D+1] int32 histogram of accepted draft tokens


@flax.struct.dataclass
class DecodeState:
  """All that decoding carries from cycle to cycle.

  Invariant: the verifier's cache holds exactly `length - 1` tokens of each
  row. Positions, masks and cache fill are derived from `length`.
  """

  tokens: jax.Array  # [B, T] int32 prompt and completion
  length: jax.Array  # [B] int32 committed tokens
  limit: jax.Array  # [B] int32 length at which the row stops
  done: jax.Array  # [B] bool
  end_ids: jax.Array  # [N] int32 tokens that end a row; -1 pads
  cache: Any  # the verifier's keys and values
  drafter: State
  sampling: Sampling
  noise: Noise
  stats: Stats


class Drafter(Protocol):
  """A family of drafts: a frozen dataclass, static under jit.

  Equal objects never retrace; arrays live in `params` and `state`.
  """

  max_slots: int  # M, root included
  max_depth: int  # D
  proposal: ClassVar[str]  # 'deterministic' | 'iid' | 'autoregressive' | ...
  chain: bool  # slot i is always the child of slot i - 1: no cache gather
  features: tuple[int, ...]  # verifier layers whose outputs it wants

  def init(
      self, params: Params, context: Context, features: jax.Array | None
  ) -> State:
    """Returns the state after prefill; features [B, T, F, E]."""

  def draft(
      self,
      params: Params,
      state: State,
      context: Context,
      sampling: Sampling,
      noise: Noise,
  ) -> tuple[DraftTree, State]:
    """Proposes a tree whose slot 0 is the last committed token."""

  def observe(
      self,
      params: Params,
      state: State,
      context: Context,
      verdict: Verdict,
      features: jax.Array | None,
  ) -> State:
    """Takes in the accepted path.

    `features` [B, D+1, F, E] are those of the slots of `verdict.path`, the
    root first; `context` is still the one that the draft saw.
    """


class AcceptanceRule(Protocol):
  """Walks a verified tree: a frozen dataclass, static under jit."""

  needs: ClassVar[frozenset[str]]  # proposals it is lossless for

  def __call__(
      self,
      tree: DraftTree,
      logits: jax.Array,
      length: jax.Array,
      sampling: Sampling,
      noise: Noise,
      max_depth: int,
  ) -> Verdict:
    """Takes logits [B, M, V] float32 and `length` [B] before the cycle."""
