"""What distillation differentiates: the drafter's windows under a loss.

A family of drafters is scored by one function (`scores.Score`); losses and
figures are the same for all.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import jax_settings
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.drafters import scores
from specdiff_jax.losses import divergences
from specdiff_jax.losses import slots as slots_lib
from specdiff_jax.models import head as head_lib
from specdiff_jax.models import layers
from specdiff_jax.training import micro_batches


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a run minimises, and how much of a batch it holds at once.

  Attributes:
    loss: loss of windows.
    vocab_block: rows of the head whose logits exist at once; 0 for all.
    micro_batches: micro-batches of a batch, a divisor of its rows.
    whole: loss of whole texts in place of that of windows, (params, view,
      batch, keys [B], step, vocab_block) -> (loss, metrics); None: there is
      none.
    stored: whether the verifier's distribution is read as the data hold it.
  """

  loss: slots_lib.Loss
  vocab_block: int = 0
  micro_batches: int = 1
  whole: Callable[..., slots_lib.Value] | None = None
  stored: bool = False

  @property
  def temperature(self) -> float:
    """Temperature of the distribution that a pass has to give; 0: none."""
    asked = self.loss.statistics and not self.stored
    return self.loss.temperature if asked else 0.0


def view(
  verifier: dict[str, Any], vocab: np.ndarray
) -> training_types.VerifierView:
  """Returns what training reads of the verifier's params.

  Args:
    verifier: params of the verifier.
    vocab: tokens of the draft vocabulary.
  """
  embed = verifier['embed']
  index = np.full(embed.shape[0], -1, np.int32)
  index[vocab] = np.arange(len(vocab), dtype=np.int32)
  head = head_lib.rows(verifier)[vocab]
  return training_types.VerifierView(embed, head, jnp.asarray(index))


def slots(
  predictions: scores.Predictions,
  view: training_types.VerifierView,
  batch: training_types.TrainBatch,
  valid: jax.Array,
  loss: slots_lib.Loss | None = None,
  block: int = 0,
) -> slots_lib.Slots:
  """Returns what a loss is told of each slot.

  Args:
    predictions: result of a `scores.Score`.
    view: result of `view`.
    batch: batch, with a distribution where the loss asks for one.
    valid: [B, W, G].
    loss: loss that asks; None asks for no distribution.
    block: rows of the head whose logits exist at once; 0 for all.
  """
  rows = jnp.arange(valid.shape[0])
  last = batch.tokens.shape[1] - 1
  follower = jnp.minimum(predictions.position + 1, last)
  index = view.index[batch.tokens[rows[:, None], follower]]
  head = view.head if predictions.head is None else predictions.head
  log_q, match = head_lib.targets(predictions.states, head, index, block)
  found = {'log_q': log_q, 'match': match}
  if predictions.confidence is not None:
    found['confidence'] = predictions.confidence
  if loss is not None and loss.statistics:
    at = rows[:, None], jnp.minimum(predictions.position, last)
    distribution = jax.tree.map(lambda x: x[at], batch.distribution)
    drafted = predictions.states, distribution, index
    found |= _compare(drafted, head, view, loss, block)
  take = rows[:, None, None], predictions.place
  return slots_lib.Slots(valid=valid, **jax.tree.map(lambda x: x[take], found))


def _compare(
  drafted, head, view, loss: slots_lib.Loss, block: int
) -> dict[str, Any]:
  """Returns `log_p` of the targets and `statistics`, [B, P] each.

  With blocks, so many predictions are taken at once that their two
  distributions have the size of a block of the logits of all.
  """

  def one(drafted):
    states, distribution, index = drafted
    log_q = jax.nn.log_softmax(layers.dense(states, head))
    log_p = _log_p(distribution, view, loss.temperature)
    place = jnp.maximum(index, 0)[..., None]
    picked = jnp.take_along_axis(log_p, place, axis=-1)[..., 0]
    return {
      'log_p': jnp.where(index >= 0, picked, 0),
      'statistics': {
        name: function(log_q, log_p)
        for name, function in loss.statistics.items()
      },
    }

  size = head.shape[0]
  if not block or block >= size:
    return one(drafted)
  at_once = max(1, drafted[0].shape[1] * block // size)
  by_prediction = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drafted)
  found = jax.lax.map(jax.checkpoint(one), by_prediction, batch_size=at_once)
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)


def _log_p(distribution, view, temperature: float) -> jax.Array:
  """Returns the verifier's log p over the draft vocabulary."""
  if isinstance(distribution, training_types.TopK):
    return divergences.from_top_k(
      distribution.ids,
      distribution.log_p.astype(jnp.float32),
      view.index,
      view.head.shape[0],
    )
  logits = layers.dense(distribution.state, view.head)
  return logits / temperature - distribution.log_z[..., None]


def make_loss(
  score: scores.Score, objective: Objective, gamma: int, seed: int = 0
):
  """Returns (params, view, batch, step) -> (loss, metrics).

  What is shown of windows or texts is drawn by seed, step and record. Windows
  are scored a micro-batch at a time and then weighed together; see
  `micro_batches.over_micro_batches`.
  """
  loss = objective.loss

  def function(params, view, batch, step):
    key = jax.random.fold_in(jax_settings.key(seed), step)
    # Not by a row's place in the batch, which other processes would change.
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.record)
    if objective.whole:
      return objective.whole(
        params, view, batch, keys_B, step, objective.vocab_block
      )
    _, valid = windows.targets(batch, gamma)
    shown = mask = None
    if show := loss.show:
      shown = jax.vmap(lambda k: show(k, valid.shape[1:2], gamma))(keys_B)
      mask = shown.mask

    def predicted(batch, mask):
      return score(params, view, batch, gamma, mask)

    def scored(batch, valid, mask):
      predictions = predicted(batch, mask)
      return slots(predictions, view, batch, valid, loss, objective.vocab_block)

    found = micro_batches.over_micro_batches(scored, objective.micro_batches)(
      batch, valid, mask
    )
    value, metrics = loss.value(found.replace(shown=shown), step)
    predictions = jax.eval_shape(predicted, batch, mask)
    return value, metrics | _use(predictions, batch, valid, mask)

  return function


def _use(
  predictions: scores.Predictions, batch, valid, shown
) -> dict[str, Any]:
  """Returns the targets trained on, and how many a forward token yields.

  Forward tokens are those of the rows, padding included, and the slots that
  are drafted in separate passes.
  """
  targets = jnp.sum(valid if shown is None else valid & ~shown)
  passed = batch.tokens.size + predictions.extra_tokens
  return {'targets': targets, 'useful_targets_per_token': targets / passed}


def make_matches(score: scores.Score, gamma: int, block: int = 0):
  """Returns (params, view, batch) -> (match, valid), each [B, W, G].

  `match` says where the drafter's argmax is the trajectory's token.
  """

  def matches(params, view, batch):
    _, valid = windows.targets(batch, gamma)
    predictions = score(params, view, batch, gamma)
    found = slots(predictions, view, batch, valid, block=block)
    return found.match & valid, valid

  return matches
