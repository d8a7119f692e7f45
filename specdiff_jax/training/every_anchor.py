"""Acceptance on held-out trajectories, from every anchor of each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.drafters import tables
from specdiff_jax.parallel import pin
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules
from specdiff_jax.training import evaluate as evaluate_lib


def evaluator(
  matches: Callable[..., Any],
  view: training_types.VerifierView,
  prepare: Callable[[Any], Any],
  source: windows.Source,
  sizes: windows.WindowConfig,
  mesh: jax.sharding.Mesh,
) -> Callable[[Any], dict[str, Any]]:
  """Returns `params -> figures` of argmax drafts over held-out trajectories.

  Every anchor of every trajectory is drafted from, so that `tau` is that of
  serving (`evaluate.simulate`), with `evaluate.curves` beside it.

  Args:
    matches: see `objective.make_matches`.
    view: see `objective.view`.
    prepare: makes a device batch of a host batch, for this very source.
    source: held-out trajectories.
    sizes: sizes of a batch, as in training.
    mesh: mesh of the params.
  """

  def gathered(params, *rest):
    split = rules.shardings(params, tables.sharding(), mesh)
    with pin.over(mesh):
      return matches(jax.lax.with_sharding_constraint(params, split), *rest)

  jitted = jax.jit(gathered, out_shardings=rules.replicated(mesh))

  def run(params):
    found = by_record(
      lambda batch: jitted(params, view, prepare(_share(batch, mesh))),
      batches(source, sizes),
      len(source),
    )
    return _figures([record for record in found if record])

  return run


def by_record(
  matches: Callable[[Any], tuple[jax.Array, jax.Array]],
  batches: Iterable[training_types.TrainBatch],
  records: int,
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
  """Returns (match, valid) of each record's anchors, a pair for each row.

  Args:
    matches: batch -> (match, valid), each [B, W, G].
    batches: host batches with every anchor of every record once.
    records: how many there are.
  """
  found = [[] for _ in range(records)]
  for batch in batches:
    match, valid = jax.device_get(matches(batch))
    for row, record in enumerate(batch.record):
      if record != windows.BLANK:
        anchors = batch.anchor_valid[row]
        found[record].append((match[row][anchors], valid[row][anchors]))
  return found


def batches(
  source: windows.Source, sizes: windows.WindowConfig
) -> Iterator[training_types.TrainBatch]:
  """Yields batches in which every anchor of every trajectory stands once.

  A trajectory takes as many rows as its anchors fill; their order is kept.
  """
  rows = []
  for record in range(len(source)):
    item = source[record]
    length = min(len(item.prompt) + len(item.completion), sizes.tokens)
    anchors = np.arange(len(item.prompt), length - 1)
    for first in range(0, len(anchors), sizes.windows):
      chosen = anchors[first : first + sizes.windows]
      rows.append(windows.row(record, item, chosen, sizes))
  rows += [windows.blank(sizes)] * (-len(rows) % sizes.batch)
  for first in range(0, len(rows), sizes.batch):
    group = rows[first : first + sizes.batch]
    yield jax.tree.map(lambda *leaves: np.stack(leaves), *group)


def _share(
  batch: training_types.TrainBatch, mesh: jax.sharding.Mesh
) -> training_types.TrainBatch:
  """Returns the rows of this process, in the order of the global batch."""
  index, count = processes.row_share(mesh)
  size = len(batch.record) // count
  rows = slice(index * size, (index + 1) * size)
  return jax.tree.map(lambda x: x[rows], batch)


def _figures(found: Sequence[Sequence[tuple]]) -> dict[str, Any]:
  """Sums up (match, valid) of each trajectory's anchors, in order."""
  if not found:
    return {}
  whole = [tuple(map(np.concatenate, zip(*rows))) for rows in found]
  accepted = [evaluate_lib.accepted_counts(m, v) for m, v in whole]
  match, valid = map(np.concatenate, zip(*whole))
  figures = evaluate_lib.curves(match, valid)
  return {'tau': evaluate_lib.simulate_tau(accepted)} | figures
