"""The verifier's readings on disk, which later runs need not compute again.

A trajectory has a file of its own, named by its tokens, in a folder named by all
that decides its numbers. It is a cache: what cannot be written is not, and what
cannot be read is computed again.
"""

from collections.abc import Callable
import contextlib
import hashlib
import io
import os
from typing import Any
import zipfile
import zlib

import jax
import ml_dtypes
import numpy as np

from specdiff_jax.core import files
from specdiff_jax.core import training_types

# What numpy and zipfile make of damaged files.
_UNREADABLE = (
  OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Store:
  """Readings of one verifier, in one folder."""

  def __init__(self, folder: str, key: tuple, say: Callable[[str], None]):
    """Opens a store.

    Args:
      folder: of all stores; '' keeps nothing.
      key: all that decides the numbers, beside a trajectory's tokens.
      say: is told once that nothing can be written.
    """
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    self._folder = os.path.join(folder, name) if folder else ''
    self._say = say

  @property
  def keeps(self) -> bool:
    return bool(self._folder)

  def get(self, tokens: np.ndarray) -> dict[str, Any] | None:
    """Returns the readings of a trajectory's tokens [T], None if none are."""
    if not self._folder:
      return None
    try:
      with open(self._path(tokens), 'rb') as file:
        found = _read(file.read())
      sizes = {len(leaf) for leaf in jax.tree.leaves(found)}
      return found if sizes == {len(tokens)} else None
    except _UNREADABLE:
      return None

  def put(self, tokens: np.ndarray, found: dict[str, Any]) -> None:
    """Writes the readings of a trajectory's tokens [T], without padding."""
    if not self._folder:
      return
    try:
      os.makedirs(self._folder, exist_ok=True)
      with files.whole(self._path(tokens)) as file:
        file.write(_written(found))
    except OSError as error:
      self._say(
        f'{self._folder}: features cannot be kept there '
        f'({error.strerror or error}); they are computed in every run.'
      )
      with contextlib.suppress(OSError):
        os.unlink(self._path(tokens))
      self._folder = ''

  def _path(self, tokens: np.ndarray) -> str:
    ids = np.ascontiguousarray(tokens, np.int32).tobytes()
    return os.path.join(
      self._folder, f'{hashlib.sha256(ids).hexdigest()[:32]}.npz'
    )


def _written(found: dict[str, Any]) -> bytes:
  arrays = {'features': found['features']} if 'features' in found else {}
  if 'distribution' in found:
    one = found['distribution']
    arrays |= {'state': one.state, 'log_z': one.log_z}
  # numpy's files know no bfloat16: bits, and what they are.
  plain = {
    f'{name}:{x.dtype.name}': x.view(
      np.uint16 if x.dtype.itemsize == 2 else np.uint32
    )
    for name, x in ((n, np.asarray(a)) for n, a in arrays.items())
  }
  made = io.BytesIO()
  np.savez(made, allow_pickle=False, **plain)
  return made.getvalue()


def _read(data: bytes) -> dict[str, Any]:
  arrays = {}
  with np.load(io.BytesIO(data), allow_pickle=False) as stored:
    for key in stored.files:
      name, _, dtype = key.partition(':')
      kind = ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.dtype(dtype)
      arrays[name] = stored[key].view(kind)
  found = {'features': arrays['features']} if 'features' in arrays else {}
  if 'state' in arrays:
    found['distribution'] = training_types.Distribution(
      arrays['state'], arrays['log_z']
    )
  return found
