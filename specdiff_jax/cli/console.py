"""Where the programs print: text and results on stdout, the rest on stderr."""

from collections.abc import Callable, Iterator
import contextlib
import json
import sys
import time
from typing import Any

import rich.console
import rich.progress
import rich.table
import rich.text

from specdiff_jax.core import printing
from specdiff_jax.tools import tables


def out() -> rich.console.Console:
  """Returns the console of results; wide enough for tables in a pipe."""
  return _console(sys.stdout)


def notes() -> rich.console.Console:
  """Returns the console of progress and remarks."""
  return _console(sys.stderr)


def say(text: str) -> None:
  """Writes one remark, plainly and on one line, to stderr."""
  print(printing.one_line(text), file=sys.stderr, flush=True)


def text(piece: str) -> None:
  """Writes generated text to stdout, at once.

  As it is, but where stdout is a terminal: there it could move the cursor and
  forge what others wrote.
  """
  sys.stdout.write(printing.lines(piece) if sys.stdout.isatty() else piece)
  sys.stdout.flush()


def stream(system, request) -> None:
  """Writes a completion to stdout while it is made."""
  pieces = []
  for piece in system.stream(request):
    text(piece)
    pieces.append(piece)
  text('\n')
  remark(request.id, ''.join(pieces))


def remark(name: str, whole: str) -> None:
  """Says of a text that shows nothing that it is one."""
  if not any(x.isprintable() and not x.isspace() for x in whole):
    say(
      f'{name}: the text {whole!r} has no visible character (a random verifier '
      'may end at once).'
    )


def table(what: tables.Table, *, fold: bool = False) -> None:
  """Writes a table to stdout; `fold` breaks long cells in place of words."""
  side = 'left' if fold else 'center'
  drawn = rich.table.Table(title=what.title or None, title_justify=side)
  for number, name in enumerate(what.columns):
    drawn.add_column(
      name,
      justify='left' if fold or number < what.words else 'right',
      overflow='fold' if fold else 'ellipsis',
    )
  for row in what.rows:
    drawn.add_row(*row)
  out().print(drawn)


def result(fields: dict[str, Any]) -> None:
  """Writes the one JSON line that a program ends with."""
  print(json.dumps(fields), flush=True)


@contextlib.contextmanager
def progress(
  what: str, total: int | None = None
) -> Iterator[Callable[..., None]]:
  """Shows a bar on stderr; yields `update(done, total, note)`."""
  columns = (
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn('{task.fields[note]}', markup=False),
  )
  with rich.progress.Progress(
    *columns, console=notes(), disable=not sys.stderr.isatty()
  ) as bar:
    task = bar.add_task(printing.one_line(what), total=total, note='')

    def update(done: int, total: int | None = None, note: str = '') -> None:
      note = printing.one_line(note)
      bar.update(task, completed=done, total=total, note=note)

    yield update


@contextlib.contextmanager
def patient(what: str, seconds: float = 1.0) -> Iterator[Callable[..., None]]:
  """Yields the update of a bar that appears if the work takes longer."""
  start = time.monotonic()
  with contextlib.ExitStack() as stack:
    bar = None

    def update(done: int, total: int | None = None, note: str = '') -> None:
      nonlocal bar
      if bar is None and time.monotonic() - start > seconds:
        bar = stack.enter_context(progress(what, total))
      if bar is not None:
        bar(done, total, note)

    yield update


class _Console(rich.console.Console):
  """Prints every text as it stands: cells, titles and lines of foreign names.

  No markup, no emoji codes, and nothing that moves the cursor.
  """

  def render_str(self, text: str, **options: Any) -> rich.text.Text:
    return super().render_str(printing.one_line(text), **options)

  def on_broken_pipe(self) -> None:
    """Leaves it to `__main__` that the reader has left; rich would exit 1."""
    raise


def _console(stream) -> rich.console.Console:
  width = None if stream.isatty() else 100
  return _Console(
    file=stream, width=width, highlight=False, markup=False, emoji=False
  )
