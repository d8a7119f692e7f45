"""Generated programs: found in texts, put together with tests, run confined."""

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile

_FENCE = re.compile(r'^```[\w+-]*[ \t]*\n(.*?)(?:^```|\Z)', re.M | re.S)


def code(text: str, prompt: str = '', entry_point: str = '') -> str:
  r"""Returns the program that a completion gives.

  The fenced block that defines the entry point, else the first block, else the
  whole text. What does not define it is taken as a continuation of the prompt's
  signature; what does gets the prompt's imports before it. Without a fence it ends
  where it is Python no more: in prose, or in a line that was cut.

  Args:
    text: the completion.
    prompt: what was asked; where it holds `def entry_point`, it is code.
    entry_point: the function's name; '' for any.

  >>> print(code('Sure!\n```python\ndef f(x):\n  return x\n```\nDone.'))
  def f(x):
    return x
  <BLANKLINE>
  """
  define = re.compile(rf'^(async )?def {re.escape(entry_point)}\b', re.M)
  blocks = _FENCE.findall(text)
  found = next((b for b in blocks if define.search(b)), None)
  if found is None:
    found = blocks[0] if blocks else text
  if not blocks and (begin := define.search(text)) and entry_point:
    found = text[begin.start() :]
  asked = define.search(prompt) if entry_point else None
  if asked is not None:
    before = prompt[: asked.start()] if define.search(found) else prompt
    found = before + found
  return found if blocks else _parsing(found)


def _parsing(text: str) -> str:
  """Returns the lines of a text up to the last that leaves it Python."""
  lines = text.splitlines(keepends=True)
  for count in range(len(lines), 0, -1):
    source = ''.join(lines[:count])
    with contextlib.suppress(
      SyntaxError, ValueError, RecursionError, MemoryError
    ):
      ast.parse(source)
      return source
  return text


def run(source: str, seconds: float = 10.0, memory: int = 1 << 30) -> bool:
  """Returns whether a program runs to its end, in a process of its own.

  The process has no environment, an empty working directory that goes away,
  limits of time and memory, and may neither write, nor open sockets, nor start
  others (see `confined`). All that it started ends with it.

  Args:
    source: Python.
    seconds: of wall-clock time.
    memory: bytes of address space.
  """
  there, end = os.pipe()
  program = os.path.join(os.path.dirname(__file__), 'confined.py')
  limits = map(str, (end, int(seconds) + 1, memory))
  with tempfile.TemporaryDirectory() as folder, os.fdopen(there, 'rb') as pipe:
    child = subprocess.Popen(
      [sys.executable, '-I', '-B', program, *limits],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=folder,
      env={},
      pass_fds=(end,),
      start_new_session=True,
    )
    os.close(end)
    try:
      child.communicate(source.encode(errors='replace'), timeout=seconds)
    except subprocess.TimeoutExpired:
      pass
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
      child.wait()
    os.set_blocking(pipe.fileno(), False)
    return child.returncode == 0 and pipe.read() == b'passed'
