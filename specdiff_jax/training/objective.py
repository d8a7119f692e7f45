"""What distillation differentiates: the drafter's windows under a loss.

A family of drafters is scored by one function (`scores.Score`); losses and
figures are the same for all.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import jax_settings
from specdiff_jax.data import windows
from specdiff_jax.drafters import scores
from specdiff_jax.losses import divergences
from specdiff_jax.losses import revealed
from specdiff_jax.models import head as head_lib
from specdiff_jax.models import layers
from specdiff_jax.training import micro_batches as parts_lib
from specdiff_jax.training import served

# What a batch may say of the verifier's law after each of its tokens.
_LAWS = ('final', 'log_z', 'top_ids', 'top_log_p')


@flax.struct.dataclass
class Slots:
  """What a loss is told of each slot. Where not valid it may be anything."""

  log_q: jax.Array  # [B, W, G] of the target; -inf outside the draft vocabulary
  match: jax.Array  # [B, W, G] whether the target is the drafter's argmax
  valid: jax.Array  # [B, W, G] whether there is a target
  log_p: jax.Array | None = None  # [B, W, G] of the target under the verifier
  law: Mapping[str, jax.Array] | None = None  # [B, W, G] what `Loss.law` asks
  shown: revealed.Shown | None = None  # what the drafter saw of the windows


# Two laws [..., V], (log_q, log_p) -> [...]; see `laws`
Statistic = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss of windows, and what it wants to be told.

  Attributes:
    value: (slots, step) -> (loss, metrics).
    law: what it asks of the two laws of each slot, by name.
    temperature: of the verifier's law, where `law` asks for any.
    show: (key, (W,), gamma) -> what of a row's windows is shown; None: nothing.
    whole: (params, frozen, batch, keys [B], step, block) -> (loss, metrics) of
      whole texts, in place of all that is said of windows; None: there is none.
    served: the probability with which a window counts only if serving visits
      it (`served.counted`); 0 where windows are shown.
  """

  value: Callable[[Slots, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
  law: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
  temperature: float = 1.0
  show: Callable[..., revealed.Shown] | None = None
  whole: Callable[..., tuple[jax.Array, dict[str, jax.Array]]] | None = None
  served: float = 0.0


def frozen(verifier: dict[str, Any], vocab: np.ndarray) -> dict[str, Any]:
  """Returns what training reads of the verifier: embedding, head, vocabulary.

  `index` [V] maps a token to its place in the draft vocabulary, -1 outside.
  """
  embed = verifier['embed']
  index = np.full(embed.shape[0], -1, np.int32)
  index[vocab] = np.arange(len(vocab), dtype=np.int32)
  head = verifier.get('head', embed)
  return {'embed': embed, 'head': head[vocab], 'index': jnp.asarray(index)}


def slots(
  predictions: scores.Predictions,
  frozen: Mapping[str, jax.Array],
  batch: Mapping[str, jax.Array],
  valid: jax.Array,
  loss: Loss | None = None,
  block: int = 0,
) -> Slots:
  """Returns what is known of each slot.

  Args:
    predictions: of a `scores.Score`.
    frozen: see `frozen`.
    batch: if a law is asked, with `final` and `log_z` (`features.Features`)
      or with `top_ids` and `top_log_p` (`features.StoredLaw`).
    valid: [B, W, G].
    loss: what asks; None asks for no law.
    block: rows of the head whose logits exist at once; 0 for all.
  """
  rows = jnp.arange(valid.shape[0])
  last = batch['tokens'].shape[1] - 1
  follower = jnp.minimum(predictions.position + 1, last)
  index = frozen['index'][batch['tokens'][rows[:, None], follower]]
  log_q, match = head_lib.judge(
    predictions.states, frozen['head'], index, block
  )
  known = {'log_q': log_q, 'match': match}
  if loss is not None and loss.law:
    at = rows[:, None], jnp.minimum(predictions.position, last)
    law = {name: batch[name][at] for name in _LAWS if name in batch}
    parts = predictions.states, law, index
    known |= _compare(parts, frozen, loss, block)
  take = rows[:, None, None], predictions.place
  return Slots(valid=valid, **jax.tree.map(lambda x: x[take], known))


def _compare(parts, frozen, loss: Loss, block: int) -> dict[str, Any]:
  """Returns `log_p` of the targets and `law`, [B, P] each.

  With blocks, so many predictions are taken at once that their two laws have
  the size of a block of the logits of all.
  """
  head = frozen['head']

  def one(parts):
    states, law, index = parts
    log_q = jax.nn.log_softmax(layers.dense(states, head))
    log_p = _verifiers(law, frozen, loss.temperature)
    place = jnp.maximum(index, 0)[..., None]
    picked = jnp.take_along_axis(log_p, place, axis=-1)[..., 0]
    law = {name: f(log_q, log_p) for name, f in loss.law.items()}
    return {'log_p': jnp.where(index >= 0, picked, 0), 'law': law}

  size = head.shape[0]
  if not block or block >= size:
    return one(parts)
  at_once = max(1, parts[0].shape[1] * block // size)
  by_prediction = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), parts)
  found = jax.lax.map(jax.checkpoint(one), by_prediction, batch_size=at_once)
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)


def _verifiers(law, frozen, temperature: float) -> jax.Array:
  """Returns log p over the draft vocabulary, of what a batch says of it."""
  if 'top_ids' in law:
    return divergences.from_top_k(
      law['top_ids'],
      law['top_log_p'].astype(jnp.float32),
      frozen['index'],
      frozen['head'].shape[0],
    )
  logits = layers.dense(law['final'], frozen['head'])
  return logits / temperature - law['log_z'][..., None]


def make_loss(
  score: scores.Score,
  loss: Loss,
  gamma: int,
  block: int = 0,
  seed: int = 0,
  parts: int = 1,
):
  """Returns (params, frozen, batch, step) -> (loss, metrics).

  What is shown of windows or texts, and which windows count beside those that
  serving visits, is drawn by seed, step and record. Windows are scored in so
  many `parts` of the batch, one after the other, and then weighed together; see
  `parts.by_parts`.
  """

  def objective(params, frozen, batch, step):
    key = jax.random.fold_in(jax_settings.key(seed), step)
    # Not by a row's place in the batch, which other processes would change.
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['record'])
    if loss.whole:
      return loss.whole(params, frozen, batch, keys_B, step, block)
    _, valid = windows.targets(batch, gamma)
    shown = mask = None
    if loss.show:
      shown = jax.vmap(lambda k: loss.show(k, valid.shape[1:2], gamma))(keys_B)
      mask = shown.mask

    def predicted(batch, mask):
      return score(params, frozen, batch, gamma, mask)

    def judged(batch, valid, mask):
      found = predicted(batch, mask)
      return slots(found, frozen, batch, valid, loss, block)

    known = parts_lib.by_parts(judged, parts)(batch, valid, mask)
    if loss.served:
      valid = served.counted(
        keys_B, loss.served, batch['anchors'], known.match, valid
      )
      known = known.replace(valid=valid)
    value, metrics = loss.value(known.replace(shown=shown), step)
    predictions = jax.eval_shape(predicted, batch, mask)
    return value, metrics | _use(predictions, batch, valid, mask)

  return objective


def _use(
  predictions: scores.Predictions, batch, valid, shown
) -> dict[str, Any]:
  """Returns the targets trained on, and how many a forward token yields.

  Forward tokens are those of the rows, padding included, and the slots that
  are drafted in passes of their own.
  """
  targets = jnp.sum(valid if shown is None else valid & ~shown)
  passed = batch['tokens'].size + predictions.extra_tokens
  return {'targets': targets, 'useful_targets_per_token': targets / passed}


def make_matches(score: scores.Score, gamma: int, block: int = 0):
  """Returns (params, frozen, batch) -> (match, valid), each [B, W, G].

  `match` says where the drafter's argmax is the trajectory's token.
  """

  def matches(params, frozen, batch):
    _, valid = windows.targets(batch, gamma)
    predictions = score(params, frozen, batch, gamma)
    known = slots(predictions, frozen, batch, valid, block=block)
    return known.match & valid, valid

  return matches
