"""What a loss is told of the slots of drafted windows, and what it is."""

from collections.abc import Callable, Mapping
import dataclasses

import flax.struct
import jax

Value = tuple[jax.Array, dict[str, jax.Array]]  # (mean loss, scalar metrics)
# Of two distributions [..., V], (log_q, log_p) -> [...]; see `divergences`.
Statistic = Callable[[jax.Array, jax.Array], jax.Array]


class Shown(flax.struct.PyTreeNode):
  """What a drafter sees of its windows, and what each counts in the loss."""

  mask: jax.Array  # [..., G] bool, True where the token is shown
  weight: jax.Array  # [...] float32


class Slots(flax.struct.PyTreeNode):
  """What a loss is told of each slot. Where not valid it may be anything."""

  log_q: jax.Array  # [B, W, G] of the target; -inf outside the draft vocabulary
  match: jax.Array  # [B, W, G] whether the target is the drafter's argmax
  valid: jax.Array  # [B, W, G] whether there is a target
  log_p: jax.Array | None = None  # [B, W, G] of the target under the verifier
  statistics: Mapping[str, jax.Array] | None = None  # [B, W, G] by name
  shown: Shown | None = None  # what the drafter saw of the windows
  confidence: jax.Array | None = None  # [B, W, G] logits of the drafter's own


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss of windows with its hyper-parameters; see `making.make`.

  Attributes:
    value: (slots, step) -> (loss, metrics).
    statistics: functions of the two distributions of each slot, by name.
    temperature: temperature of the verifier's distribution, if it asks any.
    show: (key, (W,), gamma) -> what of a row's windows is shown; None: nothing.
  """

  value: Callable[[Slots, jax.Array], Value]
  statistics: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
  temperature: float = 1.0
  show: Callable[..., Shown] | None = None
