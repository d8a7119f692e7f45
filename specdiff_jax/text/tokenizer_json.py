"""tokenizer.json, and calls of the library that reads it, made safe."""

from collections.abc import Iterator
import contextlib
import os
import subprocess

import tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.text import child_processes

MOST = 64 << 20  # bytes; that of Gemma 3, the largest known, has 33 MB
_WAIT = 120.0  # seconds; trial_program.py ends itself long before


def load(path: str) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json; InputError if it is none, or does not work."""
  data = files.read(path, MOST)
  wrong = _tried(data)
  if wrong:
    raise errors.InputError(
      f'{path}: not a tokenizer ({printing.one_line(wrong)}); download the '
      'file again.'
    )
  with calls(f'{path}: not a tokenizer', 'download the file again'):
    return tokenizers.Tokenizer.from_buffer(data)


def text(path: str, most: int = MOST) -> str:
  """Returns the text of a file; InputError if too long, or not UTF-8."""
  try:
    return files.read(path, most).decode('utf-8')
  except UnicodeDecodeError as e:
    raise errors.InputError(
      f'{path}: not UTF-8 ({e}); download the file again.'
    ) from e


@contextlib.contextmanager
def calls(what: str, advice: str) -> Iterator[None]:
  """Turns whatever the library raises into 'WHAT (reason); ADVICE.'

  It raises bare Exception, and panics of Rust, which are no Exception.
  """
  try:
    yield
  except errors.InputError:
    raise
  except BaseException as e:
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    raise errors.InputError(
      f'{what} ({printing.one_line(e)[:300]}); {advice}.'
    ) from e


def _tried(data: bytes) -> str:
  """Returns what is wrong with a tokenizer.json, tried in a child process."""
  one_thread = {'RAYON_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false'}
  try:
    done = subprocess.run(
      child_processes.command('trial_program.py', 'tokenizers'),
      input=data,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      timeout=_WAIT,
      cwd='/',
      env=os.environ | one_thread,
      start_new_session=True,
    )
    said = done.stdout.decode('utf-8', 'replace')
  except subprocess.TimeoutExpired:
    said = ''
  except OSError as e:
    said = f'the process that tries it out does not start: {e}'
  if said == 'ok':
    return ''
  return said or 'the library fails on it, or takes too much time or memory'
