"""Accelerators that are not here: devices to compile for, not to run on."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import os
import re
from typing import Any

from specdiff_jax.core import errors

_NAME = re.compile(r'^[a-z0-9]+:\d+(x\d+)*$')
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device that is compiled for, by its data sheet.

  Attributes:
    memory: bytes that a program can have of it: of TPUs what the compiler says
      is there when a program exceeds it (jax 0.10.2).
    bandwidth: bytes of memory a second.
    flops: bf16 FLOP/s.
    links: bytes a second to other chips, over one axis of links.
    launch: seconds of a kernel that the host launches.
  """

  memory: float
  bandwidth: float
  flops: float
  links: float
  launch: float = 0.0


_CHIPS = {
  'TPU v4': Chip(30.75 * _GIB, 1.228e12, 275e12, 90e9),
  'TPU v5 lite': Chip(15.75 * _GIB, 0.819e12, 197e12, 90e9),
  'TPU v5': Chip(95.74 * _GIB, 2.765e12, 459e12, 180e9),
  'TPU v6 lite': Chip(31.25 * _GIB, 1.64e12, 918e12, 180e9),
  # One of the two devices that a chip is.
  'TPU7x': Chip(94.75 * _GIB, 3.69e12, 1153e12, 100e9),
  # As it was measured: 2 microseconds a kernel.
  'NVIDIA H100': Chip(79 * _GIB, 3.35e12, 989e12, 450e9, 2e-6),
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


def chip(devices: Sequence) -> Chip:
  """Returns what is known of devices; InputError if nothing is."""
  kind = devices[0].device_kind
  found = [name for name in _CHIPS if kind.startswith(name)]
  if not found:
    raise errors.InputError(
      f'topology: of the chip {kind!r} neither memory nor speed is known here; '
      f'take one of {", ".join(_CHIPS)}.'
    )
  return _CHIPS[max(found, key=len)]
