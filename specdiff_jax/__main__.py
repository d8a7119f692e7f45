"""`python -m specdiff_jax SUBCOMMAND --config=RECIPE [--config.field=value]`."""

from collections.abc import Sequence
import importlib
from importlib import metadata
import signal
import sys
from typing import NoReturn

import specdiff_jax
from specdiff_jax.cli import failures
from specdiff_jax.cli import interrupts
from specdiff_jax.core import errors
from specdiff_jax.core import interrupts as interrupts_lib
from specdiff_jax.core import printing

SUBCOMMANDS = {
  'decode': 'complete prompts with a verifier, drafted or plainly',
  'bench': 'compare the systems: tokens/s, speed-up, tau, exactness',
  'verify': 'check that drafting leaves every token as plain decoding has it',
  'prompts': 'write a prompt file out of a dataset: JSONL, parquet, TFDS',
  'collect': "write the verifier's own completions of many prompts",
  'ngram': "fit an n-gram model of the verifier's tokens, for diffuspec",
  'distill': 'train a drafter on collected completions',
  'sweep': 'distill every combination of some settings, and compare them',
  'report': 'draw results of bench and distill as one HTML page',
  'aot': 'compile for a TPU pod on any machine, and say whether it fits',
  'convert': 'write a model in another form: Hugging Face, native, DFlash',
  'inspect': "say what a model's files hold, and whether it fits on a mesh",
}

_USAGE = """\
Lossless speculative decoding with diffusion drafters, in JAX.

usage: python -m specdiff_jax SUBCOMMAND --config=RECIPE [--config.FIELD=VALUE]
       python -m specdiff_jax prompts --from SOURCE --out FILE [FLAGS]
       python -m specdiff_jax ngram --from SOURCE --out FILE [FLAGS]
       python -m specdiff_jax convert --from PATH --to PATH [FLAGS]
       python -m specdiff_jax inspect PATH [FLAGS]
       python -m specdiff_jax report --out PAGE.html RESULT... [FLAGS]
       python -m specdiff_jax --version

{lines}

`specdiff` is short for it where the package is installed. RECIPE is a file, or
the name of one that comes with the package. `SUBCOMMAND --help` tells more.
A first run:
  python -m specdiff_jax bench --config=quickstart
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a subcommand; returns the exit code.

  0: done, or the reader of stdout has left. 1: what was checked does not hold
  (`bench`, `verify`, `inspect`, `prompts`), or a run of `sweep` failed. 2: bad
  input, too little memory or disk, with a message that says what to do. 3: it
  does not fit (`aot`). 75: preempted, saved (`distill`, `sweep`). 130:
  interrupted.

  Example: main(['bench', '--config=configs/tiny.py'])
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  name = argv[0] if argv else ''
  failures.streams()
  try:
    code, message = _run(name, argv[1:])
  except BrokenPipeError:
    failures.silence()
    return failures.READER_LEFT
  if message:
    who = f'specdiff {name}' if name in SUBCOMMANDS else 'specdiff'
    failures.tell(printing.one_line(f'{who}: {message}'))
  return failures.flushed(code)


def program() -> NoReturn:
  """Runs `main` as a process of its own, which Ctrl-C ends in order."""
  interrupts.watch(printing.one_line(' '.join(['specdiff', *sys.argv[1:2]])))
  code = None
  try:
    code = main()
  finally:
    if interrupts_lib.over() or code == interrupts.CODE:
      interrupts.leave()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's end takes a while
  sys.exit(code)


def _run(name: str, argv: Sequence[str]) -> tuple[int, str]:
  """Returns the exit code of a subcommand, and what to tell where it failed."""
  try:
    if name in ('', '-h', '--help', '--helpfull', 'help'):
      print(usage(), end='')
      return (0 if name else 2), ''
    if name == '--version':
      print(version())
      return 0, ''
    if name not in SUBCOMMANDS:
      from specdiff_jax.recipes import fields

      raise fields.unknown('You gave the subcommand', name, SUBCOMMANDS)
    program = importlib.import_module(f'specdiff_jax.cli.{name}')
    return program.COMMAND.run(argv, program.body), ''
  except errors.InputError as error:
    return 2, str(error)
  except KeyboardInterrupt:
    told = interrupts_lib.came()
    return interrupts.CODE, '' if told else f'interrupted. {interrupts.STAYS}'
  except BrokenPipeError:
    raise
  except Exception as error:
    message = failures.reason(error)
    if message is None:
      raise
    return 2, message


def version() -> str:
  """Returns the version of this package, and of what decides its results."""
  python = '.'.join(map(str, sys.version_info[:3]))
  jax = metadata.version('jax')
  return f'specdiff_jax {specdiff_jax.__version__} (Python {python}, jax {jax})'


def usage() -> str:
  """Returns the top-level help, a line for each subcommand."""
  lines = (f'  {name:<9}{line}' for name, line in SUBCOMMANDS.items())
  return _USAGE.format(lines='\n'.join(lines))


if __name__ == '__main__':
  program()
