"""Chat templates: foreign code, rendered by a limited process of its own.

There is one such process for all templates of this one. It starts with the
first text, is started anew after one that it did not survive, and ends with
this process, however that ends: its stdin closes then.
"""

import atexit
import functools
import json
import os
import select
import struct
import subprocess
import threading
import time
from typing import Any

from specdiff_jax.text import child_processes

_START = 60.0  # seconds for Python to start, on a machine that is very busy
_SECONDS = 0.75  # of the processor, for a text; templates take milliseconds
_WAIT = 20.0  # for a text, by the clock
_MOST = 8 << 20  # bytes of an answer: its MOST characters, and an error


class Error(Exception):
  """What is wrong with a template, or what it raises."""


class _Process:
  """The process, and the frames that go to it and come back."""

  def __init__(self):
    self.owner = os.getpid()
    self._asked = False  # something whose answer was not read
    try:
      self._process = subprocess.Popen(
        child_processes.command('template_program.py', 'jinja2', str(_SECONDS)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd='/',
        start_new_session=True,  # an interrupt is ours to handle
      )
    except OSError as error:
      raise Error(f'the process that renders it does not start: {error}')
    assert self._process.stdin and self._process.stdout
    self._stdin, self._stdout = self._process.stdin, self._process.stdout
    if self._read(1, _START) != b'.':
      self.stop()
      raise Error('the process that renders it does not start')

  def ask(self, data: bytes) -> str:
    """Returns the text, or raises Error with what is wrong."""
    self._asked = True  # until then, whatever ends this: Ctrl-C, a timeout
    try:
      self._stdin.write(struct.pack('<Q', len(data)) + data)
      self._stdin.flush()
    except OSError:
      self._ended()
    size = struct.unpack('<Q', self._read(8, _WAIT) or self._ended())[0]
    if not 0 < size <= _MOST:
      self._ended()
    answer = self._read(size, _WAIT) or self._ended()
    self._asked = False
    text = answer[1:].decode('utf-8', 'surrogatepass')
    if answer[:1] != b'+':
      raise Error(text)
    return text

  def _read(self, size: int, seconds: float) -> bytes:
    """Returns that many bytes of its stdout, or none if they do not come."""
    source, data = self._stdout.fileno(), b''
    deadline = time.monotonic() + seconds
    while len(data) < size:
      left = max(deadline - time.monotonic(), 0)
      if not select.select([source], [], [], left)[0]:
        return b''
      part = os.read(source, size - len(data))
      if not part:
        return b''
      data += part
    return data

  def _ended(self):
    self.stop()
    raise Error('it takes too much time or memory')

  def stop(self) -> None:
    """Ends it, if it has not."""
    self._process.kill()
    self._process.wait()
    self._stdout.close()
    try:
      self._stdin.close()
    except OSError:
      pass

  @property
  def ready(self) -> bool:
    """Whether it is this process's own, runs, and has nothing left to say."""
    runs = self.owner == os.getpid() and self._process.poll() is None
    return runs and not self._asked


_lock = threading.Lock()
_process: _Process | None = None


@functools.lru_cache(maxsize=16)
def reads(template: str) -> dict[str, bool]:
  """Returns the variables that a template reads, given or not.

  To each whether it is a likely argument, and none of the template's own that
  it may read before it sets it. Raises Error where it cannot be parsed.

  >>> reads('{{ a }}{% if a %}{% set b = 1 %}{% endif %}{{ b }}{{ range(2) }}')
  {'a': True, 'b': False}
  """
  return json.loads(render(template, None))


def render(template: str, variables: dict[str, Any] | None) -> str:
  """Returns the text of a template; without variables, what it `reads`.

  Raises Error with what is wrong: with the template, with what it needs, or
  what it raises itself.
  """
  global _process
  data = json.dumps([template, variables]).encode()
  with _lock:
    if _process is None or not _process.ready:
      _stop()
      _process = _Process()
    return _process.ask(data)


@atexit.register
def _stop() -> None:
  if _process is not None and _process.owner == os.getpid():
    _process.stop()
