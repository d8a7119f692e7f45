"""Ctrl-C in a program of ours: told of within a second, and the code is 130.

Python hands a signal to its main thread, between two of its instructions: while
XLA compiles that takes minutes. So a thread waits for the byte that the handler
in C writes, and ends the process, by os._exit: Python's own end, while threads
of XLA are at work, is a segmentation fault.
"""

from collections.abc import Callable
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from specdiff_jax.core import interrupts

CODE = 130  # what shells say of SIGINT
STAYS = (
  'What was written stays; `collect`, `distill`, `sweep` and `decode --out` '
  'go on from it when started again.'
)
_GRACE = 1.0  # seconds in which the program may say its own last words
_CACHE = os.path.join('jax', '_src', 'lru_cache.py')
_told = threading.Event()
_SHOW_CURSOR = '\r\n\x1b[?25h'  # a bar hides it


def watch(name: str) -> None:
  """Has Ctrl-C end this process; to be called in its main thread.

  What is `interrupts.held` is waited for, unless it comes twice. Where SIGINT
  is ignored, as by a shell for what it starts in the background, it stays so.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    return
  source, sink = os.pipe()
  os.set_blocking(sink, False)
  signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
  signal.signal(signal.SIGINT, lambda *_: None)  # no KeyboardInterrupt
  _start(_watch, source, name)


def leave(text: str = '') -> NoReturn:
  """Ends the process in seconds, whatever its threads and readers do.

  Without a text it is the interrupted program itself that is done: the thread
  that watches may have words to say yet.
  """
  if not text:
    _told.wait(1.0)
  _start(_last_words, text).join(1.0)
  late = time.monotonic() + 1.0
  while _caching() and time.monotonic() < late:
    time.sleep(0.001)
  os._exit(CODE)


def _caching() -> bool:
  """Returns whether jax writes a compiled program into its cache.

  It would take half of one for the whole, and warn of it ever after.
  """
  frame = sys._current_frames().get(threading.main_thread().ident or 0)
  while frame and not frame.f_code.co_filename.endswith(_CACHE):
    frame = frame.f_back
  return bool(frame)


def _start(function: Callable[..., None], *args: Any) -> threading.Thread:
  thread = threading.Thread(target=function, args=args, daemon=True)
  thread.start()
  return thread


def _watch(source: int, name: str) -> None:
  _next(source)
  what = interrupts.come()
  if what is None:
    return
  if not what:
    leave(f'{name}: interrupted. {STAYS}')
  _start(
    _tell,
    f'{name}: interrupted; {what} (Ctrl-C again leaves at once) ...',
  )
  _start(_again, source, name)
  interrupts.wait()
  time.sleep(_GRACE)
  leave(f'{name}: finished. {STAYS}')


def _again(source: int, name: str) -> None:
  _next(source)
  leave(f'{name}: interrupted again.')


def _next(source: int) -> None:
  """Returns once a SIGINT comes; other signals write their bytes too."""
  while os.read(source, 1) != bytes([signal.SIGINT]):
    pass


def _last_words(text: str) -> None:
  if text:
    _tell(text)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()


def _tell(line: str) -> None:
  """Writes a line to stderr, past what other threads may have locked."""
  with contextlib.suppress(OSError):
    start = _SHOW_CURSOR if os.isatty(2) else ''
    os.write(2, f'{start}{line}\n'.encode(errors='backslashreplace'))
  _told.set()
