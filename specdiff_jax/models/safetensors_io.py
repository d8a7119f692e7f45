"""Safetensors files: read with every doubt checked, written atomically."""

import contextlib
import os
import tempfile
from typing import Any, Iterator

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from specdiff_jax.core import errors
from specdiff_jax.models import params as params_lib


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
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.save-', dir=folder) as temporary:
      draft = os.path.join(temporary, 'tensors')
      safetensors_numpy.save_file(flat, draft, metadata=metadata)
      os.chmod(draft, 0o644)  # the library makes it private
      _sync(draft)
      os.replace(draft, path)
    _sync(folder)
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


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
  """Opens a file, whose header is checked against the file's size."""
  if not os.path.isfile(path):
    raise errors.InputError(
        f'{path}: there is no such safetensors file; correct the path, or '
        'download the file again.'
    )
  try:
    file = safetensors.safe_open(path, framework='np')
  except (OSError, safetensors.SafetensorError) as e:
    raise errors.InputError(
        f'{path}: not a complete safetensors file ({e}). It is truncated or '
        'damaged; download it or write it again.'
    ) from e
  with file:
    yield file


def read(file: Any, path: str, name: str) -> np.ndarray:
  """Returns one tensor of an opened file."""
  try:
    return file.get_tensor(name)
  except (KeyError, TypeError, safetensors.SafetensorError) as e:
    kind = file.get_slice(name).get_dtype() if name in file.keys() else 'absent'
    raise errors.InputError(
        f'{path}: tensor {name!r} (stored as {kind}) cannot be read ({e}); '
        'take the weights in F32, BF16 or F16.'
    ) from e


def _sync(path: str) -> None:
  """Has the operating system write a file or folder to its disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
