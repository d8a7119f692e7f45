"""Files that people hand over: opened and parsed with every doubt checked.

What is read here may come from a stranger. So only regular files are opened
(a FIFO would be waited for, a device never ends), sizes and depths are bounded
before anything is built of them, and whatever is wrong is one InputError.
"""

from collections.abc import Iterable, Iterator
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from typing import Any, BinaryIO

from specdiff_jax.core import errors

MOST_JSON = 32 << 20  # bytes; the index of the largest models has 10 MB
_HASHED = 1 << 30  # bytes of the largest file that is read to compare it
_DEPTH = 64  # of JSON: arrays and objects in each other
_PLAIN = re.compile(r'[A-Za-z0-9_./+=@, -]*')
_aliases: dict[tuple[int, int], int] = {}  # open folders, by device and inode
_MOST_INNER = 1 << 19  # arrays and objects, each of which takes time and memory
_HALF = re.compile(rb'\\u[dD][89abAB]|\\u[dD][c-fC-F]')
_HALF_TEXT = re.compile('[\ud800-\udfff]')


def open_file(path: str) -> io.BufferedReader:
  """Opens a regular file for reading.

  Raises InputError if it is not there, cannot be read, or is a directory, a
  FIFO, a socket or a device.
  """
  try:  # O_NONBLOCK: a FIFO without a writer would be waited for
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError as error:
    raise errors.InputError(
      f'{path}: there is no such file; correct the path, or download it.'
    ) from error
  except (OSError, ValueError) as error:  # ValueError: a zero byte in a path
    raise errors.InputError(
      f'{path}: cannot be opened ({error}); correct the path or its '
      'permissions.'
    ) from error
  if not stat.S_ISREG(os.fstat(handle).st_mode):
    os.close(handle)
    raise errors.InputError(
      f'{path}: not a regular file (a directory, a pipe or a device); give '
      'the path of a file.'
    )
  return os.fdopen(handle, 'rb')


def open_own(path: str, flags: int) -> int:
  """Opens or creates a file to write; returns its descriptor.

  Raises OSError, and InputError if it is a directory, or a pipe, at which a
  writer could wait. Devices, such as /dev/null, are fine; so is a link: the
  file itself may lie on a larger disk.
  """
  flags |= os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
  file = os.open(path, flags, 0o644)
  mode = os.fstat(file).st_mode
  if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
    os.close(file)
    raise errors.InputError(
      f'{path} is not a regular file; remove it, or give another path.'
    )
  return file


def only_regular(folder: str) -> bool:
  """Returns whether a folder holds nothing but folders and regular files."""
  for where, folders, names in os.walk(folder):
    for name in (*folders, *names):
      mode = os.lstat(os.path.join(where, name)).st_mode
      if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return False
  return True


def parse_json(data: bytes | str) -> Any:
  """Returns the value of a JSON text; ValueError with a reason where it fails.

  Refuses what later work could not bear: texts with half of a surrogate pair,
  and arrays and objects that are more than half a million, or more than 64
  deep.
  """
  raw = data.encode('utf-8', 'surrogatepass') if isinstance(data, str) else data
  inner = raw.count(b'[') + raw.count(b'{')
  if inner > _MOST_INNER:
    raise ValueError('there are too many arrays or objects')
  try:
    value = json.loads(data)
  except RecursionError:
    raise ValueError('arrays or objects are nested too deep') from None
  if inner > _DEPTH and _deeper(value, _DEPTH):
    raise ValueError('arrays or objects are nested too deep')
  if _HALF.search(raw) and _half_of_a_pair(value):
    raise ValueError(
      'a text holds half of a surrogate pair (\\ud800 to \\udfff), which is '
      'no character'
    )
  return value


def _deeper(value: Any, depth: int) -> bool:
  """Returns whether arrays and objects lie deeper in each other than that."""
  level = [value] if isinstance(value, (dict, list)) else []
  for _ in range(depth):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, (dict, list))
    ]
  return bool(level)


def _half_of_a_pair(value: Any) -> bool:
  if isinstance(value, str):
    return bool(_HALF_TEXT.search(value))
  if isinstance(value, dict):
    return any(map(_half_of_a_pair, value)) or any(
      map(_half_of_a_pair, value.values())
    )
  return isinstance(value, list) and any(map(_half_of_a_pair, value))


def read(path: str, most: int) -> bytes:
  """Returns the bytes of a file; InputError if they are more than `most`."""
  with open_file(path) as file:
    try:
      data = file.read(most + 1)
    except OSError as e:
      raise errors.InputError(f'{path}: cannot be read ({e}).') from e
  if len(data) > most:
    raise errors.InputError(
      f'{path}: larger than {most} bytes, which no such file needs; download '
      'it again.'
    )
  return data


def sha256(path: str) -> str:
  """Returns the SHA-256 of a file, as hexadecimal digits."""
  with open_file(path) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(path: str, most: int = MOST_JSON) -> dict[str, Any]:
  """Reads a JSON object of at most `most` bytes; InputError if it is none."""
  data = read(path, most)
  try:
    value = parse_json(data)
  except ValueError as e:
    raise errors.InputError(
      f'{path}: not readable as JSON ({e}); download the file again.'
    ) from e
  if not isinstance(value, dict):
    raise errors.InputError(
      f'{path}: holds a JSON {type(value).__name__} where an object is '
      'expected; download the file again.'
    )
  return value


def contents(paths: Iterable[str]) -> list[str]:
  """Returns what tells whether files are still what they were, sorted by path.

  The digest of a file; of a large one, and of those of a folder, sizes and
  times. What is not there, such as a name on a hub, is left out.
  """
  found: list[str] = []
  for path in sorted(set(paths)):
    if os.path.isdir(path):
      with os.scandir(path) as entries:
        there = sorted((one.name, one.stat()) for one in entries)
    elif os.path.isfile(path):
      there = [(os.path.basename(path), os.stat(path))]
    else:
      continue
    if os.path.isfile(path) and there[0][1].st_size <= _HASHED:
      found.append(sha256(path))
    else:
      found += [f'{n} {s.st_size} {s.st_mtime_ns}' for n, s in there]
  return found


def check_new(path: str, overwrite: bool) -> None:
  """Raises InputError where a file is there that may not be replaced."""
  if os.path.lexists(path) and not overwrite:
    raise errors.InputError(
      f'{path} is there already; give another file, or --overwrite.'
    )


@contextlib.contextmanager
def whole(path: str) -> Iterator[BinaryIO]:
  """Opens a file to write that appears at `path` whole, or not at all.

  It is written beside it under a name of its own, PATH.*.part, synced, and
  renamed once the block ends without an exception. So two writers at once do not
  take each other's for their own: the one that ends last stays.

    with files.whole('run.json') as file:
      file.write(b'{}')
  """
  part = f'{path}.{secrets.token_hex(4)}.part'
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
  try:
    with os.fdopen(os.open(part, flags, 0o644), 'wb') as file:
      yield file
    put(part, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(part)
    raise


def remove(path: str) -> None:
  """Removes a folder with all in it, or whatever else is there, if it can.

  Of a link it removes the link. (shutil.rmtree alone would wait for a FIFO.)
  """
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      os.unlink(path)


def put(draft: str, path: str) -> None:
  """Puts a file that is written in the place of `path`, on the disk for good.

  Both are in one file system. OSError where the disk does not take it.
  """
  _sync(draft)
  os.replace(draft, path)
  sync_folder(os.path.dirname(path) or '.')


def sync_folder(path: str) -> None:
  """Has the names in a folder written to the disk, where the system can."""
  with contextlib.suppress(OSError):
    _sync(path)


def _sync(path: str) -> None:
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def alias(folder: str) -> str:
  """Returns a path of a folder in which no character means anything.

  For libraries that take paths as patterns or addresses: in them `run[1]`
  would be the folder `run1`. The path is the folder's own, unless a character
  of it might mean something; then it holds in this process alone, as long as
  it lives.

  Raises InputError where the system has no such other paths, and OSError where
  the folder cannot be opened.
  """
  if _PLAIN.fullmatch(folder):
    return folder
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  found = os.fstat(descriptor)
  # Never closed: with the number of another folder, a library that remembers
  # what it read by its path would take the one for the other.
  first = _aliases.setdefault((found.st_dev, found.st_ino), descriptor)
  if first != descriptor:
    os.close(descriptor)
  path = f'/proc/self/fd/{first}'
  if not os.path.isdir(path):
    raise errors.InputError(
      f'{folder}: holds characters that mean something in patterns or '
      'addresses, which this system cannot work around; choose a name of '
      'ASCII letters, digits, and the characters _ . + = @ , -'
    )
  return path


def check_place(path: str) -> None:
  """Raises InputError where no file can be written at `path`."""
  folder = os.path.dirname(path) or '.'
  with writing(path):
    if os.path.isdir(path):
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass


def write_json(path: str, value: dict[str, Any]) -> None:
  """Writes a JSON object, whole or not at all; InputError where it cannot."""
  with writing(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with whole(path) as file:
      file.write((json.dumps(value, indent=2) + '\n').encode())


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
  """Raises InputError, which names `path`, where the disk refuses a write."""
  try:
    yield
  except OSError as e:
    raise errors.InputError(
      f'{path}: cannot be written ({e}); make room, or give another directory.'
    ) from e
