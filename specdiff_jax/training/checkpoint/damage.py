"""What is wrong with a checkpoint, found before Orbax reads it."""

import json
import math
import os
import re
from typing import Any

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.parallel import rules

CHECKSUMS = 'seal'  # the folder of a checkpoint's checksums
_STEP = re.compile('0|[1-9][0-9]*')  # names of folders that are checkpoints
_METADATA = {  # what Orbax needs of its file in a checkpoint, all optional
    'item_handlers': (dict, str), 'metrics': (dict,),
    'performance_metrics': (dict,), 'custom_metadata': (dict,),
    'init_timestamp_nsecs': (int,), 'commit_timestamp_nsecs': (int,),
}  # fmt: skip


def faults(directory: str) -> dict[int, str]:
  """Returns by step what keeps a checkpoint from being opened; '' if nothing.

  Values are not looked at: that is for the checksums, once they are read.
  """
  steps = [name for name in os.listdir(directory) if _STEP.fullmatch(name)]
  return {int(step): _fault(os.path.join(directory, step)) for step in steps}


def _fault(items: str) -> str:
  if not files.only_regular(items):
    return 'it holds a link, a pipe or a device'
  if not _orbax_reads(os.path.join(items, '_CHECKPOINT_METADATA')):
    return 'its _CHECKPOINT_METADATA is damaged'
  try:
    found = files.read_json(os.path.join(items, 'metrics', 'metrics'))
    sums = files.read_json(os.path.join(items, CHECKSUMS, 'metadata'))
  except errors.InputError:
    return 'its metrics or its checksums cannot be read'
  tau = found.get('tau')
  if (
    not isinstance(tau, (int, float))
    or isinstance(tau, bool)
    or not math.isfinite(tau)
  ):
    return 'its metrics are damaged'
  # Those of older versions have no tau beside their checksums.
  return '' if sums.get('tau', tau) == tau else 'its metrics were changed'


def _orbax_reads(path: str) -> bool:
  """Returns whether Orbax can open a folder with such a file.

  One that is absent or no JSON it skips; others have to be of its types.
  """
  if not os.path.exists(path):
    return True
  try:
    with files.open_file(path) as file:
      about = files.parse_json(file.read(files.MOST_JSON))
  except (json.JSONDecodeError, UnicodeDecodeError):
    return True
  except ValueError:
    return False
  return isinstance(about, dict) and all(
    isinstance(about.get(key), (*kinds, type(None)))
    for key, kinds in _METADATA.items()
  )


def check_shapes(saved: Any, template: Any) -> None:
  """Raises ValueError where leaves are missing or of another kind."""
  there, here = _kinds(saved), _kinds(template)
  other = [
    f'{name} is {there.get(name, "missing")} there, '
    f'{here.get(name, "missing")} here'
    for name in here | there
    if here.get(name) != there.get(name)
  ]
  if other:
    raise ValueError('; '.join(other))


def _kinds(tree: Any) -> dict[str, str]:
  """Returns dtype and shape of each leaf by its name."""
  return {
    name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    for name, leaf in rules.named(tree).items()
  }
