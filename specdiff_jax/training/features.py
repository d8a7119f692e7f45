"""What training reads of the verifier, computed once for each trajectory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.models import head as head_lib
from specdiff_jax.models import views
from specdiff_jax.training import feature_store

KEPT = jnp.bfloat16  # of features: half the memory
_BLOCK = 8192  # tokens of the verifier's vocabulary whose logits exist at once


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """Adds the verifier's features, and its distribution, to batches.

  Keeps them on the host up to `limit` records, features as 16-bit floats: over
  several epochs the verifier's forward pass would otherwise cost as much as
  training.

  Attributes:
    model: network of the verifier.
    params: params of the verifier.
    layers: layers whose outputs are wanted; () for none.
    limit: records to keep.
    temperature: temperature of the distribution; 0 where none is wanted.
    kept: readings of each record, without padding.
    store: of readings on disk.
  """

  model: Any
  params: Any
  layers: tuple[int, ...]
  limit: int
  temperature: float = 0.0
  kept: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
  store: feature_store.Store = feature_store.Store('', (), lambda text: None)

  def __call__(
    self, batch: training_types.TrainBatch
  ) -> training_types.TrainBatch:
    """Returns the batch with what is wanted added."""
    blank = batch.record == windows.BLANK
    rows = np.flatnonzero(~blank).tolist()
    records = [self._known(batch, row) for row in rows]
    if not records or None in records:
      found = forward(
          self.model, self.layers, self.temperature, self.params,
          batch.tokens, batch.length,
      )  # fmt: skip
      if len(self.kept) < self.limit or self.store.keeps:
        self._keep(batch, jax.device_get(found))
      return batch.replace(**found)

    def padded(*rows):
      found = np.zeros(batch.tokens.shape + rows[0].shape[1:], rows[0].dtype)
      for row, value in enumerate(rows):
        found[row, : len(value)] = value
      return found

    nothing = jax.tree.map(lambda x: x[:0], records[0])
    known = iter(records)
    found = [nothing if empty else next(known) for empty in blank]
    return batch.replace(**jax.tree.map(padded, *found))

  def _known(self, batch, row: int) -> dict[str, Any] | None:
    """Returns what is kept of a row, in memory or on disk."""
    record = int(batch.record[row])
    found = self.kept.get(record)
    if found is None:
      found = self.store.get(batch.tokens[row, : batch.length[row]])
      if found is not None and len(self.kept) < self.limit:
        self.kept[record] = found
    return found

  def _keep(self, batch, found: dict[str, Any]) -> None:
    for row in np.flatnonzero(batch.record != windows.BLANK):
      size = batch.length[row]
      one = jax.tree.map(
        lambda x, row=row, size=size: x[row, :size].copy(), found
      )
      if len(self.kept) < self.limit:
        self.kept[int(batch.record[row])] = one
      self.store.put(batch.tokens[row, :size], one)


def with_stored(
  source: windows.Source, batch: training_types.TrainBatch
) -> training_types.TrainBatch:
  """Returns a batch of the source with the stored top k of each position.

  That is what `collect` stored: no pass of the verifier. Where nothing is
  stored, in prompts, stands a distribution that is finite.
  """

  def stored(index: int):
    item = source[index]
    assert item.top_ids is not None and item.top_log_p is not None
    return len(item.prompt) - 1, item.top_ids, item.top_log_p

  k = stored(0)[1].shape[1]
  shape = batch.tokens.shape + (k,)
  ids = np.broadcast_to(np.arange(k, dtype=np.int32), shape).copy()
  log_p = np.full(shape, -np.log(2 * k), np.float16)
  for row, record in enumerate(batch.record):
    if record == windows.BLANK:
      continue
    first, top_ids, top_log_p = stored(int(record))
    last = min(first + len(top_ids), shape[1])
    ids[row, first:last] = top_ids[: last - first]
    log_p[row, first:last] = top_log_p[: last - first]
  return batch.replace(distribution=training_types.TopK(ids, log_p))


def abstract_stored(
  batch: training_types.TrainBatch, k: int
) -> training_types.TrainBatch:
  """Returns the shapes of a batch with a stored top k added."""
  shape = (*batch.tokens.shape, k)
  ids, log_p = (
    jax.ShapeDtypeStruct(shape, dtype, sharding=batch.tokens.sharding)
    for dtype in (jnp.int32, jnp.float16)
  )
  return batch.replace(distribution=training_types.TopK(ids, log_p))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames='kept')
def forward(
  model, layers, temperature, params, tokens, length, kept=None
) -> dict[str, Any]:
  """Returns what `Features` adds to a batch of tokens [B, T], length [B].

  features      [B, T, F, E] of dtype `kept`, by default KEPT
  distribution  [B, T, ...] `training_types.Distribution`
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = views.causal_mask(length, tokens.shape[1])
  state, _, features = model.apply(
    {'params': params}, tokens, positions, mask, features=layers
  )
  found = {}
  if layers:
    found['features'] = features.astype(kept or KEPT)
  if temperature:
    head = head_lib.rows(params)
    log_z = head_lib.log_z(state, head, _BLOCK, temperature)
    found['distribution'] = training_types.Distribution(state, log_z)
  return found
