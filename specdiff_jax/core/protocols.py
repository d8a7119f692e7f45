"""The three strategies that meet in the decode loop: drafter, verifier, rule.

Each is a frozen dataclass, static under jit; its arrays are arguments, and what it
takes and returns are the structs of `core.types`, whose dimension letters these are.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from specdiff_jax.core import types

PROPOSALS = {
  'deterministic': 'chosen, not drawn: argmax, search, lookup, shared noise',
  'iid': 'chains drawn independently from the marginals of one pass',
  'autoregressive': 'a chain, each token drawn given the ones before it',
  'distinct': 'siblings drawn without replacement, in the order of draws',
  'unknown': 'drawn from what `log_q` does not tell, or by several',
}


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
    params: types.Params,
    cache: Any,
    prompt: types.Prompt,
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
    params: types.Params,
    cache: Any,
    tree: types.DraftTree,
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
    tree: types.DraftTree,
    verdict: types.Verdict,
    length: jax.Array,
    chain: bool,
  ) -> Any:
    """Returns the cache of `score` with the accepted paths of its trees alone.

    `chain`: the trees were chains, whose paths are in place already.
    """
    ...

  def embed(self, params: types.Params, tokens: jax.Array) -> jax.Array:
    """Returns the embeddings [..., E] of tokens [...], float32, as stored."""
    ...

  def head(self, params: types.Params, states: jax.Array) -> jax.Array:
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
  params: types.Params  # the verifier's
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

  def init(self, params: types.Params, context: Context) -> types.State:
    """Returns the state before the verifier reads the prompts.

    They are in `context.tokens`; `context.length` counts the token after each,
    which is not known yet, and `context.cache` is empty.

    A KV cache in it is a `models.cache.Cache` and grows with the verifier's;
    the size of no other leaf depends on that of `context.cache`.
    """
    ...

  def draft(
    self,
    params: types.Params,
    state: types.State,
    context: Context,
    sampling: types.Sampling,
    noise: types.Noise,
    slots: int,
  ) -> tuple[types.DraftTree, types.State]:
    """Proposes a tree of `slots` slots, the size of one of the buckets.

    Slot 0 is the last committed token. `sampling` is the verifier's, `noise`
    its draws: a draft may look at what is keyed by position only if its rule is
    SampleAndMatch or GreedyAcceptance.
    """
    ...

  def observe(
    self,
    params: types.Params,
    state: types.State,
    context: Context,
    verdict: types.Verdict,
    features: jax.Array | None,
    slots: int,
  ) -> types.State:
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
    params: types.Params,
    state: types.State,
    context: Context,
    features: jax.Array,
    start: jax.Array,
  ) -> types.State:
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

  def wanted(
    self, params: types.Params, state: types.State
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the index of the bucket that each row wants next, and how long.

    Both [B], the second in cycles, at least 1. The loop takes the largest index
    of the batch for the least number of cycles.
    """
    ...

  def enter(
    self, params: types.Params, state: types.State, context: Context, slots: int
  ) -> types.State:
    """Returns the state as drafts of `slots` slots find it, after others."""
    ...

  def forced(self, params: types.Params, index: int) -> types.Params:
    """Returns params under which every row wants the bucket `index`."""
    ...

  def calibrated(
    self,
    params: types.Params,
    costs: Sequence[float],
    states: Sequence[types.State],
  ) -> types.Params:
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
    tree: types.DraftTree,
    logits: jax.Array,
    length: jax.Array,
    sampling: types.Sampling,
    noise: types.Noise,
    max_depth: int,
  ) -> types.Verdict:
    """Takes logits [B, M, V] float32 and `length` [B] before the cycle."""
    ...
