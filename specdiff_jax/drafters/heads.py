"""Heads: what a token adds to the scores of the next one.

A window's slots are scored independently of each other's tokens. A head of rank
r, small and trained while the drafter is frozen, scores token c of slot k by the
token x before it, too:

  s_k(c | x) = s_k(c) + <e(h_k, x), B[c]>

  markov    e = A[x]                              DSpark, 2607.05147
  gated     e = sigmoid(G [h_k, A[x]] + b) A[x]   DSpark, gated
  selector  e = A[x] (H h_k)                      DFlash 2

with h_k the state that the verifier's head reads, A = `predecessor`, and
B = `successor`, which begins as zeros: a new head changes nothing. Probabilities
are over the draft vocabulary; those of the selector, whose scores are then
needed of the candidates alone, over these.

Another kind scores no tokens, but slots: `Confidence`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.core import training_types
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import options
from specdiff_jax.drafters import scores as scores_lib
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import layers as layers_lib


@dataclasses.dataclass(frozen=True)
class Head:
  """A head, by its sizes: the source of a lattice's edges.

  Attributes:
    rank: r.
    vocab: tokens of the drafter's vocabulary.
    verifier: the verifier's sizes.
  """

  rank: int
  vocab: int
  verifier: config_lib.TransformerConfig

  kind: ClassVar[str]
  may_be_zero: ClassVar[tuple[str, ...]] = ()
  over_candidates: ClassVar[bool] = False

  @property
  def layers(self) -> int:
    return 1

  @property
  def features(self) -> tuple[int, ...]:
    return ()

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns its parameters as shapes."""
    return {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in self._shapes().items()
    }

  def _shapes(self) -> dict[str, tuple[int, ...]]:
    return {
      'predecessor': (self.verifier.vocab_size, self.rank),
      'successor': (self.vocab, self.rank),
    }

  def initial(self, key: jax.Array) -> dict[str, jax.Array]:
    """Returns the params of a new head, float32, which changes nothing."""
    keys = jax.random.split(key, 3)
    start = {
      'predecessor': (nn.initializers.normal(1.0), keys[0]),
      'hidden': (layers_lib.NORMAL, keys[1]),
      'gate': (layers_lib.NORMAL, keys[2]),
    }
    return {
      name: start[name][0](start[name][1], shape)
      if name in start
      else jnp.zeros(shape)
      for name, shape in self._shapes().items()
    }

  def edges(
    self, params: Any, states: jax.Array, parent: jax.Array
  ) -> jax.Array:
    """Returns e [..., P, r] of states [..., E] after tokens [..., P]."""
    before = layers_lib.lookup(params['predecessor'], parent)
    return self._edges(params, states, before)

  def _edges(self, params, states, before):
    raise NotImplementedError

  def scored(
    self,
    params: Any,
    found: scores_lib.Predictions,
    view: training_types.VerifierView,
    parent: jax.Array,
  ) -> scores_lib.Predictions:
    """Returns predictions after tokens [B, P].

    What the head adds stands in r more columns of states and rows alike.
    """
    edges = self.edges(params, found.states, parent[..., None])[..., 0, :]
    return dataclasses.replace(
      found,
      states=jnp.concatenate([found.states, edges], axis=-1),
      head=jnp.concatenate([view.head, params['successor']], axis=-1),
    )

  def __call__(self, params, marginals, scores, index, scale):
    parent = lattice.parents(marginals, marginals.ids[index])
    edges = self.edges(params, marginals.states, parent)
    edges = edges * scale[:, None, None, None]

    def of_candidates(one):
      scores, index, edges = one  # [B, W], [B, K], [B, K, r]
      after = layers_lib.lookup(params['successor'], index)
      added = jnp.sum(edges[:, :, None] * after[:, None], axis=-1)
      here = jnp.take_along_axis(scores, index, axis=1)
      return jax.nn.log_softmax(here[:, None] + added, axis=-1)

    def of_all(one):
      scores, index, edges = one
      added = layers_lib.dense(edges, params['successor'])
      all_of = scores[:, None] + added  # [B, K, W]
      log_z = jax.nn.logsumexp(all_of, axis=-1, keepdims=True)
      return jnp.take_along_axis(all_of, index[:, None], axis=-1) - log_z

    # A slot at a time: the scores of all, after all, would be large.
    rows = lax.map(
      of_candidates if self.over_candidates else of_all,
      jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (scores, index, edges)),
    )
    return rows[0, :, 0], jnp.swapaxes(rows[1:], 0, 1)


class Markov(Head):
  """The token before alone."""

  kind = 'markov'

  def _edges(self, params, states, before):
    del params, states
    return before


class Gated(Head):
  """The token before, as far as the slot's state lets it through."""

  kind = 'gated'

  def _shapes(self):
    read = self.verifier.width + self.rank
    more = {'gate': (self.rank, read), 'gate_bias': (self.rank,)}
    return super()._shapes() | more

  def _edges(self, params, states, before):
    of_state, of_token = jnp.split(
      params['gate'], [self.verifier.width], axis=1
    )
    here = layers_lib.dense(states, of_state)[..., None, :]
    gate = here + layers_lib.affine(before, of_token, params['gate_bias'])
    return jax.nn.sigmoid(gate) * before


class Selector(Head):
  """A bilinear form of token and state, which ranks the candidates."""

  kind = 'selector'
  over_candidates = True

  def _shapes(self):
    return super()._shapes() | {'hidden': (self.rank, self.verifier.width)}

  def _edges(self, params, states, before):
    return before * layers_lib.dense(states, params['hidden'])[..., None, :]


class Confidence(Head):
  """How likely the verifier takes a slot's token (DSpark, 2607.05147).

    c_k = sigmoid(<w, [h_k, A[x_{k-1}]]> + b)

  trained to 1 - TV(p, q_k) (loss `confidence`): the chance that rejection
  sampling accepts what the drafter draws. Any drafter may cut its drafts by it,
  since lossless rules are lossless for any draft.
  """

  kind = options.CONFIDENCE

  def _shapes(self):
    return {
      'predecessor': (self.verifier.vocab_size, self.rank),
      'weights': (self.verifier.width + self.rank,),
      'bias': (1,),
    }

  def logits(
    self, params: Any, states: jax.Array, parent: jax.Array
  ) -> jax.Array:
    """Returns the logits of c [...], of states [..., E] after tokens [...]."""
    before = layers_lib.lookup(params['predecessor'], parent)
    read = jnp.concatenate([states, before.astype(states.dtype)], axis=-1)
    weights = params['weights'].astype(jnp.float32)
    return jnp.sum(read * weights, axis=-1) + params['bias'][0]

  def scored(self, params, found, view, parent):
    logits = self.logits(params, found.states, parent)
    return dataclasses.replace(found, confidence=logits)

  def kept(
    self,
    params: Any,
    marginals: Any,
    token: jax.Array,
    threshold: float,
  ) -> jax.Array:
    """Returns [B] the first slots whose c_1 ... c_k is at least `threshold`.

    Args:
      params: the head's.
      marginals: of the window's slots.
      token: [B, G] the draft.
      threshold: 0 to 1.
    """
    parent = jnp.concatenate([marginals.root[:, None], token[:, :-1]], axis=1)
    chance = jax.nn.sigmoid(self.logits(params, marginals.states, parent))
    return jnp.sum(jnp.cumprod(chance, axis=1) >= threshold, axis=1)


KINDS: dict[str, type[Head]] = dict(
  zip(options.HEADS, (Markov, Gated, Selector), strict=True)
)
CONFIDENCES: dict[str, type[Head]] = {options.CONFIDENCE: Confidence}


def score_of(head: Head, score: scores_lib.Score) -> scores_lib.Score:
  """Returns the score of windows after the trajectory's own tokens.

  Its params are {'drafter': those of `score`, 'head': those of the head}.
  """

  def function(params, view, batch, *rest):
    found = score(params['drafter'], view, batch, *rest)
    rows = jnp.arange(batch.tokens.shape[0])[:, None]
    last = batch.tokens.shape[1] - 1
    parent = batch.tokens[rows, jnp.minimum(found.position, last)]
    return head.scored(params['head'], found, view, parent)

  return function


def with_own_head(strategy: Any, head: Head) -> Any:
  """Returns a strategy whose lattice has its edges from the drafter's own head.

  One with another source, or that reads marginals alone, is returned as it is.
  """
  if isinstance(strategy, lattice.Lattice) and not strategy.source:
    return dataclasses.replace(strategy, source=head)
  return strategy


def fingerprint(drafter: family.Trained) -> str:
  """Returns what a head's file calls the drafter that it was trained on."""
  return params_lib.fingerprint(drafter.config, drafter.params)


def load(
  path: str,
  drafter: family.Trained,
  verifier: weights.Checkpoint | None,
  kinds: Mapping[str, type[Head]] | None = None,
) -> tuple[Any, dict[str, Any]]:
  """Returns a `Head` of this drafter's, and its params in the verifier's dtype.

  Without a verifier they are as the file has them.

  Raises InputError if the file is damaged, is no head of these kinds (None: of
  KINDS), or that of another verifier, draft vocabulary or drafter.
  """
  kinds = kinds or KINDS
  facts = safetensors_io.metadata(path)
  kind = drafter_file.kind_of(facts)
  if facts.get('format') == drafter_file.FORMAT and kind not in kinds:
    raise errors.InputError(
      f'{path}: this is a file of the kind {printing.short(kind)}, but a head '
      f'is wanted of the kind {" or ".join(kinds)}. Give one that '
      '`specdiff distill` wrote with such a head_kind.'
    )
  form: Any = kinds.get(kind, next(iter(kinds.values())))  # it names the fault
  head, params, vocab = drafter_file.load(path, verifier, form)
  if not np.array_equal(vocab, drafter.vocab):
    raise errors.InputError(
      f'{path}: this head scores a draft vocabulary of {len(vocab)} tokens, '
      f'but the {len(drafter.vocab)} tokens of the drafter {drafter.source} '
      'are others. Use the head of this drafter, or train one.'
    )
  if facts.get('drafter') != fingerprint(drafter):
    raise errors.InputError(
      f'{path}: this head was trained on the drafter with the fingerprint '
      f'{printing.short(facts.get("drafter"))}, but {drafter.source} has '
      f'{fingerprint(drafter)}. Use the head of this drafter, or train one.'
    )
  if not verifier:
    return head, params
  return head, jax.tree.map(lambda x: jnp.asarray(x, verifier.dtype), params)
