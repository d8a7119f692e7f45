"""The nouns of decoding: what its strategies (`core.protocols`) hand each other.

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

from typing import Any

import flax.struct
import jax

Params = Any  # a pytree of arrays
State = Any  # a pytree whose every leaf is [B, ...]

# Why a cycle's draft ended where it did. The verifier's next token
ENDS = {
  'not in top-K': 'was no candidate of its slot',
  'wrong parent': 'was drafted at its depth, after another token',
  'budget': 'was a candidate, or past the window, but not drafted, or not chosen',
  'end': "ended the text, or an accepted token did, or the text's limit",
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
