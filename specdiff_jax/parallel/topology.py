"""Accelerators that are not here: devices to compile for, not to run on."""

from collections.abc import Sequence
import importlib.util
import os
import re
from typing import Any

from specdiff_jax.core import errors

_NAME = re.compile(r'^[a-z0-9]+:\d+(x\d+)*$')
_GIB = 2**30

# What a program can have of each device's memory, in bytes: what the compiler
# says is there when a program exceeds it (jax 0.10.2).
_MEMORY = {
  'TPU v4': 30.75 * _GIB,
  'TPU v5 lite': 15.75 * _GIB,
  'TPU v5': 95.74 * _GIB,
  'TPU v6 lite': 31.25 * _GIB,
  'TPU7x': 94.75 * _GIB,
}


def devices(name: str, slices: int = 1) -> list:
  """Returns the devices of a TPU topology, which jax compiles for.

  Args:
    name: generation and shape, such as 'v5p:4x4x4', 'v5e:4x4', 'v6e:8x8'.
    slices: how many of these, joined by the data centre's network.

  Raises:
    InputError: if there is no such topology, or the compiler is not installed.

  Example: mesh.make_mesh((-1, 8), devices=devices('v5p:2x2x4'))
  """
  if not _NAME.match(name):
    raise errors.InputError(
      f'topology: {name!r} is none; give a generation and a shape, such as '
      'v5e:4x4, v5p:4x4x4 or v6e:8x8.'
    )
  if slices < 1:
    raise errors.InputError(f'slices: {slices} is not at least 1.')
  if importlib.util.find_spec('libtpu') is None:
    raise errors.InputError(
      'topology: the compiler for TPUs is not installed; '
      "`pip install 'specdiff_jax[tpu]'` brings it (700 MB)."
    )
  # There is no TPU to ask for, and what others run on one is no hindrance.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', 'true')
  from jax.experimental import topologies

  more: dict[str, Any] = {'num_slices': slices} if slices > 1 else {}
  if name.startswith('v4:'):
    more['chip_config_name'] = 'megacore'  # both cores are one device
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **more
    )
  except Exception as error:  # of several types, and of jax's own
    text = ' '.join(str(error).split())
    raise errors.InputError(
      f'topology: the compiler knows no {name!r} ({text[:200]}); give '
      'another shape, such as v5e:4x4, v5p:4x4x4 or v6e:8x8.'
    ) from error
  return list(found.devices)


def memory(devices: Sequence) -> int:
  """Returns the bytes that a program may take of each; 0 if not known."""
  return int(_MEMORY.get(devices[0].device_kind, 0))
