"""Fields of options, told once: default, meaning, bounds, and what they decide.

Losses, systems, network sizes and recipes are frozen dataclasses of such
fields. `--help`, checks, errors and the identity of a resumed run are derived
from them; no second list of fields exists.

Example:

  @dataclasses.dataclass(frozen=True)
  class Decayed:
    decay: float = fields.field(7.0, 'decay of the weights', decides='run', low=0)
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from specdiff_jax.core import errors

# What another value of a field changes: the text of the verifier, the run that
# trains a drafter (both bar going on with what was begun), or only the speed.
DECIDES = ('text', 'run', 'speed')


@dataclasses.dataclass(frozen=True)
class About:
  """What is known of a field besides its name, type and default."""

  help: str
  decides: str = 'speed'  # one of DECIDES
  low: float | None = None  # bounds, both allowed themselves
  high: float | None = None
  above: float | None = None  # bounds that are not allowed themselves
  below: float | None = None
  within: str = ''  # all bounds in words, for errors
  choices: tuple[Any, ...] = ()  # the only values, where there are some
  element: type | None = None  # of the elements of a tuple that may be empty


def field(default: Any, help: str, **more: Any) -> Any:
  """Returns a field of a dataclass; `more` are those of `About`."""
  about = About(help, **more)
  assert about.decides in DECIDES
  if dataclasses.is_dataclass(default):
    factory = lambda: default
    return dataclasses.field(default_factory=factory, metadata={'about': about})
  return dataclasses.field(default=default, metadata={'about': about})


def abouts(kind: Any) -> dict[str, About]:
  """Returns what is known of each field of a dataclass, by name."""
  return {
    one.name: one.metadata['about']
    for one in dataclasses.fields(kind)
    if 'about' in one.metadata
  }


def check(options: Any) -> None:
  """Raises InputError, which names the argument, where a value is not allowed.

  Bounds hold for each element of a tuple.
  """
  for name, about in abouts(options).items():
    value = getattr(options, name)
    every = value if isinstance(value, (tuple, list)) else (value,)
    for one in every:
      _check(name, one, about)


def _check(name: str, value: Any, about: About) -> None:
  if about.choices and value not in about.choices:
    raise errors.InputError(
      f'{name} is {value!r}, but it has to be one of {_listed(about.choices)}.'
    )
  # Written so that NaN fails too.
  if about.within and not _fits(value, about):
    raise errors.InputError(
      f'{name} is {value}, but it has to be {about.within}.'
    )
  if about.low is not None and not value >= about.low:
    raise errors.InputError(
      f'{name} is {value}, but it has to be at least {about.low}.'
    )
  if about.high is not None and not value <= about.high:
    raise errors.InputError(
      f'{name} is {value}, but it has to be at most {about.high}.'
    )


def _fits(value: Any, about: About) -> bool:
  return (
    (about.low is None or value >= about.low)
    and (about.high is None or value <= about.high)
    and (about.above is None or value > about.above)
    and (about.below is None or value < about.below)
  )


def _listed(values: Sequence[Any]) -> str:
  return ', '.join(str(value) or "''" for value in values)
