"""Acceptance on held-out trajectories, from every anchor of each."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from specdiff_jax.data import windows
from specdiff_jax.drafters import tables
from specdiff_jax.parallel import pin
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules
from specdiff_jax.training import evaluate as evaluate_lib


def evaluator(
  matches: Callable[..., Any],
  frozen: Any,
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
    frozen: see `objective.frozen`.
    prepare: makes a device batch of a host batch, for this very source.
    source: held-out trajectories.
    sizes: of a batch, as in training.
    mesh: of the params.
  """

  def gathered(params, *rest):
    split = rules.shardings(params, tables.sharding(), mesh)
    with pin.over(mesh):
      return matches(jax.lax.with_sharding_constraint(params, split), *rest)

  jitted = jax.jit(gathered, out_shardings=rules.replicated(mesh))

  def run(params):
    found = [[] for _ in range(len(source))]
    for batch in batches(source, sizes):
      match, valid = jax.device_get(
        jitted(params, frozen, prepare(_share(batch, mesh)))
      )
      for row, record in enumerate(batch['record']):
        some = batch['anchor_valid'][row]
        if record != windows.BLANK and some.any():
          found[record].append((match[row][some], valid[row][some]))
    return _figures([record for record in found if record])

  return run


def batches(
  source: windows.Source, sizes: windows.WindowConfig
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches in which every anchor of every trajectory stands once.

  A trajectory takes as many rows as its anchors fill; their order is kept.
  """
  rows = []
  for record in range(len(source)):
    item = source[record]
    whole = np.concatenate([item.prompt, item.completion])[: sizes.tokens]
    anchors = np.arange(len(item.prompt), len(whole) - 1)
    for first in range(0, len(anchors), sizes.windows):
      chosen = anchors[first : first + sizes.windows]
      rows.append(_row(record, whole, len(item.prompt), chosen, sizes))
  blank = _row(windows.BLANK, np.zeros(1, np.int32), 1, np.zeros(0), sizes)
  rows += [blank] * (-len(rows) % sizes.batch)
  for first in range(0, len(rows), sizes.batch):
    group = rows[first : first + sizes.batch]
    yield {name: np.stack([row[name] for row in group]) for name in blank}


def _row(record, whole, prompt_length, chosen, sizes) -> dict[str, np.ndarray]:
  tokens = np.zeros(sizes.tokens, np.int32)
  tokens[: len(whole)] = whole
  anchors = np.full(sizes.windows, prompt_length, np.int32)
  anchors[: len(chosen)] = chosen
  return {
    'tokens': tokens,
    'length': np.int32(len(whole)),
    'prompt_length': np.int32(prompt_length),
    'anchors': anchors,
    'anchor_valid': np.arange(sizes.windows) < len(chosen),
    'record': np.int32(record),
  }


def _share(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, np.ndarray]:
  """Returns the rows of this process, in the order of the global batch."""
  index, count = processes.row_share(mesh)
  size = len(batch['record']) // count
  rows = slice(index * size, (index + 1) * size)
  return {name: value[rows] for name, value in batch.items()}


def _figures(found: Sequence[Sequence[tuple]]) -> dict[str, Any]:
  """Sums up (match, valid) of each trajectory's anchors, in order."""
  if not found:
    return {}
  whole = [tuple(map(np.concatenate, zip(*parts))) for parts in found]
  accepted = [evaluate_lib.accepted_counts(m, v) for m, v in whole]
  match, valid = map(np.concatenate, zip(*whole))
  figures = evaluate_lib.curves(match, valid)
  return {'tau': evaluate_lib.simulate_tau(accepted)} | figures
