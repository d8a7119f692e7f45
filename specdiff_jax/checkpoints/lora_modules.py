"""Which modules the settings of a LoRA adapter mean, as peft reads them."""

from collections.abc import Collection, Mapping
import contextlib
import re
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing

ADVICE = (
  'Merge the adapter into its model with peft (merge_and_unload), and give '
  'the merged directory.'
)
_MOST_NAMES = 4096  # of modules that have a number of their own
_MOST_PATTERNS = 8  # that are more than names
_MOST_NUMBER = 1e9
_NAME = re.compile(r'[\w.]+')
# Of regular expressions those are read that cannot take long: letters, dots and
# digits, classes of them, alternatives, groups of names that are not repeated.
_LETTER = r'(?:[\w-]|\\[.dw])'
_ONCE = '(?![*+?{])'
_GROUP = rf'\((?:\?:)?{_LETTER}*(?:\|{_LETTER}*)*\){_ONCE}'
_SAFE = re.compile(
  rf'(?:{_LETTER}|\.|\[[\w-]+\]|\||\^|\$|{_GROUP}|[*+?]{_ONCE})*'
)
_MOST_LOOPS, _MOST_GROUPS, _MOST_LETTERS = 2, 3, 500


class Numbers:
  """A number of each module: one for all, and others by patterns of names.

  Of the patterns that mean a module the first counts, as in peft.
  """

  def __init__(self, file: str, settings: Mapping, key: str, others_key: str):
    self._others = settings.get(others_key) or {}
    if not isinstance(self._others, dict):
      raise _unexpected(file, others_key, self._others, 'an object')
    self._file, self._key, self._usual = file, key, settings.get(key)
    self._patterns = _Patterns(file, others_key, self._others)

  def of(self, module: str) -> int | float:
    pattern = self._patterns.first(module)
    value: Any = self._usual if pattern is None else self._others[pattern]
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not -_MOST_NUMBER < value < _MOST_NUMBER:
      raise _unexpected(self._file, self._key, value, 'a number')
    return value


class _Patterns:
  """Patterns of modules' names, each checked and compiled once.

  A pattern means a module whose name ends in it, behind a dot or in whole.

  Raises InputError for too many, or one that might take long.
  """

  def __init__(self, file: str, key: str, patterns: Collection[str]):
    self._names: dict[int, list[tuple[int, str]]] = {}  # by length
    self._others: list[tuple[int, str, re.Pattern[str]]] = []
    others: list[tuple[int, str]] = []
    for i, pattern in enumerate(patterns):
      if _NAME.fullmatch(pattern):
        self._names.setdefault(len(pattern), []).append((i, pattern))
      else:
        others.append((i, pattern))
    if max(len(patterns) - _MOST_NAMES, len(others) - _MOST_PATTERNS) > 0:
      raise errors.InputError(
        f'{file}: {key} has {len(patterns)} patterns, of which '
        f'{len(others)} are more than names of modules; {_MOST_NAMES} '
        f'and {_MOST_PATTERNS} are read at most. {ADVICE}'
      )
    for i, pattern in others:
      read = _compiled(pattern)
      if read is None:
        raise errors.InputError(
          f'{file}: {key} has {printing.short(pattern)}, which is no name '
          'and not a regular expression that is read here: names, dots, '
          f'digits, alternatives, two repetitions at most. {ADVICE}'
        )
      self._others.append((i, pattern, read))

  def first(self, module: str) -> str | None:
    """Returns the first pattern that means a module."""
    starts = _starts(module)
    found = [
      (i, pattern)
      for i, pattern, read in self._others
      if any(read.fullmatch(module, start) for start in starts)
    ]
    for start in starts:  # a dot in a name stands for any character
      for i, pattern in self._names.get(len(module) - start, ()):
        if all(
          one in ('.', other) for one, other in zip(pattern, module[start:])
        ):
          found.append((i, pattern))
          break
    return min(found)[1] if found else None


def _starts(module: str) -> list[int]:
  """Returns where a module's name and those behind its dots begin."""
  return [0, *(i + 1 for i, letter in enumerate(module) if letter == '.')]


def _compiled(pattern: str) -> re.Pattern[str] | None:
  """Returns a regular expression, or None if it could take long or is none."""
  loops = len(re.findall(r'[*+]|(?<!\()\?', pattern))
  short = len(pattern) <= _MOST_LETTERS and loops <= _MOST_LOOPS
  if short and pattern.count('(') <= _MOST_GROUPS and _SAFE.fullmatch(pattern):
    with contextlib.suppress(re.error):
      return re.compile(f'(?:{pattern})')
  return None


class Targets:
  """Which modules an adapter's config says that it adapts, as peft reads it.

  peft leaves the tensors of all others aside. Not known, and so taken for all,
  are the modules where target_modules are absent (then they depend on peft's
  version) or a regular expression that is not read here.
  """

  def __init__(self, file: str, settings: Mapping[str, Any]):
    self._file = file
    self._told = {
      key: self._texts(settings, key)
      for key in ('target_modules', 'exclude_modules', 'layers_pattern')
    }
    layers = settings.get('layers_to_transform')
    layers = [layers] if type(layers) is int else layers
    if not isinstance(layers, list | None) or not all(
      type(layer) is int for layer in layers or ()
    ):
      raise _unexpected(file, 'layers_to_transform', layers, 'a list of ints')
    self._layers = frozenset(layers or ())
    above = self._told['layers_pattern'] or ()
    above = [above] if isinstance(above, str) else sorted(above)
    name = '|'.join(above) or r'[^.]*'
    good = all(re.fullmatch(r'\w+', part) for part in above)
    if not good or len(name) > _MOST_LETTERS:
      raise _unexpected(file, 'layers_pattern', above, "a name like 'layers'")
    self._layer = re.compile(rf'(?:^|.*?\.)(?:{name})\.(\d+)\.')

  def _texts(self, settings, key: str) -> str | frozenset[str] | None:
    value = settings.get(key)
    if isinstance(value, list) and all(isinstance(x, str) for x in value):
      return frozenset(value)
    if not isinstance(value, str | None):
      raise _unexpected(self._file, key, value, 'a list of names')
    return value

  def check(self, path: str, name: str, module: str) -> None:
    """Raises InputError for a tensor's module that peft would leave aside."""
    excluded = self._means('exclude_modules', module)
    if excluded is None:
      raise errors.InputError(
        f'{self._file}: exclude_modules is a regular expression that is not '
        'read here, so that nobody knows whether it means '
        f'{printing.short(name)}. {ADVICE}'
      )
    if excluded:
      why = 'exclude_modules of its config names it'
    elif self._means('target_modules', module) is False:
      why = 'target_modules of its config does not name it'
    elif self._layers and not self._is_in_layers(module):
      why = 'it is not of the layers_to_transform of its config'
    else:
      return
    raise errors.InputError(
      f'{path}: there is the tensor {printing.short(name)}, but {why}, so '
      'peft would leave it out. Correct the config, or take the tensors '
      'away.'
    )

  def _is_in_layers(self, module: str) -> bool:
    found = self._layer.match(module)
    return bool(found) and int(found[1]) in self._layers

  def _means(self, key: str, module: str) -> bool | None:
    """Returns whether a setting means a module; None if it is not known."""
    told = self._told[key]
    if not told and key == 'exclude_modules':
      return False
    if told is None:
      return None
    if not isinstance(told, str):
      return any(module[start:] in told for start in _starts(module))
    if key == 'target_modules' and told.lower() == 'all-linear':
      return not module.endswith(('embed_tokens', 'wte', 'wpe', 'lm_head'))
    read = _compiled(told)
    return None if read is None else bool(read.fullmatch(module))


def _unexpected(file: str, key: str, value: Any, wanted: str):
  return errors.InputError(
    f'{file}: {key} is {printing.short(value)}, where {wanted} is expected; '
    'save the adapter again.'
  )
