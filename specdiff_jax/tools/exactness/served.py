"""Whether what was trained is what is served: `verify --drafter`.

Windows of recorded texts pass a drafter twice: through the forward that its
loss sees, many anchors at once, and through the engine, cycle by cycle. The
log-probabilities of each slot have to be the same but for rounding.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import reporting
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.models import layers
from specdiff_jax.models import networks
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.tools.exactness import replay
from specdiff_jax.tools.exactness import served_parts
from specdiff_jax.tools.exactness import served_report
from specdiff_jax.training import features
from specdiff_jax.training import objective

TOLERANCE = 1e-3
_WINDOWS = 16  # of each text whose scores exist at once


def compare(
  part: served_parts.Part,
  checkpoint: weights.Checkpoint,
  engine: engine_lib.Engine,
  given: Sequence[served_parts.Text],
  buckets: Sequence[int],
  batch: int,
  tolerance: float = TOLERANCE,
) -> served_report.Row:
  """Returns how far a drafter's two sides are apart on texts.

  Args:
    part: the drafter.
    checkpoint: the verifier.
    engine: whose verifier and sizes are taken.
    given: texts that fit the largest bucket.
    buckets: that prompts are padded to.
    batch: texts that are replayed together.
    tolerance: largest difference that passes.
  """
  engine = dataclasses.replace(
    engine, drafter=part.replay, rule=replay.Follow(), cache_step=0
  )
  view = objective.view(checkpoint.params, part.vocab)
  model = networks.network(checkpoint.config)
  differ = jax.jit(functools.partial(_differences, part))
  batch = min(batch, len(given))
  found: list[tuple[np.ndarray, ...]] = []
  for first in range(0, len(given), batch):
    numbers = np.arange(first, first + batch) % len(given)
    group = [given[number] for number in numbers.tolist()]
    bucket = min(b for b in buckets if b >= max(len(t.prompt) for t in group))
    size = windows.WindowConfig(
      bucket + engine.max_new_tokens, _WINDOWS, part.gamma, batch
    )
    plain = _batch(group, np.zeros((batch, 0), np.int32), size)
    read = {}
    if part.layers:
      read = features.forward(
        model, part.layers, 0.0, checkpoint.params, plain.tokens, plain.length,
        kept=jnp.float32,
      )  # fmt: skip
    texts = replay.Texts(
      part.replay_params, *map(jnp.asarray, (plain.tokens, plain.length)),
      vocab=jnp.asarray(part.vocab),
    )  # fmt: skip
    prompt = [len(text.prompt) for text in group]
    for heard, live in _several(
      replay.walk(engine, checkpoint.params, texts, prompt, bucket)
    ):
      anchors = np.asarray(heard.anchor)
      rows = _batch(group, anchors, size).replace(**read)
      apart, same = jax.device_get(differ(part.params, view, rows, heard))
      valid = np.asarray(heard.valid) & live[..., None]
      valid &= (first + np.arange(batch) < len(given))[:, None, None]
      row, window, slot = np.nonzero(valid)
      found.append(
        (numbers[row], anchors[row, window], slot, apart[valid], same[valid])
      )
  return _row(part, given, tolerance, found)


def _row(part: served_parts.Part, given, tolerance, found) -> served_report.Row:
  number, anchor, slot, apart, same = map(np.concatenate, zip(*found))
  gamma = part.replay.max_depth
  if not len(apart):
    raise errors.InputError(
      f'The drafter {part.source} was compared in no slot: the texts are too '
      'short. Give longer ones.'
    )
  by_slot = [apart[slot == j].max(initial=0.0) for j in range(gamma)]
  worst = int(np.argmax(apart))  # a NaN, if there is one
  return served_report.Row(
    name=part.name,
    source=part.source,
    served=part.served,
    windows=len(set(zip(number.tolist(), anchor.tolist()))),
    slots=len(apart),
    agreement=float(same.mean()),
    by_slot=tuple(map(float, by_slot)),
    text=given[number[worst]].id,
    anchor=int(anchor[worst]),
    slot=int(slot[worst]) + 1,
    tolerance=tolerance,
  )


def _several(
  cycles: Iterator[tuple[replay.Heard, np.ndarray]],
) -> Iterator[tuple[replay.Heard, np.ndarray]]:
  """Yields windows of several cycles together, [B, W, ...]; blank ones last."""
  kept: list[tuple[replay.Heard, np.ndarray]] = []

  def together():
    blank = kept[-1][0], np.zeros_like(kept[-1][1])
    every = kept + [blank] * (_WINDOWS - len(kept))
    return (
      jax.tree.map(lambda *x: jnp.stack(x, 1), *(heard for heard, _ in every)),
      np.stack([live for _, live in every], axis=1),
    )

  for cycle in cycles:
    kept.append(cycle)
    if len(kept) == _WINDOWS:
      yield together()
      kept.clear()
  if kept:
    yield together()


def _batch(
  group: Sequence[served_parts.Text],
  anchors: np.ndarray,
  size: windows.WindowConfig,
) -> training_types.TrainBatch:
  """Returns the batch of texts with these anchors [B, W]."""
  rows = [
    windows.row(number, text, anchors[number], size)  # pyright: ignore[reportArgumentType]  # it has the two fields
    for number, text in enumerate(group)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _differences(
  part: served_parts.Part, params, view, batch, heard: replay.Heard
):
  """Returns [B, W, G] the largest difference, and whether the argmax agrees.

  Of log-probabilities over the tokens that the served drafter gives a score:
  it may leave out some that it never drafts, as DFlash does its mask.
  """
  gamma = heard.valid.shape[-1]
  shown = None
  if part.replay.prefixes:
    more = part.gamma - gamma
    shown = jnp.pad(heard.shown, ((0, 0), (0, 0), (0, more)))
  predictions = part.score(params, view, batch, part.gamma, shown)
  head = view.head if predictions.head is None else predictions.head
  rows = jnp.arange(batch.tokens.shape[0])[:, None, None]
  states = predictions.states[rows, predictions.place[..., :gamma]]
  trained = layers.dense(states, head)
  if part.replay.head is not None:
    trained = jnp.take_along_axis(trained, heard.index, axis=-1)
  given = ~jnp.isneginf(heard.scores)
  normal = lambda x: jax.nn.log_softmax(jnp.where(given, x, -jnp.inf))
  trained, served = normal(trained), normal(heard.scores)
  apart = jnp.max(jnp.where(given, jnp.abs(trained - served), 0), axis=-1)
  apart = jnp.where(jnp.any(given, axis=-1), apart, jnp.inf)
  return apart, jnp.argmax(trained, -1) == jnp.argmax(served, -1)


def check(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  names: Sequence[str] | None,
  path: str | None,
  limit: int | None,
  *,
  against: str = '',
  tolerance: float = TOLERANCE,
  report: reporting.Reporter = reporting.SILENT,
) -> served_report.Report:
  """Returns the comparison of the drafters of systems.

  `names` are by default those of the config; see `served_parts` and `compare`.
  """
  if recipe.model.int8:
    raise errors.InputError(
      f'config.int8 is {recipe.model.int8!r}, but drafters are trained with '
      'weights that are not rounded; leave it empty.'
    )
  found = served_parts.parts(
    recipe, checkpoint, names or recipe.bench.systems, against
  )
  rows = []
  with jax.default_matmul_precision('highest'):
    given = served_parts.texts(recipe, checkpoint, path, limit)
    plain = decoding.system(recipe, checkpoint, 'ar')
    with report.progress('replaying', len(found)) as show:
      for part in found:
        show(len(rows), len(found), part.name)
        rows.append(
          compare(
            part,
            checkpoint,
            plain.engine,
            given,
            plain.buckets,
            recipe.decoding.batch,
            tolerance,
          )  # fmt: skip
        )
  return served_report.Report(
    rows,
    {
      'verifier': checkpoint.source,
      'fingerprint': checkpoint.fingerprint,
      'texts': len(given),
      'tolerance': tolerance,
      'device': decoding.device(),
      'jax': jax.__version__,
    },
  )
