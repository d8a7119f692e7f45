"""What stops a program that is neither bad input nor a fault of ours.

`__main__` asks here about an exception that no one caught: a machine without
the memory, the disk or the platform is told of in one paragraph; anything else
keeps its traceback.
"""

import errno
import os
import sys

from specdiff_jax.core import printing

READER_LEFT = 0  # of stdout, such as `head`: it has seen what it wanted
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE)
_NO_MEMORY = (  # in errors of jax, of the loader, and of threads
    'RESOURCE_EXHAUSTED', 'Out of memory', 'Cannot allocate memory',
    'std::bad_alloc', "can't start new thread",
)  # fmt: skip
_MEMORY = (
  'There is not enough memory ({}). Lower config.batch, config.prompt_buckets '
  'or config.max_new_tokens (while training config.tokens or config.windows), '
  'take a smaller model or config.dtype=bfloat16, or raise the limit.'
)


def reason(error: BaseException) -> str | None:
  """Returns what the exception comes from, and what to do; None if unknown."""
  if _of_memory(error):
    return _MEMORY.format(printing.error(error))
  if isinstance(error, OSError) and error.errno in _FULL:
    where = f'{error.filename}: ' if error.filename else ''
    return (
      f'{where}{error.strerror}. Make room, or write elsewhere; what was '
      'written before stays.'
    )
  return _of_jax()


def _of_memory(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, MemoryError):
      return True
    if any(words in str(error) for words in _NO_MEMORY):
      return True
    error = error.__cause__ or error.__context__
  return False


def _of_jax() -> str | None:
  """Returns what keeps jax from working at all."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  try:
    import jax
  except MemoryError as error:
    return _MEMORY.format(printing.error(error))
  except Exception as error:  # it reads its variables as it is imported
    return (
      f'jax cannot be loaded: {printing.error(error)}. Correct or unset the '
      'environment variable that it names (JAX_...), or install jax again.'
    )
  try:
    jax.devices()
    return None
  except Exception as error:  # of any type: its plugins raise their own
    return (
      f'jax finds no device (JAX_PLATFORMS={platforms!r}): '
      f'{printing.error(error)}. {_there()} Set JAX_PLATFORMS to one that is '
      "there, or unset it; GPUs need pip install '.[cuda13]' in the clone "
      "('.[cuda12]' for drivers before 580), TPUs '.[tpu]'."
    )


def _there() -> str:
  """Returns which platforms work here, as a sentence."""
  import jax
  from jax.extend import backend

  try:
    jax.config.update('jax_platforms', None)
    backend.clear_backends()
    found = {device.platform for device in jax.devices()}
  except Exception:
    return 'No platform works here.'
  return f'This machine has: {", ".join(sorted(found))}.'


def streams() -> None:
  """Makes stdout and stderr safe to write to, whatever they are.

  A character that the console cannot show becomes an escape. Descriptors that
  are closed become /dev/null: else the next file that is opened would get
  their numbers, and what others print would go into it.
  """
  while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(free, True)
  os.close(free)
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))
    elif hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')


def tell(line: str) -> None:
  """Writes a line to stderr, if that can be written to."""
  try:
    print(line, file=sys.stderr, flush=True)
  except OSError:  # of a full disk, say: the exit code has to tell
    silence()


def flushed(code: int) -> int:
  """Writes out what waits for stdout; returns the exit code, or another."""
  try:
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    silence()
    return READER_LEFT
  except OSError as error:
    silence()
    if not code:
      tell(f'specdiff: stdout: {error.strerror}.')
    return code or 2


def silence() -> None:
  """Gives up stdout and stderr where what waits in them cannot be written.

  Python would try once more at its exit, and complain.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      os.dup2(nowhere, stream.fileno())
  os.close(nowhere)
