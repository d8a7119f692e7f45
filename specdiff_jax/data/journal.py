"""A file of JSON lines that grows only at its end and survives a kill.

The mechanics alone: what the lines mean is `trajectories`' matter.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import files


class AppendFile:
  """An open file of JSON lines, held by this process alone.

    file = AppendFile('runs/a/journal.jsonl')
    file.cut(end)            # the offset after the last whole line
    file.append([{'id': 1}])
  """

  def __init__(self, path: str):
    """Opens or creates the file and its folder, and locks the file.

    Raises InputError if the path cannot be written or another process has it.
    """
    self.path = path
    folder = os.path.dirname(path) or '.'
    with disk_errors(path):
      os.makedirs(folder, exist_ok=True)
      self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
      with contextlib.suppress(OSError):  # some systems cannot sync a folder
        _sync_folder(folder)
    try:
      files.lock(self._file, path)
    except errors.InputError:
      self.close()
      raise
    self._end = os.fstat(self._file).st_size

  def cut(self, end: int) -> None:
    """Drops everything from the byte offset `end` on."""
    if end != self._end:
      with disk_errors(self.path):
        os.ftruncate(self._file, end)
      self._end = end

  def append(self, records: list[dict[str, Any]]) -> None:
    """Writes the records in one piece; returns once they are on disk.

    Raises InputError if the disk is full; the file is then as it was.
    """
    lines = [json.dumps(record, separators=(',', ':')) for record in records]
    data = memoryview(''.join(line + '\n' for line in lines).encode())
    with disk_errors(self.path):
      try:
        os.lseek(self._file, self._end, os.SEEK_SET)
        written = 0
        while written < len(data):
          written += os.write(self._file, data[written:])
        os.fsync(self._file)
      except BaseException:  # a KeyboardInterrupt between two writes as well
        with contextlib.suppress(OSError):
          os.ftruncate(self._file, self._end)
        raise
    self._end += len(data)

  def close(self) -> None:
    """Gives the file free; a second call does nothing."""
    if self._file >= 0:
      os.close(self._file)
      self._file = -1


def lines(path: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
  """Yields (offset of the line's end, its number, its object).

  Stops before a last line that is torn: without a newline, or not an object
  (a power cut may leave zeros). An earlier line like that is damage, and
  raises InputError; so does a file that cannot be read. Another process may
  append meanwhile.
  """
  try:
    file = open(path, 'rb')
  except OSError as error:
    raise errors.InputError(
        f'Cannot read {path}: {error.strerror or error}. Run `specdiff '
        'collect` with this work directory first.'
    ) from error
  with file:
    end = 0
    for number, line in enumerate(file, start=1):
      record = _parse(line)
      if record is None:
        # Without a newline it was the last one, whatever was written since.
        if line.endswith(b'\n') and file.readline():
          raise errors.InputError(
              f'{path}, line {number}: not a JSON object, and more lines '
              'follow, so this is no trace of a killed run but damage. Delete '
              'the line (only its record is lost) and run the command again.'
          )
        return
      end += len(line)
      yield end, number, record


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns the line's object, or None if it is not whole."""
  try:
    record = json.loads(line) if line.endswith(b'\n') else None
  except ValueError:
    return None
  return record if isinstance(record, dict) else None


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
  """Returns every field in which two headers differ, in words; '' if none."""

  def shown(header, name):
    return repr(header[name]) if name in header else 'absent'

  return '; '.join(
      f'{name} was {shown(old, name)} and is now {shown(new, name)}'
      for name in sorted({*old, *new})
      if name not in old or name not in new or old[name] != new[name]
  )


def digest(parts: Iterable[tuple[str, int]]) -> str:
  """Returns the SHA-256, in hex digits, of the first bytes of some files.

  Example: digest([('journal.jsonl', 4096), ('journal.1.jsonl', 512)])
  """
  result = hashlib.sha256()
  for path, size in parts:
    with open(path, 'rb') as file:
      while size and (block := file.read(min(size, 1 << 20))):
        result.update(block)
        size -= len(block)
  return result.hexdigest()


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
  """Holds the lock of a folder, after waiting for another holder."""
  with disk_errors(folder):
    descriptor = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: str) -> Iterator[None]:
  """Turns an OSError, such as that of a full disk, into an InputError."""
  try:
    yield
  except OSError as error:
    raise errors.InputError(
        f'Cannot write {path}: {error.strerror or error}. Nothing that was '
        'written before is lost: free some space or mend the cause, and run '
        'the same command again; it goes on where it stopped.'
    ) from error


def _sync_folder(path: str) -> None:
  folder = os.open(path, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)
