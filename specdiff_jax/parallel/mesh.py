"""The device mesh."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils

from specdiff_jax.core import errors

AXES = ('data', 'model')
SLICED = ('replica', *AXES)  # of several slices, the first over the slices


def make_mesh(
  shape: Sequence[int] | Mapping[str, int],
  devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
  """Returns a mesh of the first devices, all or a fraction of them.

  Args:
    shape: Size of each axis; one may be -1 and takes what is left. A mapping
      is from names of axes to sizes; else they are (data, model) of two sizes
      and (replica, data, model) of three. Rows of a batch go over replica and
      data; parameters are whole in every replica.
    devices: Devices to take, all of them; by default those that are here. Of
      several slices the first axis goes over the slices, too.

  Raises:
    InputError: If the sizes do not fit the devices that there are.

  Example:
    mesh = make_mesh((-1, 2))  # all devices, tensors split in two
  """
  if isinstance(shape, Mapping):
    axes, shape = tuple(shape.keys()), tuple(shape.values())
  else:
    shape = tuple(shape)
    axes = SLICED if len(shape) == len(SLICED) else AXES
  several = devices is not None or jax.process_count() > 1
  devices = jax.devices() if devices is None else list(devices)
  sizes = _sizes(shape, axes, len(devices))
  used = math.prod(sizes)
  if several and used != len(devices):
    raise errors.InputError(
      f'mesh: {_show(axes, sizes)} uses {used} of {len(devices)} devices, '
      'but with several processes every device must be in the mesh. Give '
      'sizes whose product is the number of devices, or -1 for one axis.'
    )
  types = (jax.sharding.AxisType.Auto,) * len(axes)
  placed = _placed(sizes, axes, devices[:used])
  return jax.sharding.Mesh(placed, axes, axis_types=types)


def _placed(sizes, axes, devices):
  """Returns an array of devices in which neighbours are near each other."""
  # Only devices of several slices have an index that is not None.
  slices = len({getattr(d, 'slice_index', None) for d in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  if sizes[0] % slices:
    raise errors.InputError(
      f'mesh: {_show(axes, sizes)} on {slices} slices, over which the axis '
      f'{axes[0]!r} goes; make it a multiple of {slices}.'
    )
  within = (sizes[0] // slices, *sizes[1:])
  across = (slices,) + (1,) * (len(sizes) - 1)
  return mesh_utils.create_hybrid_device_mesh(
    within, across, devices, allow_split_physical_axes=True
  )


def _sizes(
  shape: tuple[int, ...], axes: tuple[str, ...], count: int
) -> tuple[int, ...]:
  """Returns `shape` with its -1 filled in, checked against the devices."""
  shown = _show(axes, shape)
  if len(shape) != len(axes):
    raise errors.InputError(
      f'mesh: {len(shape)} sizes {shape} for the axes {axes}. Give one '
      'size for each axis, and each axis a name of its own.'
    )
  if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
    raise errors.InputError(
      f'mesh: {shown} is not a shape. Every size is at least 1; one of '
      'them may be -1 to take the devices that are left.'
    )
  fixed = math.prod(size for size in shape if size != -1)
  if count % fixed:
    raise errors.InputError(
      f'mesh: {shown} does not fit {count} device(s), which ask for a '
      f'divisor of {count} in all, not {fixed}. Change the mesh, or start '
      'with another number of devices '
      '(JAX_NUM_CPU_DEVICES=8 makes eight out of a CPU).'
    )
  return tuple(count // fixed if size == -1 else size for size in shape)


def _show(axes: Sequence[str], shape: Sequence[int]) -> str:
  return ', '.join(f'{a}={s}' for a, s in zip(axes, shape, strict=False))
