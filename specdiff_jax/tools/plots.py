"""What the tools' plots share."""

from collections.abc import Iterator
import contextlib
from typing import Any

from specdiff_jax.core import errors


@contextlib.contextmanager
def canvas(path: str, title: str, wide: float, high: float) -> Iterator[Any]:
  """Yields a figure of matplotlib, which is then written to `path`.

  Raises InputError if the file cannot be written or its ending is unknown.
  """
  from matplotlib import figure  # half a second; only who plots waits for it

  made = figure.Figure(figsize=(wide, high), layout='constrained')
  yield made
  made.suptitle(title, parse_math=False)  # a path may hold $
  try:
    made.savefig(path, dpi=150)
  except (OSError, ValueError) as error:
    raise errors.InputError(
      f'The plot cannot be written to {path!r}: {error}. Give a file in a '
      'folder that exists, ending in .png, .svg or .pdf.'
    ) from error
