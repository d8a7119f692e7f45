"""Who is told of work that takes long; `cli.console` prints it."""

from collections.abc import Callable
import contextlib
from typing import Protocol

Update = Callable[..., None]  # (done, total=None, note='')


class Reporter(Protocol):
  """Takes progress and remarks of a library."""

  def progress(
    self, what: str, total: int | None = None
  ) -> contextlib.AbstractContextManager[Update]:
    """Returns a context whose value moves a bar."""
    ...

  def say(self, text: str) -> None:
    """Takes one remark."""


class _Silent:
  def progress(
    self, what: str, total: int | None = None
  ) -> contextlib.AbstractContextManager[Update]:
    del what, total
    return contextlib.nullcontext(lambda *_: None)

  def say(self, text: str) -> None:
    del text


SILENT: Reporter = _Silent()
