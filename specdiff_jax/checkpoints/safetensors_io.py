"""Safetensors files: read with every doubt checked, written atomically."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import os
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import stored
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks
from specdiff_jax.core import printing

DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8,
    'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8,
    'BOOL': np.bool_,
}  # fmt: skip
_NUMPY = {kind: np.dtype(dtype) for kind, dtype in DTYPES.items()}
_KINDS = {dtype: kind for kind, dtype in _NUMPY.items()}
# What one file's header may hold: the format's own bound (of drafters, 9 million
# prompts that they were trained on); the largest models have thousands of tensors
# in each.
_MOST_HEADER, _MOST_TENSORS, _MOST_FACTS = 10**8, 1 << 16, 1 << 16


def save(path: str, params: dict[str, Any], metadata: dict[str, str]) -> None:
  """Writes a nested dict of arrays; the file appears whole or not at all.

  Names are joined by '.'. A failed write (a full disk) raises InputError and
  leaves what was there before.
  """
  flat = {
    name: np.ascontiguousarray(np.asarray(x))
    for name, x in params_lib.flatten(params)
  }
  folder = os.path.dirname(os.path.abspath(path))
  try:
    with locks.workspace(folder, '.save-') as temporary:
      draft = os.path.join(temporary, 'tensors')
      safetensors_numpy.save_file(flat, draft, metadata=metadata)
      os.chmod(draft, 0o644)  # the library makes it private
      files.put(draft, path)
  except (OSError, safetensors.SafetensorError) as e:
    raise errors.InputError(
      f'{path}: the weights cannot be written ({e}). Nothing that was there '
      'is lost; make room or choose another folder, then run again.'
    ) from e


def load(path: str) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns (nested params, metadata) of a file written by `save`."""
  with opened(path) as file:
    flat = {name: read(file, path, name) for name in file.keys()}
    return params_lib.nest(flat), dict(file.metadata() or {})


def tensors(path: str) -> dict[str, stored.InFile]:
  """Returns the tensors of a file by name; only its header is read."""
  with opened(path):  # which checks the header, and every offset in it
    pass
  with files.open_file(path) as file:
    size = int.from_bytes(file.read(8), 'little')
    table = json.loads(file.read(size))
  found = {}
  for name, entry in table.items():
    if name == '__metadata__':
      continue
    first, last = entry['data_offsets']
    kind = entry['dtype']
    found[name] = stored.InFile(
      path=path,
      name=name,
      kind=kind,
      dtype=_NUMPY.get(kind),
      shape=tuple(entry['shape']),
      offset=8 + size + first,
      nbytes=last - first,
    )
  return found


def metadata(path: str) -> dict[str, str]:
  """Returns the texts that a file says of itself."""
  with opened(path) as file:
    return dict(file.metadata() or {})


def write(
  path: str,
  entries: Mapping[str, tuple[stored.Tensor, Any]],
  facts: Mapping[str, str],
) -> Iterator[int]:
  """Writes name -> (tensor, dtype) into a new file, and yields bytes written.

  Unlike `save` it holds no more than a block of a tensor, and is not atomic:
  the caller writes into a folder that gets its name in the end.
  """
  order = sorted(
    entries, key=lambda n: (-np.dtype(entries[n][1]).itemsize, n)
  )  # the wide ones first, so that every value is aligned
  table: dict[str, Any] = {'__metadata__': dict(facts)}
  at = 0
  for name in order:
    tensor, dtype = entries[name]
    end = at + math.prod(tensor.shape) * np.dtype(dtype).itemsize
    table[name] = {
      'dtype': _KINDS[np.dtype(dtype)],
      'shape': list(tensor.shape),
      'data_offsets': [at, end],
    }
    at = end
  header = json.dumps(table, separators=(',', ':')).encode()
  header += b' ' * (-len(header) % 8)
  with open(path, 'xb') as file:
    file.write(len(header).to_bytes(8, 'little') + header)
    for name in order:
      tensor, dtype = entries[name]
      for _, block in tensor.blocks():
        block = _cast(name, block, dtype)
        file.write(block.reshape(-1).view(np.uint8).data)
        yield block.nbytes
    file.flush()
    os.fsync(file.fileno())


def _cast(name: str, block: np.ndarray, dtype: Any) -> np.ndarray:
  """Returns a block in a dtype; InputError where that has no such values."""
  with np.errstate(over='ignore'):
    cast = np.ascontiguousarray(block.astype(dtype, copy=False))
  if cast.dtype == np.float16 and (np.isinf(cast) & ~np.isinf(block)).any():
    raise errors.InputError(
      f'{name} has values beyond {np.finfo(np.float16).max}, the largest of '
      'float16; take bfloat16 or float32.'
    )
  return cast


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
  """Opens a file, whose header is checked against the file's size."""
  if not os.path.lexists(path):
    raise errors.InputError(
      f'{path}: there is no such safetensors file; correct the path, or '
      'download the file again.'
    )
  _check_size(path)
  try:
    file = safetensors.safe_open(path, framework='np')
  except (OSError, safetensors.SafetensorError) as e:
    raise _damaged(path, str(e)) from e
  with file:
    yield file


def _check_size(path: str) -> None:
  """Raises InputError for a header that no model has, before it is parsed."""
  with files.open_file(path) as file:
    size = int.from_bytes(file.read(8), 'little')
    if size > _MOST_HEADER:
      raise _damaged(path, f'its header would have {size} bytes')
    header = file.read(size)
  # Each tensor has one such key; texts of the metadata hardly do.
  count = header.count(b'"data_offsets"')
  if count > _MOST_TENSORS:
    raise _damaged(path, f'its header lists {count} tensors')
  # Ten quotes of each are of a tensor's name, keys and kind, and four of each
  # text of the metadata.
  facts = (header.count(b'"') - header.count(b'\\"') - 10 * count) // 4
  if facts > _MOST_FACTS:
    raise _damaged(path, f'its header lists {facts} texts of metadata')


def _damaged(path: str, why: str) -> errors.InputError:
  return errors.InputError(
    f'{path}: not a complete safetensors file ({why[:200]}). It is truncated '
    'or damaged; download it or write it again.'
  )


def read(file: Any, path: str, name: str) -> np.ndarray:
  """Returns one tensor of an opened file."""
  try:
    return file.get_tensor(name)
  except (KeyError, TypeError, safetensors.SafetensorError) as e:
    kind = file.get_slice(name).get_dtype() if name in file.keys() else 'absent'
    raise errors.InputError(
      f'{path}: tensor {printing.short(name)} (stored as {kind}) cannot be '
      f'read ({e}); take the weights in F32, BF16 or F16.'
    ) from e
