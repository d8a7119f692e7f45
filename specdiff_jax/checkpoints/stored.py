"""Tensors that stay in their file until they are wanted, in blocks of rows.

A model larger than the host's memory can be read so, cast, split over devices
or written elsewhere: nobody ever holds more of a tensor than a block of it and
what is made of it. Whatever can be read in blocks of rows is a `Tensor`: what
lies in a file, an array, what is computed whole or row by row.
"""

from collections.abc import Callable, Iterator
import dataclasses
import math
import os
from typing import Any, Protocol

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files

BLOCK = 1 << 24  # bytes that are read at once


class Tensor(Protocol):
  """What can be read in blocks of rows; `dtype` is that of the blocks."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> Any: ...

  def blocks(
    self, first: int = 0, last: int | None = None
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of the first row, rows [n, ...]) of rows first..last."""
    ...

  def sample(self, stride: int) -> np.ndarray:
    """Returns every `stride`-th value of the flattened tensor."""
    ...


@dataclasses.dataclass(frozen=True)
class InFile:
  """A tensor of a safetensors file; reading raises InputError if it is cut."""

  path: str
  name: str
  kind: str  # as the file says it: 'BF16'
  dtype: Any  # None: a kind that numpy has no dtype for
  shape: tuple[int, ...]
  offset: int  # bytes from the start of the file
  nbytes: int

  def blocks(self, first=0, last=None):
    rows = self.shape[0] if self.shape else 1
    width = self.nbytes // max(1, rows)
    last = rows if last is None else last
    step = max(1, BLOCK // max(1, width))
    with files.open_file(self.path) as file:
      for row in range(first, last, step):
        count = min(step, last - row)
        raw = self._read(file, row * width, count * width)
        block = np.frombuffer(raw, self.dtype)
        yield row, block.reshape((count, *self.shape[1:]) if self.shape else ())

  def sample(self, stride):
    if self.nbytes <= BLOCK:
      return read(self).reshape(-1)[::stride]
    size = self.dtype.itemsize
    starts = range(0, self.nbytes, stride * size)
    with files.open_file(self.path) as file:
      raw = b''.join(self._read(file, start, size) for start in starts)
    return np.frombuffer(raw, self.dtype)

  def _read(self, file, start: int, size: int) -> bytes:
    try:
      raw = os.pread(file.fileno(), size, self.offset + start)
    except OSError as e:
      raise errors.InputError(
        f'{self.path}: tensor {self.name!r} cannot be read ({e.strerror}); '
        'check the disk, or download the file again.'
      ) from e
    if len(raw) != size:
      raise errors.InputError(
        f'{self.path}: the file ends within tensor {self.name!r}. It is '
        'truncated or damaged; download it or write it again.'
      )
    return raw


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
  """An array in the same form."""

  array: np.ndarray

  @property
  def shape(self):
    return self.array.shape

  @property
  def dtype(self):
    return self.array.dtype

  def blocks(self, first=0, last=None):
    yield first, self.array[first:last] if self.array.shape else self.array

  def sample(self, stride):
    return self.array.reshape(-1)[::stride]


@dataclasses.dataclass(frozen=True, eq=False)
class Deferred:
  """A tensor that is computed when it is wanted, and only whole."""

  shape: tuple[int, ...]
  dtype: np.dtype
  load: Callable[[], np.ndarray]

  def blocks(self, first=0, last=None):
    yield first, self.load()[first:last]

  def sample(self, stride):
    return self.load().reshape(-1)[::stride]


@dataclasses.dataclass(frozen=True, eq=False)
class Derived:
  """A float32 tensor that is a function of another's rows.

  Example: Derived(norm, lambda row, rows: rows - 1)
  """

  base: Tensor
  function: Callable[[int, np.ndarray], np.ndarray]  # (first row, rows)
  dtype = np.dtype(np.float32)

  @property
  def shape(self):
    return self.base.shape

  @property
  def kept_dtype(self):
    return self.base.dtype

  def blocks(self, first=0, last=None):
    for row, block in self.base.blocks(first, last):
      rows = self.function(row, block.astype(np.float32))
      yield row, np.asarray(rows, np.float32)

  def sample(self, stride):
    tapped = Tapped(self, stride)
    for _ in tapped.blocks():
      pass
    return tapped.sample(stride)


class Tapped:
  """A tensor that takes its sample as its blocks go by, to be read only once.

  Example: tapped = Tapped(tensor, 7); read(tapped); tapped.sample(7)
  """

  def __init__(self, base: Tensor, stride: int):
    self.base, self.stride = base, stride
    self.shape, self.dtype = base.shape, base.dtype
    self._parts, self._rows = [], 0

  def blocks(self, first=0, last=None):
    width = math.prod(self.shape[1:])
    for row, block in self.base.blocks(first, last):
      if row == self._rows:
        start = -(row * width) % self.stride
        self._parts.append(block.reshape(-1)[start :: self.stride].copy())
        self._rows += len(block)
      yield row, block

  def sample(self, stride):
    if stride != self.stride or self._rows != self.shape[0]:
      return self.base.sample(stride)  # not all of it went by
    return np.concatenate(self._parts or [np.zeros(0, self.dtype)])


def of(tensor: Any) -> Tensor:
  """Returns an array in the form of a tensor, and a tensor as it is."""
  return tensor if hasattr(tensor, 'blocks') else InMemory(np.asarray(tensor))


def transposed(tensor: Tensor) -> Deferred:
  """Returns a matrix that its file holds as [in, out], as [out, in]."""
  shape = tuple(tensor.shape[::-1])
  return Deferred(shape, tensor.dtype, lambda: read(tensor).T)


def held(tensor: Tensor) -> Tensor:
  """Returns what can be read in blocks as it is, and anything else as array."""
  return InMemory(tensor.load()) if isinstance(tensor, Deferred) else tensor


def equal(one: Tensor, other: Tensor) -> bool:
  """Returns whether two tensors hold the same numbers, block by block."""
  if one.shape != other.shape or one.dtype is None or other.dtype is None:
    return False
  if not one.shape:
    return np.array_equal(read(one), read(other), equal_nan=True)
  step = max(1, BLOCK // (4 * max(1, math.prod(one.shape[1:]))))
  for first in range(0, one.shape[0], step):
    last = min(first + step, one.shape[0])
    rows = (
      [block.astype(np.float64) for _, block in tensor.blocks(first, last)]
      for tensor in (one, other)
    )
    if not np.array_equal(*map(np.concatenate, rows), equal_nan=True):
      return False
  return True


def read(tensor: Tensor, dtype: Any = None) -> np.ndarray:
  """Returns the whole tensor as a C-contiguous array, cast."""
  if isinstance(tensor, InMemory):
    return np.ascontiguousarray(tensor.array, dtype)
  out = np.empty(tensor.shape, dtype or tensor.dtype)
  for row, block in tensor.blocks():
    if out.shape:
      out[row : row + len(block)] = block
    else:
      out[...] = block
  return out
