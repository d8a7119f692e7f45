"""How a library tells of work that takes long: callbacks, silent by default.

`cli` prints; whatever is below it takes a `Progress` and a `Say`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib

Update = Callable[..., None]  # (done, total=None, note='')
# (what, total=None) -> a context whose value is the update of a bar.
Progress = Callable[..., contextlib.AbstractContextManager[Update]]
Say = Callable[[str], None]


@contextlib.contextmanager
def silent(what: str, total: int | None = None) -> Iterator[Update]:
  """Shows no bar."""
  del what, total
  yield lambda *_: None


def unheard(text: str) -> None:
  """Says nothing."""
  del text
