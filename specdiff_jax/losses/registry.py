"""Losses by name, and the hyper-parameters that several of them share.

A loss is one function with a dataclass of its hyper-parameters, registered in
one line. It names what it takes: `log_q`, `valid` or another field of
`slots.Slots`, a statistic that it asks for, a hyper-parameter by its field:

  @dataclasses.dataclass(frozen=True)
  class Focus:
    focus: float = fields.field(2.0, 'exponent of focal', decides='run', low=0)

  @registry.register('focal', Focus)
  def focal(log_q, valid, focus):
    ...
    return loss, metrics
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from specdiff_jax.core import fields
from specdiff_jax.losses import slots


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """Of a loss without hyper-parameters."""


@dataclasses.dataclass(frozen=True)
class Decay:
  """Of losses whose later slots count less."""

  decay: float = fields.field(
    7.0,
    'of the weights exp(-(j - 1) / decay) in decayed_ce and variable_prefix',
    decides='run',
    above=0,
    within='positive',
  )


@dataclasses.dataclass(frozen=True)
class Warmup(Decay):
  """Of losses that take over from `decayed_ce`, and then know a `beta`."""

  ce_fraction: float = fields.field(
    0.3,
    'part of the steps spent on decayed_ce before streak, soft_streak, '
    'rejection or tv',
    decides='run',
    low=0,
    high=1,
    within='from 0 to 1',
  )
  beta_end: float = fields.field(
    0.0,
    'last beta of the Box-Cox loss of a length J (streak, soft_streak, '
    'rejection): 0 is -log J',
    decides='run',
  )


@dataclasses.dataclass(frozen=True)
class Distribution:
  """Of losses that read the verifier's distribution."""

  law_temperature: float = fields.field(
    1.0,
    "temperature of the verifier's distribution in the losses that read it",
    decides='run',
    above=0,
    within='above 0',
  )
  stored_law: bool = fields.field(
    False,
    "such losses take the verifier's likeliest tokens that `collect` "
    'stored (store_top_k) in place of a pass of the verifier; what was not '
    'stored is spread evenly over the other tokens',
    decides='run',
  )


@dataclasses.dataclass(frozen=True)
class WarmedDistribution(Distribution, Warmup):
  """Of losses that are both."""


@dataclasses.dataclass(frozen=True)
class Registered:
  """A loss by its name.

  Attributes:
    function: of what it names, to (loss, metrics).
    options: dataclass of its hyper-parameters.
    statistics: what it asks of the two distributions of each slot, by name.
    show: options -> (key, (W,), gamma) -> what the drafter sees of windows.
    drawn: an expectation over trajectories of the distribution it reads.
  """

  function: Callable[..., slots.Value]
  options: type = NoOptions
  statistics: Mapping[str, slots.Statistic] = dataclasses.field(
    default_factory=dict
  )
  show: Callable[[Any], Callable[..., slots.Shown]] | None = None
  drawn: bool = False


LOSSES: dict[str, Registered] = {}


def register(name: str, options: type = NoOptions, **more: Any):
  """Returns a decorator that adds a loss; `more` are those of `Registered`."""

  def add(function):
    LOSSES[name] = Registered(function, options, **more)
    return function

  return add
