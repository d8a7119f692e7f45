"""`python -m specdiff_jax SUBCOMMAND --config=FILE [--config.field=value]`."""

import importlib
import sys
from collections.abc import Sequence

from specdiff_jax.core import errors

SUBCOMMANDS = {
    'decode': 'complete prompts with a verifier, drafted or plainly',
    'bench': 'compare the systems: tokens/s, speed-up, tau, exactness',
    'verify': 'check that drafting leaves every token as plain decoding has it',
    'collect': "write the verifier's own completions of many prompts",
    'distill': 'train a drafter on collected completions',
    'sweep': 'distill every combination of some settings, and compare them',
    'aot': 'compile for a TPU pod on any machine, and say whether it fits',
    'convert': 'write a model in another form: Hugging Face, native, DFlash',
    'inspect': "say what a model's files hold, and whether it fits on a mesh",
}

_USAGE = """\
Lossless speculative decoding with diffusion drafters, in JAX.

usage: python -m specdiff_jax SUBCOMMAND --config=FILE [--config.FIELD=VALUE]
       python -m specdiff_jax convert --from PATH --to PATH [FLAGS]
       python -m specdiff_jax inspect PATH [FLAGS]

{lines}

`SUBCOMMAND --help` tells more. A first run:
  python -m specdiff_jax bench --config=configs/quickstart.py
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a subcommand; returns the exit code.

  0: done. 1: an output was not what plain decoding gives (`bench`, `verify`).
  2: bad input, with a message that says what to do. 3: it does not fit
  (`aot`). 75: preempted, saved (`distill`, `sweep`). 130:
  interrupted.

  Example: main(['bench', '--config=configs/tiny.py'])
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  name = argv[0] if argv else ''
  if name in ('', '-h', '--help', '--helpfull', 'help'):
    print(usage(), end='')
    return 0 if name else 2
  try:
    if name not in SUBCOMMANDS:
      from specdiff_jax.programs import fields

      raise fields.unknown('There is no subcommand', name, SUBCOMMANDS)
    program = importlib.import_module(f'specdiff_jax.programs.{name}')
    return program.main(argv[1:])
  except errors.InputError as error:
    print(f'specdiff {name}: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(
        f'specdiff {name}: interrupted. What was written stays; `collect`, '
        '`distill` and `sweep` go on from it when started again.',
        file=sys.stderr,
    )
    return 130
  except BrokenPipeError:  # the reader of stdout, such as `head`, has left
    sys.stderr.close()
    return 0
  except Exception as error:
    if not _is_memory(error):
      raise
    print(
        f'specdiff {name}: there is not enough memory (or a limit on it, such '
        'as that of `ulimit -v`, is too low). What was written stays. Free or '
        'allow more, or take a smaller model or config.batch, and run it '
        'again.',
        file=sys.stderr,
    )
    return 2


def _is_memory(error: Exception) -> bool:
  """Returns whether memory ran out: that of Python, or jax's on a device."""
  return isinstance(error, MemoryError) or (
      type(error).__name__ in ('JaxRuntimeError', 'XlaRuntimeError')
      and 'RESOURCE_EXHAUSTED' in str(error)
  )


def usage() -> str:
  """Returns the top-level help, a line for each subcommand."""
  lines = (f'  {name:<9}{line}' for name, line in SUBCOMMANDS.items())
  return _USAGE.format(lines='\n'.join(lines))


if __name__ == '__main__':
  sys.exit(main())
