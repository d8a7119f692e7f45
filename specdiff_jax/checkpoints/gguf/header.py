"""The header of a GGUF file (llama.cpp): metadata and the table of tensors.

The header is parsed here, in one pass and with every size checked against
the file before anything is allocated: the reader of the `gguf` package takes
four seconds over the vocabulary of a small model, and follows a header that
lies. The block formats themselves are that package's business.
"""

import dataclasses
import math
import mmap
import os
import struct
from typing import Any

import gguf
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

_SCALARS = {
    0: '<B', 1: '<b', 2: '<H', 3: '<h', 4: '<I', 5: '<i', 6: '<f', 7: '<?',
    10: '<Q', 11: '<q', 12: '<d',
}  # fmt: skip
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
# What a header may hold at the most, some times what the largest known do: half
# a million tokens and as many merges.
_MOST_BYTES, _MOST_VALUES, _MOST_ENTRIES = 1 << 27, 1 << 21, 1 << 16


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where a tensor lies in the file, and how it is stored."""

  shape: tuple[int, ...]  # numpy order: the file stores it reversed
  kind: gguf.GGMLQuantizationType
  offset: int  # bytes from the start of the file
  nbytes: int


@dataclasses.dataclass(frozen=True)
class Header:
  """Metadata and the table of tensors of one GGUF file."""

  path: str
  fields: dict[str, Any]
  tensors: dict[str, TensorInfo]


class _Cursor:
  """Reads little-endian values; never past the end of the file."""

  def __init__(self, path: str, data):
    self.path, self.data, self.at = path, data, 0
    self.values = 0  # of arrays, read so far

  def fail(self, what: str) -> errors.InputError:
    return errors.InputError(
      f'{self.path}: not a complete GGUF file: {what} (byte {self.at} of '
      f'{len(self.data)}). The file is truncated or damaged; download it '
      'again.'
    )

  def take(self, size: int) -> bytes:
    if size > len(self.data) - self.at:
      raise self.fail(f'its header promises {size} more bytes')
    if self.at + size > _MOST_BYTES:
      raise self.fail(f'its header would have more than {_MOST_BYTES} bytes')
    self.at += size
    return self.data[self.at - size : self.at]

  def scalar(self, kind: int) -> Any:
    code = _SCALARS[kind]
    value = struct.unpack(code, self.take(struct.calcsize(code)))[0]
    if kind == _FLOAT32:  # 1e-5 rather than 9.999999747378752e-06
      value = float(str(np.float32(value)))
    return value

  def text(self, exact: bool = True) -> str:
    """Reads a string; `exact`: it has to be UTF-8."""
    raw = self.take(self.scalar(10))
    try:
      return raw.decode('utf-8', 'strict' if exact else 'replace')
    except UnicodeDecodeError as e:
      raise self.fail('a string in its header is not UTF-8') from e

  def texts(self, count: int, exact: bool) -> list[str]:
    """Reads strings as `text` does; there are a million of them."""
    data, at = self.data, self.at
    end = min(len(data), _MOST_BYTES)
    size, how = struct.Struct('<Q'), 'strict' if exact else 'replace'
    found = []
    try:
      for _ in range(count):
        start = at + 8
        at = start + size.unpack_from(data, at)[0]
        if at > end:
          raise self.fail('a string in its header does not end')
        found.append(data[start:at].decode('utf-8', how))
    except UnicodeDecodeError as e:
      raise self.fail('a string in its header is not UTF-8') from e
    except struct.error as e:
      raise self.fail(f'its header promises an array of {count} items') from e
    self.at = at
    return found

  def value(self, kind: int, exact: bool):
    """Reads one metadata value of the given type code."""
    if kind in _SCALARS:
      return self.scalar(kind)
    if kind == _STRING:
      return self.text(exact)
    if kind != _ARRAY:
      raise self.fail(f'its header holds a value of unknown type {kind}')
    kind, count = self.scalar(4), self.scalar(10)
    self.values += count
    if self.values > _MOST_VALUES:
      raise self.fail(f'its header promises an array of {count} items')
    if kind in _SCALARS:
      code = _SCALARS[kind]
      raw = self.take(count * struct.calcsize(code))
      return np.frombuffer(raw, code).tolist()
    if kind == _STRING:
      return self.texts(count, exact)
    # No model has arrays of arrays, and millions of empty ones take seconds.
    raise self.fail(f'its header holds an array of unknown type {kind}')


def read_header(path: str) -> Header:
  """Reads metadata and the tensor table; InputError on a damaged file."""
  with open_mapped(path) as data:
    cursor = _Cursor(path, data)
    if data[:4] != b'GGUF':
      raise cursor.fail('it does not begin with the letters GGUF')
    cursor.take(4)
    version = cursor.scalar(4)
    if version not in (2, 3):
      raise errors.InputError(
        f'{path}: GGUF version {version} is not known (2 and 3 are); convert '
        'the model again with a current llama.cpp, little-endian.'
      )
    tensor_count, field_count = cursor.scalar(10), cursor.scalar(10)
    if max(tensor_count, field_count) > _MOST_ENTRIES:
      raise cursor.fail(
        f'its header promises {field_count} keys and {tensor_count} tensors'
      )
    fields = {}
    for _ in range(field_count):
      key = cursor.text(exact=False)
      if key in fields:
        raise cursor.fail(f'the key {printing.short(key)} is there twice')
      fields[key] = cursor.value(cursor.scalar(4), _is_needed(key))
    table = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = fields.get('general.alignment', 32)
    if type(alignment) is not int or not 1 <= alignment <= _MOST_BYTES:
      raise cursor.fail(f'general.alignment is {printing.short(alignment)}')
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in table:
      if name in tensors:
        raise cursor.fail(f'tensor {printing.short(name)} is listed twice')
      tensors[name] = _place(cursor, name, shape, kind, start + offset)
    return Header(path, fields, tensors)


def _is_needed(key: str) -> bool:
  """Returns whether texts under a key have to be right; others only tell."""
  return key in ('general.architecture', 'tokenizer.chat_template') or (
    key.startswith('tokenizer.ggml.')
  )


def open_mapped(path: str) -> mmap.mmap:
  """Maps a file read-only; InputError where it is missing or empty."""
  try:
    with files.open_file(path) as file:
      if not os.fstat(file.fileno()).st_size:
        raise errors.InputError(
          f'{path}: the file is empty; download it again.'
        )
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except OSError as e:
    raise errors.InputError(
      f'{path}: the weights cannot be read ({e.strerror}); correct the path '
      'of the verifier.'
    ) from e


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
  name = cursor.text()
  rank = cursor.scalar(4)
  if rank > 4:
    raise cursor.fail(f'tensor {printing.short(name)} claims {rank} dimensions')
  shape = tuple(cursor.scalar(10) for _ in range(rank))
  return name, shape[::-1], cursor.scalar(4), cursor.scalar(10)


def _place(cursor, name, shape, kind, offset) -> TensorInfo:
  """Checks that a tensor's bytes lie within the file."""
  try:
    kind = gguf.GGMLQuantizationType(kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
  except (ValueError, KeyError) as e:
    raise errors.InputError(
      f'{cursor.path}: tensor {printing.short(name)} is stored in format '
      f'{kind}, which the installed gguf package does not know; upgrade '
      'gguf, or convert the model to another format.'
    ) from e
  count = math.prod(shape)
  if count % block or (shape and shape[-1] % block):
    raise cursor.fail(
      f'tensor {printing.short(name)} of shape {shape} does not fill blocks '
      f'of {block}'
    )
  nbytes = count // block * size
  if offset + nbytes > len(cursor.data):
    raise cursor.fail(
      f'tensor {printing.short(name)} needs bytes {offset} to {offset + nbytes}'
    )
  return TensorInfo(shape, kind, offset, nbytes)
