"""What distillation differentiates: the drafter's windows under a loss."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.data import windows
from specdiff_jax.models import drafter_network
from specdiff_jax.models import transformer

# (log_q [B, W, G], valid [B, W, G], step) -> (loss, metrics)
Loss = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict]]


def frozen(verifier: dict[str, Any], vocab: np.ndarray) -> dict[str, Any]:
  """Returns what training reads of the verifier: embedding, head, vocabulary.

  `index` [V] maps a token to its place in the draft vocabulary, -1 outside.
  """
  embed = verifier['embed']
  index = np.full(embed.shape[0], -1, np.int32)
  index[vocab] = np.arange(len(vocab), dtype=np.int32)
  head = verifier.get('head', embed)
  return {'embed': embed, 'head': head[vocab], 'index': jnp.asarray(index)}


def logits(config: drafter_network.DrafterConfig, params, frozen, batch):
  """Returns the drafter's logits [B, W, G, vocab] of a batch of windows."""
  return drafter_network.windows(
      config,
      params,
      frozen['embed'],
      frozen['head'],
      batch['tokens'],
      batch['features'].astype(jnp.float32),
      batch['anchors'],
  )


def make_loss(config: drafter_network.DrafterConfig, loss: Loss):
  """Returns (params, frozen, batch, step) -> (loss, metrics)."""

  def objective(params, frozen, batch, step):
    targets, valid = windows.targets(batch, config.gamma)
    scores = logits(config, params, frozen, batch)
    index = frozen['index'][targets]
    picked = jnp.take_along_axis(
        scores, jnp.maximum(index, 0)[..., None], axis=-1
    )[..., 0]
    log_q = picked - jax.nn.logsumexp(scores, axis=-1)
    log_q = jnp.where(index >= 0, log_q, -jnp.inf)
    return loss(log_q, valid, step)

  return objective


def make_matches(config: drafter_network.DrafterConfig):
  """Returns (params, frozen, batch) -> (match, valid), each [B, W, G].

  `match` says where the drafter's argmax is the trajectory's token.
  """

  def matches(params, frozen, batch):
    targets, valid = windows.targets(batch, config.gamma)
    best = jnp.argmax(logits(config, params, frozen, batch), axis=-1)
    return (best == frozen['index'][targets]) & valid, valid

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
