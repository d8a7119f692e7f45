"""Defers Ctrl-C while work is done that must not be torn.

In a program of ours `cli.interrupts` watches for it. Where the library is
embedded nothing does, and nothing here has an effect.
"""

from collections.abc import Iterator
import contextlib
import threading

_changed = threading.Condition()
_held: list[str] = []
_came = _over = False


@contextlib.contextmanager
def held(what: str) -> Iterator[None]:
  """Has an interrupt wait for the work within; `what` then says why.

  After an interrupt no such work begins any more: the caller is stopped here,
  and the program ends.

  Example:
    with held('finishing journal.jsonl'):
      write()
  """
  with _changed:
    if _came and not _held:
      _changed.wait_for(lambda: False)
    _held.append(what)
  try:
    yield
  finally:
    with _changed:
      _held.remove(what)
      _changed.notify_all()


def came() -> bool:
  """Returns whether the program is to end."""
  return _came


def come() -> str | None:
  """Notes an interrupt; returns what it has to wait for, '' if nothing.

  None where the program is over, and ends by itself.
  """
  global _came
  with _changed:
    if _over:
      return None
    _came = True
    return _held[0] if _held else ''


def over() -> bool:
  """Says that the program is over; returns whether an interrupt came before."""
  global _over
  with _changed:
    _over = True
    return _came


def wait() -> None:
  """Returns once nothing is held."""
  with _changed:
    _changed.wait_for(lambda: not _held)
