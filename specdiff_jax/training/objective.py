"""What distillation differentiates: the drafter's windows under a loss.

A family of drafters is scored by one function (`Score`); losses and figures are
the same for all.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.data import windows
from specdiff_jax.models import causal_network
from specdiff_jax.models import drafter_network
from specdiff_jax.models import transformer

# (log_q [B, W, G], valid [B, W, G], step) -> (loss, metrics)
Loss = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict]]
# (params, frozen, batch, gamma) -> (log_q, match), each [B, W, G]: of each
# target its log-probability, -inf outside the draft vocabulary, and whether it
# is the drafter's argmax. Where there is no target they may be anything.
Score = Callable[..., tuple[jax.Array, jax.Array]]


def frozen(verifier: dict[str, Any], vocab: np.ndarray) -> dict[str, Any]:
  """Returns what training reads of the verifier: embedding, head, vocabulary.

  `index` [V] maps a token to its place in the draft vocabulary, -1 outside.
  """
  embed = verifier['embed']
  index = np.full(embed.shape[0], -1, np.int32)
  index[vocab] = np.arange(len(vocab), dtype=np.int32)
  head = verifier.get('head', embed)
  return {'embed': embed, 'head': head[vocab], 'index': jnp.asarray(index)}


def diffusion_score(config: drafter_network.DrafterConfig) -> Score:
  """Returns the score of windows that are drafted in one pass."""

  def score(params, frozen, batch, gamma):
    targets, _ = windows.targets(batch, gamma)
    logits = drafter_network.windows(
        config,
        params,
        frozen['embed'],
        frozen['head'],
        batch['tokens'],
        batch['features'].astype(jnp.float32),
        batch['anchors'],
    )
    return _judged(logits, frozen['index'][targets])

  return score


def causal_score(config: causal_network.CausalConfig) -> Score:
  """Returns the score of windows that are drafted token by token.

  Each law is conditioned on the trajectory's own tokens before it, whose law
  is the same in every window: one pass over the trajectory scores them all.
  While a window's tokens match, a drafter that runs freely has the same ones
  before it, so that what serving would accept is exact.
  """

  def score(params, frozen, batch, gamma):
    tokens = batch['tokens']
    logits = causal_network.next_logits(
        config, params, frozen['embed'], frozen['head'], tokens
    )
    following = jnp.roll(tokens, -1, axis=1)
    judged = _judged(logits, frozen['index'][following])
    places = batch['anchors'][..., None] + jnp.arange(gamma)
    # Past the row's end there is no target.
    places = jnp.minimum(places, tokens.shape[1] - 1)
    rows = jnp.arange(tokens.shape[0])[:, None, None]
    return jax.tree.map(lambda x: x[rows, places], judged)

  return score


def _judged(logits, index):
  """Returns (log_q, match) of targets `index` [...] under logits [..., V]."""
  picked = jnp.take_along_axis(
      logits, jnp.maximum(index, 0)[..., None], axis=-1
  )[..., 0]
  log_q = picked - jax.nn.logsumexp(logits, axis=-1)
  log_q = jnp.where(index >= 0, log_q, -jnp.inf)
  return log_q, jnp.argmax(logits, axis=-1) == index


def make_loss(score: Score, loss: Loss, gamma: int):
  """Returns (params, frozen, batch, step) -> (loss, metrics)."""

  def objective(params, frozen, batch, step):
    log_q, _ = score(params, frozen, batch, gamma)
    _, valid = windows.targets(batch, gamma)
    return loss(log_q, valid, step)

  return objective


def make_matches(score: Score, gamma: int):
  """Returns (params, frozen, batch) -> (match, valid), each [B, W, G].

  `match` says where the drafter's argmax is the trajectory's token.
  """

  def matches(params, frozen, batch):
    _, match = score(params, frozen, batch, gamma)
    _, valid = windows.targets(batch, gamma)
    return match & valid, valid

  return matches


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """The verifier's features of batches, each record's computed once.

  Keeps them on the host as 16-bit floats up to `limit` records: over several
  epochs the verifier's forward pass would otherwise cost as much as training.
  """

  model: transformer.Transformer
  params: Any
  layers: tuple[int, ...]
  limit: int
  kept: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the batch with 'features' [B, T, F, E] bfloat16 added."""
    records, length = batch['record'], batch['length']
    tokens = batch['tokens'].shape[1]
    if not all(int(r) in self.kept for r in records):
      features = _forward(
          self.model, self.layers, self.params, batch['tokens'], length
      )
      host = np.asarray(features)
      for row, record in enumerate(records):
        if len(self.kept) < self.limit:
          self.kept[int(record)] = host[row, : length[row]].copy()
      return {**batch, 'features': features}
    features = np.zeros(
        (len(records), tokens) + self.kept[int(records[0])].shape[1:],
        jnp.bfloat16,
    )
    for row, record in enumerate(records):
      features[row, : length[row]] = self.kept[int(record)]
    return {**batch, 'features': features}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(model, layers, params, tokens, length):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = transformer.causal_mask(length, tokens.shape[1])
  _, _, features = model.apply(
      {'params': params}, tokens, positions, mask, features=layers
  )
  return features.astype(jnp.bfloat16)
