"""Fields of options, told once: default, meaning, bounds, and what they decide.

Losses, systems, network sizes and recipes are frozen dataclasses of such
fields. `--help`, checks, errors and the identity of a resumed run are derived
from them; no second list of fields exists.

Example:

  @dataclasses.dataclass(frozen=True)
  class Decayed:
    decay: float = fields.field(7.0, 'decay of the weights', decides='run', low=0)
"""

from collections.abc import Callable, Sequence
import dataclasses
import operator
from typing import Any

from specdiff_jax.core import errors

# What another value of a field changes: the text of the verifier, the run that
# trains a drafter (both bar going on with what was begun), or only the speed.
DECIDES = ('text', 'run', 'speed')


@dataclasses.dataclass(frozen=True)
class About:
  """What is known of a field besides its name, type and default."""

  help: str
  decides: str | tuple[str, ...] = 'speed'  # of DECIDES
  low: float | None = None  # bounds, both allowed themselves
  high: float | None = None
  choices: tuple[Any, ...] = ()  # the only values, where there are some
  above: float | None = None  # bounds that are not allowed themselves
  below: float | None = None
  fits: Callable[[Any], bool] | None = None  # what no bounds can say
  within: str = ''  # all of these in words, for errors
  element: type | None = None  # of the elements of a tuple that may be empty
  path: bool = False  # it holds paths of files
  json: bool = False  # it is the text of a JSON object, or given as a dict
  reported: tuple[str, ...] = ()  # programs whose reports name the value
  newer: bool = False  # than runs that go on: its default decides nothing


def field(default: Any, help: str, **more: Any) -> Any:
  """Returns a field of a dataclass; `more` are those of `About`."""
  about = About(help, **more)
  decides = about.decides
  decides = {decides} if isinstance(decides, str) else set(decides)
  assert decides <= set(DECIDES)
  return dataclasses.field(default=default, metadata={'about': about})


def text(default: Any, help: str, **more: Any) -> Any:
  """Returns a field that decides the text."""
  return field(default, help, decides='text', **more)


def run(default: Any, help: str, **more: Any) -> Any:
  """Returns a field that decides a run of training."""
  return field(default, help, decides='run', **more)


def unit(default: float, help: str, **more: Any) -> Any:
  """Returns a field of a run that lies from 0 to 1."""
  return run(default, help, low=0, high=1, within='from 0 to 1', **more)


def abouts(kind: Any) -> dict[str, About]:
  """Returns what is known of each field of a dataclass, by name."""
  return {
    one.name: one.metadata['about']
    for one in dataclasses.fields(kind)
    if 'about' in one.metadata
  }


def check(options: Any, outer: str = '') -> None:
  """Raises InputError, which names the argument, where a value is not allowed.

  Bounds hold for each element of a tuple, and within a nested dataclass.
  """
  for name, about in abouts(options).items():
    value = getattr(options, name)
    if dataclasses.is_dataclass(value):
      check(value, f'{outer}{name}.')
      continue
    every = value if isinstance(value, (tuple, list)) else (value,)
    for one in every:
      if fault := _fault(one, about):
        shown = repr(one) if isinstance(one, str) else one
        raise errors.InputError(
          f'{outer}{name} is {shown}, but it has to be {fault}.'
        )


def _fault(value: Any, about: About) -> str:
  """Returns what a value had to be; '' where it is allowed."""
  if about.choices and value not in about.choices:
    return f'one of {listed(about.choices)}'
  # Written so that NaN fails too.
  for bound, holds, words in (
    (about.low, operator.ge, 'at least'),
    (about.high, operator.le, 'at most'),
    (about.above, operator.gt, 'above'),
    (about.below, operator.lt, 'below'),
  ):
    if bound is not None and not holds(value, bound):
      return about.within or f'{words} {bound}'
  return '' if about.fits is None or about.fits(value) else about.within


def listed(values: Sequence[Any]) -> str:
  """Returns values as a sentence lists them."""
  return ', '.join(str(value) or "''" for value in values)
