"""What the tools' plots share."""

from collections.abc import Iterator
import contextlib
import os
from typing import Any

from specdiff_jax.core import errors

_ENDINGS = ('.png', '.svg', '.pdf')


def check(path: str) -> None:
  """Raises InputError if no plot can be written to `path`."""
  folder = os.path.dirname(path) or '.'
  if os.path.splitext(path)[1].lower() not in _ENDINGS:
    fault = f'it does not end in {", ".join(_ENDINGS)}'
  elif not os.path.isdir(folder):
    fault = f'there is no folder {folder!r}'
  elif os.path.isdir(path):
    fault = 'it is a folder'
  elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
    fault = 'it is not writable'
  else:
    return
  raise errors.InputError(
    f'The plot cannot be written to {path!r}: {fault}. Give a file in a folder '
    'that exists, ending in .png, .svg or .pdf.'
  )


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
