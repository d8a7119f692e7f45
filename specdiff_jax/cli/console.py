"""Where the programs print: text and results on stdout, the rest on stderr.

Progress is a bar on a terminal. Elsewhere, as in the log of a cluster's job, it
is a line now and then, as long as a program runs: while it compiles too.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime
import json
import os
import sys
import threading
import time
from typing import Any

import rich.console
import rich.progress
import rich.table
import rich.text

from specdiff_jax.cli import failures
from specdiff_jax.core import interrupts
from specdiff_jax.core import printing
from specdiff_jax.tools import tables

_FIRST, _LONGEST = 8.0, 20.0  # seconds of silence: at first, and later


def out() -> rich.console.Console:
  """Returns the console of results; wide enough for tables in a pipe."""
  return _console(sys.stdout)


def say(text: str) -> None:
  """Writes one remark, plainly and on one line, to stderr.

  Where whoever read it has left, the program goes on without.
  """
  failures.tell(printing.one_line(text))


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


@dataclasses.dataclass(eq=False)
class _Task:
  """Work as a line of a log tells of it."""

  what: str
  total: int | None = None
  done: int = 0
  note: str = ''
  since: tuple[int, float] | None = None  # the first `done`, and when it came

  def update(self, done: int, total: int | None, note: str) -> None:
    """Notes what is done by now."""
    self.total = self.total if total is None else total
    self.done, self.note = done, note
    self.since = self.since or (done, time.monotonic())

  def line(self) -> str:
    """Returns what is done, how fast it goes, and how long it still takes."""
    words = self.what + (f' {self.done}/{self.total}' if self.total else '')
    parts = [words, self.note]
    if self.total and (self.since is None or self.done == self.since[0]):
      parts.append('starting')
    elif self.since and self.done > self.since[0]:
      rate = (self.done - self.since[0]) / (time.monotonic() - self.since[1])
      parts.append(
        f'{rate:.3g}/s' if rate > 0.1 else f'{_clock(1 / rate)} each'
      )
      if self.total:
        parts.append(f'ETA {_clock((self.total - self.done) / rate)}')
    return ', '.join(filter(None, parts))


@dataclasses.dataclass
class _Log:
  """What the lines of a log are about."""

  tasks: list[_Task]  # each within the one before
  speaks: bool  # of several processes the first does


_log = _Log([], False)


@contextlib.contextmanager
def ticking(name: str, distributed: bool) -> Iterator[None]:
  """Prints progress to stderr while a program runs, where there are no bars.

  Of `distributed` processes the first one does. Which that is only launchers
  know before they have joined, and not all say it.
  """
  if sys.stderr.isatty():
    yield
    return
  global _log
  numbers = map(os.environ.get, ('JAX_PROCESS_ID', 'SLURM_PROCID'))
  first = next(filter(None, numbers), '') == '0'
  _log = _Log([_Task(name)], first or not distributed)
  over, start = threading.Event(), time.monotonic()
  ticker = threading.Thread(target=_tick, args=(_log, over, start), daemon=True)
  ticker.start()
  try:
    yield
  finally:
    over.set()
    ticker.join()
    _log = _Log([], False)


def _tick(log: _Log, over: threading.Event, start: float) -> None:
  pause = _FIRST
  while not over.wait(pause):
    if log.speaks:
      elapsed = _clock(time.monotonic() - start)
      tasks = ': '.join(task.line() for task in log.tasks)
      say(f'{elapsed} {tasks if len(log.tasks) > 1 else tasks + " ..."}')
    pause = min(1.5 * pause, _LONGEST)


def _clock(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def _task(what: str, total: int | None = None) -> Iterator[_Task]:
  """Makes the lines report the work done inside."""
  task, log = _Task(what, total), _log
  if log.tasks and not log.speaks:  # they have joined by now
    from specdiff_jax.parallel import processes  # --help waits for no jax

    log.speaks = processes.is_first()
  log.tasks.append(task)
  try:
    yield task
  finally:
    log.tasks.remove(task)


@contextlib.contextmanager
def progress(
  what: str, total: int | None = None
) -> Iterator[Callable[..., None]]:
  """Shows work on stderr; yields `update(done, total, note)`."""
  with _task(what, total) as task, _bar(what, total) as bar:

    def update(done: int, total: int | None = None, note: str = '') -> None:
      task.update(done, total, note)
      bar(done, total, note)

    yield update


@contextlib.contextmanager
def _bar(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
  """Shows a bar on a terminal; yields its update."""
  columns = (
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn('{task.fields[note]}', markup=False),
  )
  with rich.progress.Progress(
    *columns, console=_console(sys.stderr), disable=not sys.stderr.isatty()
  ) as bar:
    task = bar.add_task(printing.one_line(what), total=total, note='')

    def update(done: int, total: int | None = None, note: str = '') -> None:
      note = printing.one_line(note)
      bar.update(task, completed=done, total=total, note=note)

    yield update


@contextlib.contextmanager
def patient(what: str) -> Iterator[Callable[..., None]]:
  """Does as `progress`, with a bar that appears if the work takes a second."""
  start = time.monotonic()
  with _task(what) as task, contextlib.ExitStack() as stack:
    bar = None

    def update(done: int, total: int | None = None, note: str = '') -> None:
      nonlocal bar
      task.update(done, total, note)
      if bar is None and time.monotonic() - start > 1.0:
        bar = stack.enter_context(_bar(what, total))
      if bar is not None:
        bar(done, total, note)

    yield update


@contextlib.contextmanager
def whole_or_not(
  what: str, while_stopping: str
) -> Iterator[Callable[..., None]]:
  """Does as `patient`, for work that leaves nothing half done.

  Ctrl-C is told `while_stopping`, and comes as KeyboardInterrupt from the update.
  """
  with interrupts.held(while_stopping), patient(what) as show:

    def update(done: int, total: int | None = None, note: str = '') -> None:
      if interrupts.came():
        raise KeyboardInterrupt
      show(done, total, note)

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
