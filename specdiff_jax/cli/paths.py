"""Paths of command lines and recipes: `~` is expanded, addresses are refused.

The one place that does, for every program: whatever opens a path later may take
it as it is.
"""

from collections.abc import Mapping
import os
import re
from typing import Any

from absl import flags
import ml_collections

from specdiff_jax.core import errors

# Flags and config fields that are paths, or may be.
FLAGS = (
    'workdir', 'out', 'prompts', 'from', 'to', 'refresh', 'adapter', 'plot',
)  # fmt: skip
FIELDS = (
    'verifier', 'adapter', 'drafter', 'drafters', 'masked_lm.tokenizer', 'data',
    'prompts', 'eval_prompts', 'start_from', 'cache_dir',
)  # fmt: skip
_ADDRESS = re.compile('[a-zA-Z][a-zA-Z0-9+.-]+:/')


def expand(path: str, where: str) -> str:
  """Returns a path with `~` or `~user` at its beginning expanded.

  Raises InputError for an address, such as gs://bucket, and for a path that no
  file can have.

  Example: expand('~/runs', '--workdir')
  """
  if _ADDRESS.match(path):
    raise errors.InputError(
      f'{where} is {path!r}, but files are read and written on disks that '
      'are mounted here, not at addresses: mount it (as with gcsfuse), or '
      'give a directory here and copy from or to it.'
    )
  if '\0' in path:
    raise errors.InputError(f'{where} is {path!r}, which holds a zero byte.')
  return os.path.expanduser(path)


def in_flags(options: flags.FlagValues) -> None:
  """Expands the paths among a subcommand's own flags."""
  for name in FLAGS:
    if name in options and isinstance(options[name].value, str):
      options[name].value = expand(options[name].value, f'--{name}')


def in_config(config: ml_collections.ConfigDict) -> None:
  """Expands the paths among the fields of a config."""
  for field in FIELDS:
    *outer, last = field.split('.')
    node = config
    for name in outer:
      node = node[name]
    node[last] = _expanded(node[last], f'config.{field}')


def _expanded(value: Any, where: str) -> Any:
  """Returns a field's value with its paths expanded; others as they are."""
  if isinstance(value, str):  # config.data may be several, with commas between
    return ','.join(expand(part, where) for part in value.split(','))
  if isinstance(value, tuple):
    return tuple(_expanded(part, where) for part in value)
  if isinstance(value, Mapping | ml_collections.ConfigDict):
    for name in value:
      value[name] = _expanded(value[name], f'{where}.{name}')
  return value
