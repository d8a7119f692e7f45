"""What training reads of the verifier, computed once for each trajectory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.data import windows
from specdiff_jax.models import head as head_lib
from specdiff_jax.models import views

KEPT = jnp.bfloat16  # of features: half the memory
_BLOCK = 8192  # tokens of the verifier's vocabulary whose logits exist at once


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """Adds the verifier's features, and its law, to batches.

  Keeps them on the host up to `limit` records, features as 16-bit floats: over
  several epochs the verifier's forward pass would otherwise cost as much as
  training. A law is kept as the state that the head reads and its logarithmic
  normaliser: log p(v) = state . head_v / temperature - log_z, whatever part of
  the vocabulary is asked for.

  Attributes:
    model: the verifier.
    params: its params.
    layers: whose outputs are wanted; () for none.
    limit: records to keep.
    temperature: of the law; 0 where no law is wanted.
  """

  model: Any
  params: Any
  layers: tuple[int, ...]
  limit: int
  temperature: float = 0.0
  kept: dict[int, dict[str, np.ndarray]] = dataclasses.field(
    default_factory=dict
  )

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the batch with what is wanted added.

    features  [B, T, F, E] bfloat16
    final     [B, T, E] float32, the state that the head reads
    log_z     [B, T] float32
    """
    records, length = batch['record'], batch['length']
    if not all(int(r) in self.kept for r in records):
      found = forward(
          self.model, self.layers, self.temperature, self.params,
          batch['tokens'], length,
      )  # fmt: skip
      self._keep(records, length, jax.device_get(found))
      return {**batch, **found}
    found = {}
    for name, first in self.kept[int(records[0])].items():
      shape = batch['tokens'].shape + first.shape[1:]
      found[name] = np.zeros(shape, first.dtype)
      for row, record in enumerate(records):
        found[name][row, : length[row]] = self.kept[int(record)][name]
    return {**batch, **found}

  def _keep(self, records, length, found: dict[str, np.ndarray]) -> None:
    for row, record in enumerate(records):
      if len(self.kept) < self.limit:
        self.kept[int(record)] = {
          name: value[row, : length[row]].copy()
          for name, value in found.items()
        }


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLaw:
  """Adds the verifier's law as `collect` stored it: no pass of the verifier.

  Attributes:
    source: trajectories that have it, of which batches are rows.
  """

  source: windows.Source

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the batch with the law of the token after each position added.

      top_ids    [B, T, K] int32
      top_log_p  [B, T, K] float16

    Where nothing is stored, in prompts, stands some law that is finite.
    """
    k = self.source[0].top_ids.shape[1]
    shape = batch['tokens'].shape + (k,)
    ids = np.broadcast_to(np.arange(k, dtype=np.int32), shape).copy()
    log_p = np.full(shape, -np.log(2 * k), np.float16)
    for row, record in enumerate(batch['record']):
      if record == windows.BLANK:
        continue
      item = self.source[int(record)]
      first = len(item.prompt) - 1
      last = min(first + len(item.completion), shape[1])
      ids[row, first:last] = item.top_ids[: last - first]
      log_p[row, first:last] = item.top_log_p[: last - first]
    return {**batch, 'top_ids': ids, 'top_log_p': log_p}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def forward(model, layers, temperature, params, tokens, length):
  """Returns what `Features` adds to a batch of tokens [B, T], length [B]."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = views.causal_mask(length, tokens.shape[1])
  final, _, features = model.apply(
    {'params': params}, tokens, positions, mask, features=layers
  )
  found = {}
  if layers:
    found['features'] = features.astype(KEPT)
  if temperature:
    found['final'] = final
    head = params.get('head', params['embed'])
    found['log_z'] = head_lib.log_z(final, head, _BLOCK, temperature)
  return found
