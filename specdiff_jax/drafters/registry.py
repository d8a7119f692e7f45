"""Families of trained drafters by name: one line each.

A line holds a name to import, so that naming all families imports none.
"""

from collections.abc import Mapping
import dataclasses
import importlib
from typing import Any, TYPE_CHECKING

from specdiff_jax.core import errors
from specdiff_jax.core import printing

if TYPE_CHECKING:
  from specdiff_jax.drafters import family as family_lib


@dataclasses.dataclass(frozen=True)
class Entry:
  """A registered family.

  Attributes:
    module: where its FAMILY is; '' where it has none: its parts are drafters of
      other families.
    system: the system that it alone drafts for; '' where it fills windows, as
      the drafters of specdiff and its kin do.
    parts: names of its networks, each in a file of its own.
    optional: which of them it can do without.
    options: module with OPTIONS, dataclasses of `core.fields` by part, for new
      networks; '' where it has none of its own.
    writers: modules with `write`, a Writer of `checkpoints.export`, by the name
      of the form that it writes.
  """

  module: str = ''
  system: str = ''
  parts: tuple[str, ...] = ('drafter',)
  optional: tuple[str, ...] = ()
  options: str = ''
  writers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _ours(name: str, **more: Any) -> Entry:
  """Returns the entry of a family that has networks, in its folder here."""
  here = f'{__package__}.{name}'
  return Entry(f'{here}.family', options=f'{here}.options', **more)


_FORMS = {
  'dflash': f'{__package__}.dflash.format',
  'speculators': f'{__package__}.dflash.speculators',
}
FAMILIES: dict[str, Entry] = {
  'diffusion': _ours('diffusion'),
  'autoregressive': _ours('autoregressive', system='sps'),
  'masked_lm': _ours('masked_lm'),
  'dflash': _ours('dflash', writers=_FORMS),
  'eagle': _ours('eagle', system='eagle'),
  # Of any drafters of windows; the second of D2SD has learned to go on from a
  # prefix (loss variable_prefix).
  'd2sd': Entry(system='d2sd', parts=('first', 'second')),
  'mixture': Entry(
    system='mixture', parts=('first', 'second', 'third'), optional=('third',)
  ),
}


def family(name: str) -> 'family_lib.Family':
  """Returns a family, imported; an empty one where it is made of others.

  Example: family('diffusion').networks['drafter'].config.kind == 'diffusion'
  """
  if module := FAMILIES[name].module:
    return importlib.import_module(module).FAMILY
  from specdiff_jax.drafters import family as family_lib  # imports jax

  return family_lib.Family()


def kinds() -> dict[str, tuple[str, str]]:
  """Returns (family, part) of each kind of network that is trained here.

  A family of one network gives it its name; of several each has the part's
  behind it, as in 'd2sd.second'.
  """
  return {
    name if len(entry.parts) == 1 else f'{name}.{part}': (name, part)
    for name, entry in FAMILIES.items()
    if entry.options
    for part in entry.parts
  }


def family_of(kind: str, path: str) -> str:
  """Returns the family of a file's kind; InputError where it is not known."""
  if kind not in kinds():
    raise errors.InputError(
      f'{path}: this is a drafter of the kind {printing.short(kind)}, but the '
      f'kinds that are known here are {", ".join(kinds())}; take the version '
      'that wrote it.'
    )
  return kinds()[kind][0]


def forms() -> dict[str, str]:
  """Returns the module that writes each form of a published drafter.

  Example: list(forms()) == ['dflash', 'speculators']
  """
  return {
    form: module
    for entry in FAMILIES.values()
    for form, module in entry.writers.items()
  }


def writers() -> dict[str, Any]:
  """Returns the Writer of each of `forms`, imported."""
  return {
    form: importlib.import_module(module).write
    for form, module in forms().items()
  }


def network(kind: str) -> 'family_lib.Network':
  """Returns the network of a kind."""
  name, part = kinds()[kind]
  return family(name).networks[part]


def options(kind: str) -> type[Any]:
  """Returns the class of the options of new networks of a kind, without jax.

  Example: options('diffusion')(layers=4)
  """
  name, part = kinds()[kind]
  return importlib.import_module(FAMILIES[name].options).OPTIONS[part]


def systems() -> dict[str, str]:
  """Returns the family of each system that only one family drafts for."""
  return {e.system: name for name, e in FAMILIES.items() if e.system}


def parts(system: str) -> tuple[str, ...]:
  """Returns the names of the networks that draft for a system."""
  name = systems().get(system)
  return FAMILIES[name].parts if name else ('drafter',)


def optional(system: str) -> tuple[str, ...]:
  """Returns those of `parts` that may be left out."""
  name = systems().get(system)
  return FAMILIES[name].optional if name else ()


def paths(system: str, given: str | Mapping[str, str]) -> dict[str, str]:
  """Returns the path of each part of a system's drafter; '' where none is given.

  Args:
    system: its name.
    given: a path, or a path by part.

  Raises:
    InputError: a part that the system does not have, or one path for several.

  Example: paths('sps', 'a.safetensors') == {'drafter': 'a.safetensors'}
  """
  names = parts(system)
  if isinstance(given, str):
    if given and len(names) > 1:
      raise errors.InputError(
        f'drafters.{system} is {given!r}, but the drafter of the system '
        f'{system!r} has the parts {", ".join(names)}: give a path for each.'
      )
    return dict.fromkeys(names, given)
  for part in given:
    if part not in names:
      raise errors.InputError(
        f'drafters.{system} has the part {part!r}, but the parts of the '
        f'system {system!r} are {", ".join(names)}.'
      )
  return {**dict.fromkeys(names, ''), **given}
