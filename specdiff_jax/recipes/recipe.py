"""A recipe: all that can be told to a program, as nested frozen dataclasses.

The fields stand in a config by their names alone, whichever group they are of
(`--config.steps`), but for those of `network`, `masked_lm`, `diffuspec`,
`drafters` and `ar_slots`, which a config nests too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
from typing import Any

from specdiff_jax.core import fields
from specdiff_jax.drafters import registry
from specdiff_jax.losses import options as loss_options
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import options as options_lib


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All groups, with every system's and every loss's options among them."""

  model: groups.Model
  drafting: groups.Drafting
  sampling: groups.Sampling
  decoding: groups.Decoding
  systems: Mapping[str, Any]  # options by the system's name
  bench: groups.Bench
  training: groups.Training
  objective: groups.Objective
  losses: Mapping[str, Any]  # options by the loss's name
  optimizer: groups.Optimizer
  schedule: groups.Schedule
  memory: groups.Memory
  placement: groups.Placement
  processes: groups.Processes
  collecting: groups.Collecting

  def flat(self) -> dict[str, Any]:
    """Returns the values by the names that a config has for them."""
    found = {}
    for group in self._groups():
      found = dataclasses.asdict(group) | found  # the first one's holds
    return found

  def _groups(self, losses: bool = True) -> Iterator[Any]:
    for name, value in vars(self).items():
      if name == 'losses' and not losses:
        continue
      yield from value.values() if isinstance(value, dict) else (value,)

  def deciding(self, what: str) -> dict[str, Any]:
    """Returns the fields that decide `what`, one of `fields.DECIDES`, as JSON.

    Of the losses only the fields of the one that is trained with. A field that
    is newer than runs that go on is left out where it has its default.
    """
    return self._chosen(
      [*self._groups(losses=False), self.loss or self.objective],
      lambda about, changed: (
        what in about.decides and (changed or not about.newer)
      ),
    )

  def reported(self, program: str) -> dict[str, Any]:
    """Returns the fields that the reports of a program name, as JSON."""
    return self._chosen(
      self._groups(), lambda about, changed: program in about.reported
    )

  def _chosen(self, kinds, wanted: Callable[[fields.About, bool], bool]):
    flat = self.flat()
    found = {
      one.name: _without_newer(one.default, flat[one.name])
      for kind in kinds
      for one in dataclasses.fields(kind)
      if wanted(one.metadata['about'], flat[one.name] != _plain(one.default))
    }
    return json.loads(json.dumps(found))

  def change(self, **values: Any) -> 'Recipe':
    """Returns the recipe with other values, by the names of a config.

    Example: recipe.change(gamma=2, network={'layers': 1})
    """
    flat = self.flat()
    for name, value in values.items():
      if isinstance(value, dict):  # of fields, or the object of a JSON text
        node = flat[name]
        value = node | value if isinstance(node, dict) else json.dumps(value)
      flat[name] = value
    return of(flat)

  @property
  def loss(self) -> Any:
    """The options of the loss that is trained with; None of one not known."""
    return self.losses.get(self.objective.loss)

  @property
  def distributed(self) -> bool:
    """Whether the programs that can do so join other processes."""
    return self.processes.distributed


def _plain(default: Any) -> Any:
  """Returns a default as `Recipe.flat` has it."""
  return (
    dataclasses.asdict(default)  # pyright: ignore[reportArgumentType]  # it is no class
    if dataclasses.is_dataclass(default)
    else default
  )


def _without_newer(default: Any, value: Any) -> Any:
  """Returns the value of a field, without newer ones in it that are unchanged.

  Example: {'sps': 'a', 'd2sd': {'first': '', 'second': ''}} to {'sps': 'a'}
  """
  if not dataclasses.is_dataclass(default):
    return value
  plain = _plain(default)
  return {
    one.name: value[one.name]
    for one in dataclasses.fields(default)
    if not one.metadata['about'].newer or value[one.name] != plain[one.name]
  }


# What programs read, as `Command.fields` puts them together.
SYSTEMS = tuple(options_lib.SYSTEMS.values())
DECODING = (
  groups.Model,
  groups.Drafting,
  *SYSTEMS,
  groups.Sampling,
  groups.Decoding,
)
TRAINING = (
  groups.Training,
  groups.Objective,
  *loss_options.LOSSES.values(),
  groups.Optimizer,
  groups.Schedule,
  groups.Memory,
  groups.Placement,
  groups.Processes,
)
GROUPS = (*DECODING, groups.Bench, *TRAINING, groups.Collecting)
FIELDS: Mapping[str, dataclasses.Field[Any]] = {
  one.name: one for kind in GROUPS for one in dataclasses.fields(kind)
}


def of(values: dict[str, Any]) -> Recipe:
  """Returns the recipe of complete values of the right types, unchecked."""
  single = values['drafters']
  plain = {
    one.name: _filled(one.type, values)
    for one in dataclasses.fields(Recipe)
    if dataclasses.is_dataclass(one.type)
  }
  systems = {
    name: _filled(
      kind,
      values | {'drafter': _drafter(name, single.get(name), values['drafter'])},
    )
    for name, kind in options_lib.SYSTEMS.items()
  }
  losses = {
    name: _filled(kind, values) for name, kind in loss_options.LOSSES.items()
  }
  return Recipe(systems=systems, losses=losses, **plain)


def _drafter(system: str, given: Any, default: str) -> Any:
  """Returns the path of a system's drafter, or one for each of its parts."""
  if isinstance(given, Mapping):
    without = registry.optional(system)
    return {
      part: path or ('' if part in without else default)
      for part, path in given.items()
    }
  return given or default


def _filled(kind: Any, values: Mapping[str, Any]) -> Any:
  """Returns a dataclass of the values of its fields."""
  return kind(
    **{
      one.name: _filled(type(one.default), values[one.name])
      if dataclasses.is_dataclass(one.default)
      else values[one.name]
      for one in dataclasses.fields(kind)
    }
  )


def described(
  *kinds: Any, only: Sequence[str] = ()
) -> dict[str, tuple[Any, str]]:
  """Returns default and meaning of the fields of groups (`only` some)."""
  return {
    name: (default, about.help)
    for name, default, about in leaves(kinds)
    if not only or name.partition('.')[0] in only
  }


def leaves(
  kinds: Iterable[Any], outer: str = ''
) -> Iterator[tuple[str, Any, fields.About]]:
  """Yields name, default and meaning of all fields, of nested ones too."""
  for kind in kinds:
    for one in dataclasses.fields(kind):
      if dataclasses.is_dataclass(one.default):
        yield from leaves((one.default,), f'{outer}{one.name}.')
      else:
        yield f'{outer}{one.name}', one.default, one.metadata['about']
