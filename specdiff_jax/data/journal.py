"""A file of JSON lines that grows only at its end and survives a kill.

The mechanics alone: what the lines mean is `trajectories`' matter.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import hashlib
import json
import os
import re
import stat
from typing import Any, Self

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import interrupts
from specdiff_jax.core import locks

_LONGEST = files.MOST_JSON  # bytes of a line
# What a line ends in. A last byte that is no newline was one.
_TAIL = re.compile(rb',"sum":"([0-9a-f]{16})"}.\Z', re.DOTALL)


class AppendFile:
  """An open file of JSON lines, held by this process alone.

  Each line ends in the field `sum`, a checksum of the bytes before it.

    file = AppendFile('runs/a/journal.jsonl')
    file.cut(end)            # the offset after the last whole line
    file.append([{'id': 1}])
  """

  def __init__(self, path: str):
    """Opens or creates the file and its folder, and locks the file.

    Raises InputError if the path cannot be written, is no file, or another
    process has it.
    """
    self.path = path
    folder = os.path.dirname(path) or '.'
    with disk_errors(path):
      os.makedirs(folder, exist_ok=True)
      self._file = files.open_own(path, os.O_RDWR)
      files.sync_folder(folder)
    try:
      locks.lock(self._file, path)
    except errors.InputError:
      self.close()
      raise
    found = os.fstat(self._file)
    self._end = found.st_size
    self._regular = stat.S_ISREG(found.st_mode)

  def cut(self, end: int) -> None:
    """Drops everything from the byte offset `end` on."""
    if end != self._end:
      with disk_errors(self.path):
        os.ftruncate(self._file, end)
      self._end = end

  def append(self, records: list[dict[str, Any]]) -> None:
    """Writes the records in one piece; returns once they are on disk.

    Raises InputError if the disk is full, and the file is then as it was; or
    if another process deleted, replaced or changed the file.
    """
    data = memoryview(b''.join(map(_line, records)))
    self.check()
    with disk_errors(self.path), interrupts.held(f'finishing {self.path}'):
      try:
        if self._regular:
          os.lseek(self._file, self._end, os.SEEK_SET)
        written = 0
        while written < len(data):
          written += os.write(self._file, data[written:])
        if self._regular:
          os.fsync(self._file)
      except BaseException:  # a KeyboardInterrupt between two writes as well
        with contextlib.suppress(OSError):
          os.ftruncate(self._file, self._end)
        raise
    self._end += len(data)

  def check(self) -> None:
    """Raises InputError unless the file is there as this process left it."""
    if not self._regular:
      return
    ours, there = os.fstat(self._file), None
    with contextlib.suppress(OSError):
      there = os.stat(self.path)
    if there is None or not os.path.samestat(ours, there):
      done = 'deleted, moved or replaced'
    elif ours.st_size != self._end:
      done = f'changed (it has {ours.st_size} bytes instead of {self._end})'
    else:
      return
    raise errors.InputError(
      f'{self.path} was {done} by another process while this one was writing '
      'it, so this one stops. Find out by whom; then run the same command '
      'again, which makes what is missing there.'
    )

  def close(self) -> None:
    """Gives the file free; a second call does nothing."""
    if self._file >= 0:
      os.close(self._file)
      self._file = -1


class Resumed:
  """What is kept in an `AppendFile`, and goes on where a killed run stopped."""

  def __init__(self, path: str):
    self._file = AppendFile(path)
    try:
      self._recover()
    except BaseException:
      self.close()
      raise

  def _recover(self) -> None:
    """Takes in the whole lines and cuts off what follows them."""
    raise NotImplementedError

  def close(self) -> None:
    """Lets another process have the file; a second call does nothing."""
    self._file.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: Any, *_) -> None:
    try:
      if kind is None:
        self._file.check()  # was what is written there until the end?
    finally:
      self.close()


def lines(path: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
  """Yields (offset of the line's end, its number, its object).

  A checked line's object has its `sum`. Lines that older versions wrote have
  none and are not checked; none follows a checked one.

  Stops before a last line that is torn: without a newline, or not an object
  (a power cut may leave zeros). Any other such line is damage, and raises
  InputError; so does a file that cannot be read. Another process may append
  meanwhile.
  """
  end, number, checked = 0, 0, False
  with files.open_file(path) as file:
    while line := file.readline(_LONGEST + 1):
      number += 1
      if len(line) > _LONGEST:
        raise damaged(path, number, f'more than {_LONGEST} bytes long')
      tail = _TAIL.search(line)
      record = parsed(line)
      fault = ''
      if tail and tail[1] != _sum(line[: tail.start()]):
        fault = 'not what was written there: its checksum differs'
      elif record is None:
        # A line that has its end was written whole.
        if not tail and not (line.endswith(b'\n') and file.readline(1)):
          return
        fault = 'not a JSON object'
      elif checked and not tail:
        fault = 'without a checksum, which the lines before it have'
      if fault or record is None:
        raise damaged(path, number, fault)
      checked = checked or bool(tail)
      end += len(line)
      yield end, number, record


def damaged(path: str, number: int, fault: str) -> errors.InputError:
  """Returns the error for a line that no killed run could have left."""
  cure = 'begin anew with another one'
  if number > 1:  # it may be what the others need, the header
    cure = 'delete the line (only its record is lost)'
  return errors.InputError(
    f'{path}, line {number}: {fault}. This is no trace of a killed run but '
    f'damage: restore the file from a copy, or {cure}, and run the command '
    'again.'
  )


def parsed(line: bytes) -> dict[str, Any] | None:
  """Returns the line's object, or None if it is not whole."""
  try:
    record = files.parse_json(line) if line.endswith(b'\n') else None
  except ValueError:
    return None
  return record if isinstance(record, dict) else None


def _line(record: dict[str, Any]) -> bytes:
  """Returns an object as a line that ends in the checksum of what is before."""
  body = json.dumps(record, separators=(',', ':')).encode()[:-1]
  line = body + b',"sum":"' + _sum(body) + b'"}\n'
  if len(line) > _LONGEST:
    raise errors.InputError(
      f'A line of {len(line)} bytes is more than the {_LONGEST} that a '
      'record may have. Lower config.max_new_tokens, or config.store_top_k.'
    )
  return line


def _sum(data: bytes) -> bytes:
  return hashlib.sha256(data).hexdigest()[:16].encode()


def with_sum(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an object with a checksum of its values, for `without_sum`."""
  canonical = json.dumps(fields, sort_keys=True).encode()
  return {**fields, 'sum': _sum(canonical).decode()}


def without_sum(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the object that `with_sum` took.

  One without a checksum, of an older version, is returned as it is. Raises
  ValueError if the checksum is another one.
  """
  rest = {name: value for name, value in fields.items() if name != 'sum'}
  if 'sum' in fields and with_sum(rest) != fields:
    raise ValueError('it is not what was written: its checksum differs')
  return rest


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
  """Returns the SHA-256, in hex digits, of the first bytes of files.

  Example: digest([('journal.jsonl', 4096), ('journal.1.jsonl', 512)])
  """
  result = hashlib.sha256()
  for path, size in parts:
    with files.open_file(path) as file:
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
    locks.wait(descriptor)
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
