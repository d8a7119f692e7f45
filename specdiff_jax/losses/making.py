"""From a registered loss and its hyper-parameters to a loss of slots."""

import dataclasses
import inspect
from typing import Any

import jax

from specdiff_jax.losses import divergences as divergences
from specdiff_jax.losses import options as options_lib
from specdiff_jax.losses import registry
from specdiff_jax.losses import revealed as revealed
from specdiff_jax.losses import slots as slots_lib
from specdiff_jax.losses import windows

LOSSES = registry.LOSSES  # whole: the modules that fill it are imported here


def make(name: str, options: Any, steps: int) -> slots_lib.Loss:
  """Returns the loss of a run.

  One with `options_lib.Warmed` is mixed with the decayed cross-entropy, and
  told a `beta` that rises once that has faded.

  Args:
    name: one of LOSSES.
    options: object of its dataclass.
    steps: steps of the whole run.

  Example:
    >>> import specdiff_jax as sd
    >>> from specdiff_jax.losses import options
    >>> sd.make_loss('dpace', options.Dpace(), 1000).temperature
    1.0
  """
  loss = LOSSES[name]
  given = dataclasses.asdict(options)
  names = inspect.signature(loss.function).parameters

  def value(slots: slots_lib.Slots, step: jax.Array) -> slots_lib.Value:
    found = vars(slots) | dict(slots.statistics or {}) | given
    if not isinstance(options, options_lib.Warmed):
      return loss.function(**{name: found[name] for name in names})
    warm = round(options.ce_fraction * steps)
    beta = windows.anneal(step, warm, steps, options.beta_end)
    found['beta'] = beta
    after, metrics = windows.warmed(
      loss.function(**{name: found[name] for name in names}),
      slots.log_q,
      slots.valid,
      ce_weight=windows.warmup_weight(step, warm),
      decay=options.decay,
    )
    return after, metrics | {'beta': beta}

  return slots_lib.Loss(
    value,
    loss.statistics,
    getattr(options, 'law_temperature', 1.0),
    loss.show and loss.show(options),
  )
