"""JSON files beside the weights, and locks of files."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from specdiff_jax.core import errors


def read_json(path: str) -> dict[str, Any]:
  """Reads a JSON object; InputError where there is none."""
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except FileNotFoundError as e:
    raise errors.InputError(
        f'{path}: there is no such file; correct the path, or download it.'
    ) from e
  except (OSError, ValueError) as e:
    raise errors.InputError(
        f'{path}: not readable as JSON ({e}); download the file again.'
    ) from e
  if not isinstance(value, dict):
    raise errors.InputError(
        f'{path}: holds a JSON {type(value).__name__} where an object is '
        'expected; download the file again.'
    )
  return value


def write_json(path: str, value: dict[str, Any]) -> None:
  """Writes a JSON object, whole or not at all; InputError where it cannot."""
  try:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path + '.new', 'w', encoding='utf-8') as file:
      json.dump(value, file, indent=2)
      file.write('\n')
    os.replace(path + '.new', path)
  except OSError as e:
    raise errors.InputError(
        f'{path}: cannot be written ({e}); make room, or give another '
        'directory.'
    ) from e


def lock(descriptor: int, path: str) -> None:
  """Locks an open file for this process, until it is closed.

  The lock of a process that is killed is gone with it. A file system without
  locks gives none.

  Raises InputError if another process has it.
  """
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise errors.InputError(
        f'Another process is writing {path}. Wait for it, stop it, or write '
        'elsewhere.'
    ) from error
  except OSError:
    pass


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
  """Holds the lock of a file, which is made if it is not there.

  Raises InputError if another process holds it, or it cannot be made.
  """
  try:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise errors.InputError(
        f'{path}: cannot be written ({error}); make room, make the directory '
        'writable, or choose another one.'
    ) from error
  try:
    lock(descriptor, path)
    yield
  finally:
    os.close(descriptor)
