"""Accelerators that are not here: devices to compile for, not to run on."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import os
import re
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing

GENERATIONS = ('v4', 'v5e', 'v5p', 'v6e', 'tpu7x')
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


# What XLA's deviceless compiler asks of an H100 (a GpuTargetConfigProto).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
"""


def devices(name: str, slices: int = 1) -> list:
  """Returns the devices of a topology, which jax compiles for.

  Args:
    name: generation and shape of TPUs, such as 'v5p:4x4x4', 'v5e:4x4', 'v6e:8x8';
      or 'h100', with the GPUs of a host behind it where there are several:
      'h100:8'.
    slices: how many of these, joined by the data centre's network.

  Raises:
    InputError: if there is no such topology, or the compiler is not installed.

  Example: mesh.make_mesh((-1, 8), devices=devices('v5p:2x2x4'))
  """
  if slices < 1:
    raise errors.InputError(f'slices: {slices} is not at least 1.')
  if gpus := re.fullmatch(r'h100(?::([1-8]))?', name):
    return _gpus(slices, int(gpus.group(1) or 1))
  generation, _, shape = name.partition(':')
  if generation not in GENERATIONS or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise errors.InputError(
      f'topology: {name!r} is none; give a generation '
      f'({", ".join(GENERATIONS)}) and a shape, such as v5e:4x4, v5p:4x4x4 or '
      'v6e:8x8; or h100, for several GPUs h100:8.'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise errors.InputError(
      'topology: the compiler for TPUs is not installed; '
      "`pip install '.[tpu]'` in its clone brings it (700 MB)."
    )
  # There is no TPU to ask for, and what others run on one is no hindrance.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', 'true')
  more: dict[str, Any] = {'num_slices': slices} if slices > 1 else {}
  if generation == 'v4':
    more['chip_config_name'] = 'megacore'  # both cores are one device
  return _described(name, platform='tpu', **more)


def _gpus(hosts: int, each: int) -> list:
  """Returns the H100s of some hosts."""
  if not any(
    importlib.util.find_spec(f'jax_cuda{version}_plugin')
    for version in (12, 13)
  ):
    raise errors.InputError(
      'topology: the compiler for GPUs is not installed; '
      "`pip install '.[cuda12]'` in its clone brings it (5.5 GB)."
    )
  # There is no GPU to try kernels on.
  flag, flags = '--xla_gpu_autotune_level=0', os.environ.get('XLA_FLAGS', '')
  if flag not in flags:
    os.environ['XLA_FLAGS'] = f'{flag} {flags}'.strip()
  return _described(
    'h100', platform='cuda', topology=f'{hosts}x1x{each}', target_config=_H100
  )


def _described(name: str, **more: Any) -> list:
  from jax.experimental import topologies

  try:
    return list(topologies.get_topology_desc(name, **more).devices)
  except Exception as error:  # of several types, and of jax's own
    raise errors.InputError(
      f'topology: the compiler knows no {name!r} ({printing.error(error)}); '
      'give another shape, such as v5e:4x4, v5p:4x4x4 or v6e:8x8.'
    ) from error


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
