"""Trouble with a disk, told apart from other errors and told in few words."""

from collections.abc import Callable
import glob
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import types
from typing import Any
import warnings

from specdiff_jax.core import errors

_UNFINISHED = '.orbax-checkpoint-tmp'  # how orbax ends names of what it writes
_LATE = 'DEADLINE_EXCEEDED'  # what jax says where a process does not come


def tell(action: Callable[[], Any]) -> None:
  """Calls it; trouble with the disk becomes an InputError."""
  try:
    action()
  except Exception as error:
    trouble, cause = None, error
    while cause:
      trouble = cause if _is_disk_trouble(cause) else trouble
      cause = cause.__cause__ or cause.__context__
    if trouble is None:
      raise
    said = brief(trouble)
    if _LATE in said:
      said = 'another process did not write its part'
    raise errors.InputError(said) from error


def probe(folder: str) -> None:
  """Writes a file in a new folder there, and removes both; raises OSError.

  What a kill leaves of them orbax removes, by the name, with its own; and what
  it meets of a probe while it does.
  """
  for again in (True, True, False):
    try:
      with tempfile.TemporaryDirectory(
        dir=folder, prefix='probe', suffix=_UNFINISHED
      ) as inner:
        with open(os.path.join(inner, 'probe'), 'wb') as file:
          file.write(b'0')
      return
    except FileNotFoundError:
      if not again:
        raise


def clear(folder: str) -> None:
  """Removes unfinished checkpoints; those who write them may not be done yet.

  Gives up after seconds: orbax tries it once more, and says why it cannot.
  """
  for path in glob.glob(os.path.join(glob.escape(folder), f'*{_UNFINISHED}')):
    for _ in range(50):
      shutil.rmtree(path, ignore_errors=True)
      if not os.path.exists(path):
        break
      time.sleep(0.1)


def _is_disk_trouble(error: BaseException) -> bool:
  """Whether it is the system's error; tensorstore wraps those as text.

  Or that of a process which waited in vain for another one's part.
  """
  return isinstance(error, OSError) or bool(
    re.search(rf'os_error_code|OS error|{_LATE}', str(error))
  )


def brief(error: BaseException) -> str:
  """Returns what it says in a line of at most 400 characters."""
  text = ' '.join(str(error).split())
  text = re.sub('RESOURCE_EXHAUSTED: .*?(?=Failed to write)', '', text)
  text = re.split(r' \[(?:tensorstore_spec|source locations)=', text)[0]
  if ' ' not in text:  # the key of a KeyError alone
    text = f'{type(error).__name__}: {text}'
  return text if len(text) <= 400 else f'{text[:200]} ... {text[-200:]}'


def stop_noise() -> None:
  """Silences what failed saves and restores say beside the error they raise.

  Orbax logs its error in each of its threads, with a traceback. Reads that come
  to an end after it find asyncio's loop closed, each with a traceback too, and
  others were never begun. Does nothing the second time.
  """
  before = sys.unraisablehook
  if hasattr(before, 'silent'):
    return

  def hook(found):
    code = getattr(found.object, 'cr_code', None)  # of a coroutine
    if not (
      'Event loop is closed' in str(found.exc_value)
      or (code and 'orbax' in code.co_filename)
    ):
      before(found)

  hook.silent = True
  sys.unraisablehook = hook
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
  logging.getLogger('absl').addFilter(
    lambda record: (
      record.levelno < logging.ERROR or 'orbax' not in record.pathname
    )
  )
  # Errors of tasks that nobody waits for any more, once one has failed.
  logging.getLogger('asyncio').addFilter(
    lambda record: not (record.exc_info and _of_orbax(record.exc_info[2]))
  )


def _of_orbax(trace: types.TracebackType | None) -> bool:
  """Returns whether a frame of a traceback is in Orbax."""
  while trace is not None:
    if 'orbax' in trace.tb_frame.f_code.co_filename:
      return True
    trace = trace.tb_next
  return False
