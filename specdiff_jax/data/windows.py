"""Packed windows: one pass over a trajectory trains a drafter at many anchors.

An anchor is the index of the last committed token, as in serving. With

    index       0   1   2   3   4   5   6   7
    tokens      p   p   p   x   y   z   u   <end>       prompt_length = 3
    anchor a = 4            .   y   z   u   <end>       length = 8, gamma = 3
                            features | slot 0, 1..3

a drafter at anchor a is given the verifier's features of the positions < a
only, the token at a itself (slot 0), and drafts the tokens a+1 to a+gamma in
the slots 1 to gamma. That is the state at the start of a decoding cycle: the
last committed token was drawn but never fed, so the verifier's cache, and with
it every feature, ends just before it. The target of slot j is valid iff
a + j < length: the end token is a last valid target, nothing follows it.

Anchors are uniform over [prompt_length, length - 2]: from the first response
token (drafted from after the prefill) to the last that has a target. They are
the positions where a cycle may begin; a tau over *served* cycles follows
from acceptance at all of them (`training.evaluate`).
"""

from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

import grain
import jax
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import training_types
from specdiff_jax.data import trajectories

Source = trajectories.Source
BLANK = -1  # the `record` of a row that fills up a batch


@dataclasses.dataclass(frozen=True)
class WindowConfig:
  """Sizes of a batch, all static."""

  tokens: int  # T; longer trajectories are cut
  windows: int  # W anchors a row
  gamma: int  # G drafted slots a window
  batch: int  # B rows over all processes together
  seed: int = 0  # of the shuffle and of the anchors


def batches(
  source: Source,
  config: WindowConfig,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Returns this process's share of the batches, as a grain dataset.

  Its iterators never end, and give `TrainBatch`es of numpy arrays without
  readings of the verifier, B = config.batch // process_count.

  Every epoch holds every record once. Order and anchors are functions of the
  seed and the place in the epoch: an iterator put back by
  `set_state(get_state())` goes on exactly, and n processes together see the
  very rows that one would.

  Reads through the source once, to leave out records without an anchor.
  Raises InputError if none is left, or processes cannot share a batch.

    iterator = iter(batches(source, WindowConfig(512, 96, 8, 4)))
    batch = next(iterator)
  """
  if config.batch % process_count:
    raise errors.InputError(
      f'A batch of {config.batch} rows does not divide among '
      f'{process_count} processes. Make `batch` a multiple of their number.'
    )
  usable = [
    index
    for index in range(len(source))
    if _has_anchor(source[index], config.tokens)
  ]
  if not usable:
    raise errors.InputError(
      f'None of the {len(source)} trajectories has two completion tokens '
      f'within the first {config.tokens} tokens, so there is nothing to '
      'train on. Raise `tokens`, or collect longer completions.'
    )
  order_seed, anchor_seed = map(
    int, np.random.SeedSequence(config.seed).generate_state(2)
  )

  def drawn(record: int, rng: np.random.Generator) -> training_types.TrainBatch:
    """Returns the row of one record, its anchors drawn from the given noise."""
    item = source[record]
    start, stop = len(item.prompt), min(_length(item), config.tokens) - 1
    size = stop - start
    chosen = rng.choice(size, size=min(config.windows, size), replace=False)
    anchors = np.sort(chosen).astype(np.int32) + np.int32(start)
    return row(record, item, anchors, config)

  return (
    grain.MapDataset.source(usable)
    .shuffle(seed=order_seed)
    .repeat()
    .random_map(drawn, seed=anchor_seed)[
      # before the sharding: see above
      process_index::process_count
    ]
    .batch(config.batch // process_count, drop_remainder=True)
    .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
  )


def row(
  record: int,
  item: trajectories.Trajectory,
  anchors: np.ndarray,
  config: WindowConfig,
) -> training_types.TrainBatch:
  """Returns the row of a trajectory with these anchors, at most W."""
  whole = np.concatenate([item.prompt, item.completion])[: config.tokens]
  return _row(record, whole, len(item.prompt), anchors, config)


def blank(config: WindowConfig) -> training_types.TrainBatch:
  """Returns a row that fills up a batch: no valid anchor, length 1."""
  none = np.zeros(0, np.int32)
  return _row(BLANK, np.zeros(1, np.int32), 1, none, config)


def _row(record, whole, prompt_length, anchors, config):
  tokens_T = np.zeros(config.tokens, np.int32)
  tokens_T[: len(whole)] = whole
  anchors_W = np.full(config.windows, prompt_length, np.int32)
  anchors_W[: len(anchors)] = anchors
  return training_types.TrainBatch(
    tokens=tokens_T,
    length=np.int32(len(whole)),
    prompt_length=np.int32(prompt_length),
    anchors=anchors_W,
    anchor_valid=np.arange(config.windows) < len(anchors),
    record=np.int32(record),
  )


def abstract(
  config: WindowConfig, sharding: jax.sharding.Sharding | None = None
) -> training_types.TrainBatch:
  """Returns the shapes of a whole batch, all rows split by `sharding`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (config.batch, *x.shape), x.dtype, sharding=sharding
    ),
    blank(config),
  )


def targets(batch: training_types.TrainBatch, gamma: int) -> tuple[Any, Any]:
  """Returns each window's target tokens and which of them are valid.

  Both [B, W, G], int32 (0 where not valid) and bool; valid is a prefix of
  every window. Works on numpy arrays and under jit alike.
  """
  offsets_G = 1 + np.arange(gamma, dtype=np.int32)
  index_BxWxG = batch.anchors[:, :, None] + offsets_G
  valid_BxWxG = batch.anchor_valid[:, :, None] & (
    index_BxWxG < batch.length[:, None, None]
  )
  rows_Bx1x1 = np.arange(batch.tokens.shape[0])[:, None, None]
  tokens_BxWxG = batch.tokens[rows_Bx1x1, index_BxWxG * valid_BxWxG]
  return tokens_BxWxG * valid_BxWxG, valid_BxWxG


def split(source: Source, eval_fraction: float) -> tuple['View', 'View']:
  """Splits into (train, held out) by the hash of each prompt's text.

  Whether a prompt is held out depends on its text alone: trajectories added
  later move none, and all those of one prompt stay on one side. Raises
  InputError if a side would be empty.

    train, held_out = split(source, 0.02)
  """
  threshold = int(eval_fraction * 2.0**64)
  sides: tuple[list[int], list[int]] = ([], [])
  for index in range(len(source)):
    held_out = int(source[index].prompt_hash, 16) < threshold
    sides[held_out].append(index)
  if not sides[0] or not sides[1]:
    raise errors.InputError(
      f'eval_fraction is {eval_fraction}, but of {len(source)} trajectories it '
      f'leaves {len(sides[0])} to train on and {len(sides[1])} held out. '
      'Collect more of them, or give another fraction.'
    )
  return View(source, sides[0]), View(source, sides[1])


class View:
  """A part of a source's trajectories, in their order; a source itself."""

  def __init__(self, source: Source, indices: Sequence[int]):
    self._source = source
    self.indices = tuple(indices)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> trajectories.Trajectory:
    return self._source[self.indices[index]]


def hashes(source: Source) -> set[str]:
  """Returns the prompt hashes, for `overlap.check_disjoint`."""
  return {source[index].prompt_hash for index in range(len(source))}


def digest(source: Source) -> str:
  """Returns a hash of the trajectories of a source, in their order."""
  found = hashlib.sha256()
  for index in range(len(source)):
    item = source[index]
    for part in (item.prompt, item.completion):
      found.update(np.int32(len(part)).tobytes())
      found.update(np.asarray(part, np.int32).tobytes())
  return found.hexdigest()


def _length(item: trajectories.Trajectory) -> int:
  return len(item.prompt) + len(item.completion)


def _has_anchor(item: trajectories.Trajectory, tokens: int) -> bool:
  return len(item.prompt) <= min(_length(item), tokens) - 2
