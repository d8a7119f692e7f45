"""Numbers, windows and rotary positions out of a config.json."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.models import config as config_lib

LOCAL, GLOBAL = 'sliding_attention', 'full_attention'  # kinds of layers
Raw = Mapping[str, Any]  # config.json


def layer_types(local_layers: Sequence[bool]) -> list[str]:
  """Returns what a config.json calls layers that are local or not.

  >>> layer_types([True, False])
  ['sliding_attention', 'full_attention']
  """
  return [LOCAL if local else GLOBAL for local in local_layers]


def windows(
  file: str, raw: Raw, size: int, usual: Sequence[str]
) -> dict[str, int]:
  """Returns window and global_every of the kinds of layers.

  InputError where the kinds do not come round: ours say only 'all are local',
  and 'every so many-th is global'.

  Args:
    file: named in errors.
    raw: config.json; its layer_types, where they are there, are the kinds.
    size: of the window; 0 if there is none.
    usual: the kinds where layer_types are absent.
  """
  kinds = raw.get('layer_types')
  kinds = list(usual) if kinds is None else kinds
  if kinds == [GLOBAL] * len(usual):
    return {}
  for every in (0, *range(2, len(usual) + 1)):
    if kinds == [
      GLOBAL if every and (i + 1) % every == 0 else LOCAL
      for i in range(len(usual))
    ]:
      break
  else:
    raise errors.InputError(
      f'{file}: layer_types, or what max_window_layers makes of them, is '
      f'{printing.short(kinds)}; only {LOCAL!r} with {GLOBAL!r} at every so '
      f'many-th of {len(usual)} layers is supported. Take another model.'
    )
  if not size:
    raise errors.InputError(
      f'{file}: some of its layer_types are {LOCAL!r}, but there is no '
      'sliding_window; correct one of the two.'
    )
  return {'window': size, 'global_every': every}


def rope(file: str, raw: Raw) -> dict[str, Any]:
  """Returns base and scaling of `rope_parameters`, or of the older keys.

  The newer object, the older `rope_scaling` and keys beside them may each say
  all or some of it, but nothing in two ways.
  """
  told: dict[str, Any] = {}
  for key in ('rope_parameters', 'rope_scaling'):
    for name, value in _rope_object(file, raw, key).items():
      _agreed(file, told, key, name, value)
  for name in ('rope_theta', 'partial_rotary_factor'):
    _agreed(file, told, 'config.json', name, raw.get(name))
  kind = told.get('rope_type', 'default')
  _supported(file, kind, told.get('partial_rotary_factor', 1.0))
  scaling = None
  if kind == 'default':
    if told.get('factor', 1.0) != 1.0:
      raise errors.InputError(
        f'{file}: the rotary positions have the factor '
        f'{printing.short(told["factor"])}, but no rope_type that says how '
        "it scales; give rope_type 'linear' if it is meant so."
      )
  else:
    more: dict[str, Any] = {}
    if kind == 'llama3':
      key = 'original_max_position_embeddings'
      _agreed(file, told, 'config.json', key, raw.get(key))
      more = dict(
        low=float(number(file, told, 'low_freq_factor')),
        high=float(number(file, told, 'high_freq_factor')),
        original=integer(file, told, key, raw.get('max_position_embeddings')),
      )
    factor = float(number(file, told, 'factor'))
    scaling = config_lib.RopeScaling(kind, factor, **more)
  base = float(number(file, told, 'rope_theta', 10000.0))
  return {'rope_base': base, 'rope_scaling': scaling}


def _rope_object(file: str, raw: Raw, key: str) -> dict[str, Any]:
  """Returns the settings under a key, 'type' as the newer 'rope_type'."""
  part = raw.get(key)
  if part is None or part == {}:
    return {}
  if not isinstance(part, dict) or any(
    isinstance(value, dict) for value in part.values()
  ):
    raise errors.InputError(
      f'{file}: rope settings {printing.short(part)} under {key} are not an '
      'object of numbers; other rotary positions for some layers are '
      'supported in Gemma 3 alone. Take another model.'
    )
  part = {name: value for name, value in part.items() if value is not None}
  kind = part.pop('type', None)
  if kind is not None:
    _agreed(file, part, 'its type', 'rope_type', kind)
  part = {'rope_type': 'default', **part}
  _supported(file, part['rope_type'], part.get('partial_rotary_factor', 1.0))
  return part


def _supported(file: str, kind: Any, part: Any) -> None:
  if kind not in ('default', *config_lib.ROPE_SCALINGS) or part != 1.0:
    raise errors.InputError(
      f'{file}: rotary positions of type {printing.short(kind)} '
      f'(partial_rotary_factor {printing.short(part)}) are not supported; '
      "'default', 'linear' and 'llama3' on whole heads are. Take another "
      'model, or another scaling.'
    )


def _agreed(file: str, told: dict, key: str, name: str, value: Any) -> None:
  """Puts a value to those that are told; InputError where another is there."""
  if value is None:
    return
  if told.setdefault(name, value) != value:
    raise errors.InputError(
      f'{file}: {name} is {printing.short(told[name])} in one place and '
      f'{printing.short(value)} in another ({key}); rotary positions are '
      'told in rope_parameters, rope_scaling and keys beside them, and have '
      'to agree. Correct one of the two.'
    )


def number(file: str, raw: Raw, key: str, default: Any = None) -> int | float:
  """Returns a number of config.json, 0 or more; InputError if it is none."""
  value = raw.get(key)
  value = default if value is None else value
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise wrong(file, key, value, 'a number')
  if not 0 <= value < 1 << 63:  # NaN neither
    raise errors.InputError(
      f'{file}: {key}={printing.short(value)}, but it cannot be negative, '
      'infinite or so large; download the file again.'
    )
  return value


def integer(file: str, raw: Raw, key: str, default: Any = None) -> int:
  """Returns a size out of config.json, within what any model has."""
  value = number(file, raw, key, default)
  if not isinstance(value, int):
    raise wrong(file, key, value, 'a whole number')
  config_lib.check_bound(file, key, value)
  return value


def positive(file: str, raw: Raw, key: str) -> int | float:
  """Returns a number of config.json that is divided by."""
  value = number(file, raw, key)
  if not value or not math.isfinite(1.0 / value):
    raise wrong(file, key, value, 'a positive number')
  return value


def flag(file: str, raw: Raw, key: str) -> bool:
  """Returns whether a switch of config.json is on; absent is off."""
  value = raw.get(key)
  if not isinstance(value, bool | None):
    raise wrong(file, key, value, 'true or false')
  return bool(value)


def as_object(file: str, key: str, value: Any) -> dict[str, Any]:
  """Returns an object of config.json; InputError if it is none."""
  if not isinstance(value, dict):
    raise wrong(file, key, value, 'an object')
  return value


def wrong(file: str, key: str, value: Any, wanted: str) -> errors.InputError:
  """Returns the error for a value of config.json that is something else."""
  return errors.InputError(
    f'{file}: {key} is {printing.short(value)}, where {wanted} is expected; '
    'download the file again.'
  )
