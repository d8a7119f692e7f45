"""Locks of files and folders, which are gone with the process that held them.

Not by the package filelock: it opens a path of its own, empties what lies there
and follows links, where the lock here is of a file that is open already (a
journal), of a folder, or of what a stranger may have put there.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import shutil
import tempfile

from specdiff_jax.core import errors
from specdiff_jax.core import files

_HELD = '.specdiff-held'  # in a workspace; see there


def lock(descriptor: int, path: str) -> None:
  """Locks an open file for this process, until it is closed.

  The lock of a process that is killed is gone with it. A file system without
  locks gives none.

  Raises InputError if another process has it.
  """
  if _try_lock(descriptor) is False:
    raise errors.InputError(
      f'Another process is writing {path}. Wait for it, stop it, or write '
      'elsewhere.'
    )


def wait(descriptor: int) -> None:
  """Locks an open file or folder as `lock` does, after any other holder."""
  with contextlib.suppress(OSError):  # a file system without locks
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
  """Holds the lock of a file, which is made if it is not there.

  Raises InputError if another process holds it, or it cannot be made.
  """
  with files.writing(path):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    descriptor = files.open_own(path, os.O_RDWR)
  try:
    lock(descriptor, path)
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def workspace(parent: str, prefix: str) -> Iterator[str]:
  """Yields a folder in `parent` for what is not finished; removed in the end.

  A process that is killed leaves its folder behind; the next one removes it.
  Whose folder it is and whether that process lives, the lock of a file in it
  tells: folders without such a file are never touched. OSError where the disk
  does not take it.
  """
  os.makedirs(parent, exist_ok=True)
  _clear(parent, prefix)
  while True:
    folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
    held = os.open(os.path.join(folder, _HELD), os.O_RDWR | os.O_CREAT, 0o600)
    if _try_lock(held) is not False and os.path.exists(folder):
      break
    os.close(held)  # another one has just cleared it away
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)


def _clear(parent: str, prefix: str) -> None:
  """Removes what killed processes left in a folder, as far as that works."""
  for name in os.listdir(parent):
    folder = os.path.join(parent, name)
    if not name.startswith(prefix) or os.path.islink(folder):
      continue
    with contextlib.suppress(OSError):
      flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
      held = os.open(os.path.join(folder, _HELD), flags)
      try:
        if _try_lock(held):
          shutil.rmtree(folder, ignore_errors=True)
      finally:
        os.close(held)


def _try_lock(descriptor: int) -> bool | None:
  """Returns whether the lock was free; None on file systems without locks."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None
  return True
