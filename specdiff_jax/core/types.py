"""The nouns of decoding, and the three strategies that meet in its loop.

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

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import flax.struct
import jax
import jax.numpy as jnp

Params = Any  # a pytree of arrays
State = Any  # a pytree whose every leaf is [B, ...]

# Why a cycle's draft ended where it did. The verifier's next token
ENDS = {
  'not in top-K': 'was no candidate of its slot',
  'wrong parent': 'was drafted at its depth, after another token',
  'budget': 'was a candidate, or past the window, but not drafted, or not chosen',
  'end': "ended the text, or an accepted token did, or the text's limit",
}

PROPOSALS = {
  'deterministic': 'chosen, not drawn: argmax, search, lookup, shared noise',
  'iid': 'chains drawn independently from the marginals of one pass',
  'autoregressive': 'a chain, each token drawn given the ones before it',
  'distinct': 'siblings drawn without replacement, in the order of draws',
  'unknown': 'drawn from what `log_q` does not tell, or by several',
}


class DraftTree(flax.struct.PyTreeNode):
  """A tree of drafted tokens; slot 0 is the last committed token.

  Example:
    >>> import specdiff_jax as sd
    >>> import jax.numpy as jnp
    >>> index = jnp.arange(3)[None]  # a chain
    >>> tree = sd.DraftTree(index + 7, jnp.maximum(index - 1, 0), index, index >= 0)
    >>> tree.token.tolist(), tree.parent.tolist()
    ([[7, 8, 9]], [[0, 0, 1]])
  """

  token: jax.Array  # [B, M] int32
  parent: jax.Array  # [B, M] int32; parent[i] < i, and parent[0] = 0
  depth: jax.Array  # [B, M] int32; depth[0] = 0
  valid: jax.Array  # [B, M] bool; an invalid slot is never accepted
  log_q: jax.Array | None = None  # [B, M, V] what each slot was drawn from
  # [B, M, M] `tree.ancestors` of `parent`; None: computed where it is read.
  ancestors: jax.Array | None = None
  # [B, G, K] int32 tokens that each depth was chosen from, -1 for none, for
  # `Stats.ends`; None: what was drafted there.
  candidates: jax.Array | None = None


class Verdict(flax.struct.PyTreeNode):
  """What an acceptance rule says of a tree.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Verdict(path=[[0, 1]], count=[1], bonus=[5]).count
    [1]
  """

  path: jax.Array  # [B, D+1] slots by depth, from slot 0; 0 past `count`
  count: jax.Array  # [B] accepted draft tokens, 0 to D
  bonus: jax.Array  # [B] the verifier's token after the accepted path


class Sampling(flax.struct.PyTreeNode):
  """The distribution of tokens, per row; dynamic, so never retraced.

  temperature 0 is greedy decoding; top_k 0 and top_p 1 switch those off.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Sampling(temperature=[0.7], top_k=[0], top_p=[1.0]).temperature
    [0.7]
  """

  temperature: jax.Array  # [B] float32, >= 0
  top_k: jax.Array  # [B] int32, >= 0
  top_p: jax.Array  # [B] float32, in (0, 1]


class Noise(flax.struct.PyTreeNode):
  """Keys of the position-keyed noise: a function of (request, position).

  Example:
    >>> import specdiff_jax as sd
    >>> import jax
    >>> sd.Noise(jax.random.split(jax.random.key(0), 2)).key.shape
    (2,)
  """

  key: jax.Array  # [B] typed keys: fold_in(seed, request id), never the row


class Prompt(flax.struct.PyTreeNode):
  """What a verifier reads before it decodes.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.Prompt(tokens=[[5, 6]], length=[2]).extra
    ()
  """

  tokens: jax.Array  # [B, P] int32 from the left
  length: jax.Array  # [B] int32; 0: a row that pads the batch
  extra: Any = ()  # what is no token; leaves [B, ...]


class Stats(flax.struct.PyTreeNode):
  """Counters of one row, prefill excluded."""

  cycles: jax.Array  # [B] int32 verifier calls in which the row was live
  emitted: jax.Array  # [B] int32 tokens emitted by those calls
  accepted: jax.Array  # [B, D+1] int32 histogram of accepted draft tokens
  bad: jax.Array  # [B] int32 cycle of the verifier's first NaN; 0: prefill; -1
  ends: jax.Array  # [B, D+1, 4] int32 `accepted` by why no more were, as ENDS


class DecodeState(flax.struct.PyTreeNode):
  """All that decoding carries from cycle to cycle.

  Invariant: the verifier's cache holds exactly `length - 1` tokens of each
  row. Positions, masks and cache fill are derived from `length`.

  Example:
    >>> import specdiff_jax as sd
    >>> list(sd.DecodeState.__dataclass_fields__)[:3]
    ['tokens', 'length', 'limit']
  """

  tokens: jax.Array  # [B, T] int32 prompt and completion
  length: jax.Array  # [B] int32 committed tokens
  limit: jax.Array  # [B] int32 length at which the row stops
  done: jax.Array  # [B] bool
  end_ids: jax.Array  # [N] int32 tokens that end a row; -1 pads
  cache: Any  # the verifier's
  drafter: State
  sampling: Sampling
  noise: Noise
  stats: Stats
  # [B, T] float32 of completion tokens, where the engine keeps them.
  logprobs: jax.Array | None = None
  # [B, T, 2] int32 of them: the cycle that yielded each (0: prefill), and its
  # depth in the draft (0: the verifier's own), where the engine keeps them.
  trace: jax.Array | None = None


class Verifier(Protocol):
  """A model that scores trees: a frozen dataclass, static under jit.

  Its cache is a pytree that says its `slots`, as `models.cache.Cache` does, which
  KV caches are; the rest of the layout is its own business. `Engine` takes any;
  `sd.system` those of `load_verifier`.

  Example:
    >>> import specdiff_jax as sd
    >>> system = sd.system('ar', sd.testing.tiny_verifier())
    >>> system.session.engine.verifier.vocab_size
    61
  """

  @property
  def vocab_size(self) -> int:
    """V."""
    ...

  @property
  def width(self) -> int:
    """E, of embeddings and features."""
    ...

  @property
  def max_positions(self) -> int:
    """Tokens of the longest sequence that it was made for."""
    ...

  def read(
    self,
    params: Params,
    cache: Any,
    prompt: Prompt,
    start: jax.Array,
    size: int,
    features: tuple[int, ...],
  ) -> tuple[jax.Array, Any, jax.Array | None]:
    """Reads `size` tokens of prompts, from `start` [] on, into the cache.

    It holds those before them. Returns what `head` takes, [B, size, E], the
    cache, and the outputs of the layers `features`, [B, size, F, E], or None
    where there are none.
    """
    ...

  def score(
    self,
    params: Params,
    cache: Any,
    tree: DraftTree,
    length: jax.Array,
    features: tuple[int, ...],
  ) -> tuple[jax.Array, Any, jax.Array | None]:
    """Scores all slots of trees in one pass.

    The cache holds `length - 1` tokens of each row [B]; slot i of the tree goes
    to its slot `length - 1 + i`. Returns logits [B, M, V] float32 after each
    slot, the cache and features [B, M, F, E] or None.
    """
    ...

  def commit(
    self,
    cache: Any,
    tree: DraftTree,
    verdict: Verdict,
    length: jax.Array,
    chain: bool,
  ) -> Any:
    """Returns the cache of `score` with the accepted paths of its trees alone.

    `chain`: the trees were chains, whose paths are in place already.
    """
    ...

  def embed(self, params: Params, tokens: jax.Array) -> jax.Array:
    """Returns the embeddings [..., E] of tokens [...], float32, as stored."""
    ...

  def head(self, params: Params, states: jax.Array) -> jax.Array:
    """Maps final states [..., E] to float32 logits [..., V]."""
    ...

  def empty(self, batch: int, slots: int) -> Any:
    """Returns a cache of `slots` for each of `batch` rows."""
    ...

  def spec(self, tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns the shardings of its params, or of its cache, given as shapes."""
    ...


class Context(flax.struct.PyTreeNode):
  """What a drafter may look at.

  Example:
    >>> import specdiff_jax as sd
    >>> import jax.numpy as jnp
    >>> tokens, length = jnp.array([[5, 6, 0]]), jnp.array([2])
    >>> sd.Context(tokens, length, None, None, None).last.tolist()
    [6]
  """

  tokens: jax.Array  # [B, T] int32, committed tokens from the left
  length: jax.Array  # [B] committed tokens; the last is not in the cache yet
  cache: Any  # the verifier's, `length - 1` tokens of each row
  params: Params  # the verifier's
  verifier: Verifier = flax.struct.field(pytree_node=False)
  end_ids: Any = ()  # [N] int32 tokens that end a row; -1 pads

  @property
  def last(self) -> jax.Array:
    """[B] int32, the last committed token."""
    return self.tokens[jnp.arange(self.length.size), self.length - 1]

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Returns the verifier's embeddings [..., E] of tokens [...]."""
    return self.verifier.embed(self.params, tokens)

  def head(self, states: jax.Array) -> jax.Array:
    """Maps final states [..., E] to the verifier's logits [..., V]."""
    return self.verifier.head(self.params, states)


class Drafter(Protocol):
  """A family of drafts: a frozen dataclass, static under jit.

  Equal objects never retrace; arrays live in `params` and `state`.

  Example:
    >>> from specdiff_jax.drafters import lookup
    >>> lookup.PromptLookup(gamma=4).buckets
    (5,)
  """

  @property
  def buckets(self) -> tuple[int, ...]:
    """Sizes M it can be asked for, ascending."""
    ...

  @property
  def max_depth(self) -> int:
    """D."""
    ...

  @property
  def proposal(self) -> str:
    """One of PROPOSALS: what `log_q` means."""
    ...

  @property
  def chain(self) -> bool:
    """Whether slot i is always the child of slot i - 1: no cache gather."""
    ...

  @property
  def features(self) -> tuple[int, ...]:
    """Verifier layers whose outputs it wants; see `FeatureDrafter`."""
    ...

  def init(self, params: Params, context: Context) -> State:
    """Returns the state before the verifier reads the prompts.

    They are in `context.tokens`; `context.length` counts the token after each,
    which is not known yet, and `context.cache` is empty.

    A KV cache in it is a `models.cache.Cache` and grows with the verifier's;
    the size of no other leaf depends on that of `context.cache`.
    """
    ...

  def draft(
    self,
    params: Params,
    state: State,
    context: Context,
    sampling: Sampling,
    noise: Noise,
    slots: int,
  ) -> tuple[DraftTree, State]:
    """Proposes a tree of `slots` slots, the size of one of the buckets.

    Slot 0 is the last committed token. `sampling` is the verifier's, `noise`
    its draws: a draft may look at what is keyed by position only if its rule is
    SampleAndMatch or GreedyAcceptance.
    """
    ...

  def observe(
    self,
    params: Params,
    state: State,
    context: Context,
    verdict: Verdict,
    features: jax.Array | None,
    slots: int,
  ) -> State:
    """Takes in the accepted path of a tree of `slots` slots.

    `features` [B, D+1, F, E] are those of the slots of `verdict.path`, the
    root first; `context` is still the one that the draft saw. D is that of
    the cycle's bucket: at most `slots` - 1.
    """
    ...


class FeatureDrafter(Drafter, Protocol):
  """A drafter whose `features` has layers."""

  def read(
    self,
    params: Params,
    state: State,
    context: Context,
    features: jax.Array,
    start: jax.Array,
  ) -> State:
    """Takes in features [B, C, F, E] of a prompt's tokens from start [B] on.

    Called for chunk after chunk; `context` is that of `init`. A chunk may
    repeat tokens of the one before it, and hold more than a row has.
    """
    ...


class AdaptiveDrafter(Drafter, Protocol):
  """A drafter of several buckets, which says what size it wants.

  What it chooses from may be in its params: cycles of each bucket are measured
  on the host before, if it is `calibrates`.
  """

  @property
  def calibrates(self) -> bool:
    """Whether its choice depends on what `calibrated` is given."""
    ...

  def wanted(self, params: Params, state: State) -> tuple[jax.Array, jax.Array]:
    """Returns the index of the bucket that each row wants next, and how long.

    Both [B], the second in cycles, at least 1. The loop takes the largest index
    of the batch for the least number of cycles.
    """
    ...

  def enter(
    self, params: Params, state: State, context: Context, slots: int
  ) -> State:
    """Returns the state as drafts of `slots` slots find it, after others."""
    ...

  def forced(self, params: Params, index: int) -> Params:
    """Returns params under which every row wants the bucket `index`."""
    ...

  def calibrated(
    self, params: Params, costs: Sequence[float], states: Sequence[State]
  ) -> Params:
    """Returns params with what was measured.

    Args:
      params: as before.
      costs: times of a cycle of each bucket, that of the first is 1.
      states: the drafter's after decoding with each bucket alone.
    """
    ...


class AcceptanceRule(Protocol):
  """Walks a verified tree: a frozen dataclass, static under jit.

  Example:
    >>> import specdiff_jax as sd
    >>> sorted(sd.Rejection().needs)
    ['autoregressive', 'iid']
  """

  needs: ClassVar[frozenset[str]]  # proposals it is lossless for
  reads_q: ClassVar[bool]  # it needs the tree's `log_q`
  one_chain: ClassVar[bool]  # it needs chains

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
    ...
