"""Losses by name.

A loss is one function, registered in one line, with a dataclass of its
hyper-parameters in `options`, which has its name there. It names what it takes:
`log_q`, `valid` or another field of `slots.Slots`, a statistic that it asks
for, a hyper-parameter by its field:

  @dataclasses.dataclass(frozen=True)
  class Focus:
    focus: float = fields.field(2.0, 'exponent of focal', decides='run', low=0)

  @registry.register('focal')
  def focal(log_q, valid, focus):
    ...
    return loss, metrics
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from specdiff_jax.losses import options as options_lib
from specdiff_jax.losses import slots


@dataclasses.dataclass(frozen=True)
class Registered:
  """A loss by its name.

  Attributes:
    function: function of what it names, to (loss, metrics).
    options: dataclass of its hyper-parameters.
    statistics: functions of the two distributions of each slot, by name.
    show: options -> (key, (W,), gamma) -> what the drafter sees of windows.
    drawn: an expectation over trajectories of the distribution it reads.
  """

  function: Callable[..., slots.Value]
  options: type = options_lib.Plainly
  statistics: Mapping[str, slots.Statistic] = dataclasses.field(
    default_factory=dict
  )
  show: Callable[[Any], Callable[..., slots.Shown]] | None = None
  drawn: bool = False


LOSSES: dict[str, Registered] = {}


def register(name: str, options: type | None = None, **more: Any):
  """Returns a decorator that adds a loss; `more` are those of `Registered`.

  Its dataclass is the one that `options.LOSSES` has for the name, unless it is
  given.

  Example:
    >>> import specdiff_jax as sd
    >>> from specdiff_jax.losses import options, registry
    >>> @sd.register_loss('mine', options.Plainly)
    ... def mine(log_q, valid):
    ...   return -(log_q * valid).mean(), {}
    >>> registry.LOSSES.pop('mine').function is mine
    True
  """
  options = options or options_lib.LOSSES[name]

  def add(function: Callable[..., slots.Value]):
    LOSSES[name] = Registered(function, options, **more)
    return function

  return add
