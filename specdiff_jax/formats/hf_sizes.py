"""Numbers, windows and rotary positions out of a config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib

LOCAL, GLOBAL = 'sliding_attention', 'full_attention'  # kinds of layers
Raw = Mapping[str, Any]  # config.json


def windows(file: str, raw: Raw, usual: Sequence[str]) -> dict[str, int]:
  """Returns window and global_every of the kinds of layers.

  InputError where the kinds do not come round: ours say only 'all are local',
  and 'every so many-th is global'.
  """
  kinds = raw.get('layer_types', usual)
  if kinds == [GLOBAL] * len(usual):
    return {}
  size = number(file, raw, 'sliding_window')
  for every in (0, *range(2, len(usual) + 1)):
    if kinds == [
        GLOBAL if every and (i + 1) % every == 0 else LOCAL
        for i in range(len(usual))
    ]:
      return {'window': size, 'global_every': every}
  raise errors.InputError(
      f'{file}: layer_types, or what max_window_layers makes of them, is '
      f'{kinds}; only {LOCAL!r} with {GLOBAL!r} at every so many-th of '
      f'{len(usual)} layers is supported. Take another model.'
  )


def rope(file: str, raw: Raw) -> dict[str, Any]:
  """Returns base and scaling of `rope_parameters`, or of the older keys."""
  settings = {}
  for key in ('rope_parameters', 'rope_scaling'):  # the latter wins
    part = raw.get(key) or {}
    if not isinstance(part, dict):
      raise errors.InputError(
          f'{file}: rope settings {part!r} are not an object; download the '
          'file again.'
      )
    settings |= {'rope_type': part['type'], **part} if 'type' in part else part
  raw = {**raw, **settings}
  kind = settings.get('rope_type', 'default')
  part = raw.get('partial_rotary_factor', 1.0)
  if kind not in ('default', *config_lib.ROPE_SCALINGS) or part != 1.0:
    raise errors.InputError(
        f'{file}: rotary positions of type {kind!r} (partial_rotary_factor '
        f"{part}) are not supported; 'default', 'linear' and 'llama3' on whole "
        'heads are. Take another model, or another scaling.'
    )
  scaling = None
  if kind != 'default':
    more = {}
    if kind == 'llama3':
      most = raw.get('max_position_embeddings')
      more = dict(
          low=float(number(file, raw, 'low_freq_factor')),
          high=float(number(file, raw, 'high_freq_factor')),
          original=number(
              file, raw, 'original_max_position_embeddings', most
          ),
      )
    factor = float(number(file, raw, 'factor'))
    scaling = config_lib.RopeScaling(kind, factor, **more)
  base = float(number(file, raw, 'rope_theta', 10000.0))
  return {'rope_base': base, 'rope_scaling': scaling}


def number(file: str, raw: Raw, key: str, default: Any = None):
  """Returns a number of config.json; InputError where it is none."""
  value = raw.get(key)
  value = default if value is None else value
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.InputError(
        f'{file}: {key} is {value!r}, where a number is expected; download the '
        'file again.'
    )
  return value
