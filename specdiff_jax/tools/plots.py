"""What the tools' plots share."""

from collections.abc import Iterator
import contextlib
import os
from typing import Any
import warnings

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

# As far from a white page as from a dark one (4.3 to 1), and no page of its own.
INK = '#797979'
_STYLE: dict[Any, Any] = {
  'text.parse_math': False,  # the name of a file may hold $
  'savefig.transparent': True,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.25,
  'legend.framealpha': 0,
  **dict.fromkeys(
    ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color'), INK
  ),
  **dict.fromkeys(('ytick.color', 'grid.color'), INK),
}
# Of Okabe and Ito: told apart by colour-blind readers, on white and on black.
_COLOURS = (
  '#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9', '#8a6d1f',
)  # fmt: skip
_DASHES = ('-', '--', '-.', ':')
_MARKERS = 'osD^vPX*'
_ENDINGS = ('.png', '.svg', '.pdf')


def check(path: str) -> None:
  """Raises InputError if no plot can be written to `path`."""
  folder = os.path.dirname(path) or '.'
  if _ending(path) not in _ENDINGS:
    fault = f'it does not end in {", ".join(_ENDINGS)}'
  elif not os.path.isdir(folder):
    fault = f'there is no folder {folder!r}'
  elif os.path.isdir(path):
    fault = 'it is a folder'
  elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
    fault = 'it is not writable'
  else:
    return
  raise _unwritable(path, fault)


def _ending(path: str) -> str:
  return os.path.splitext(path)[1].lower()


def _unwritable(path: str, fault: object) -> errors.InputError:
  return errors.InputError(
    f'The plot cannot be written to {path!r}: {fault}. Give a file in a folder '
    f'that exists, ending in {", ".join(_ENDINGS)}.'
  )


@contextlib.contextmanager
def canvas(path: str, title: str, wide: float, high: float) -> Iterator[Any]:
  """Yields a figure of matplotlib, which is then written to `path`.

  It can be read on white and on dark pages. Raises InputError if the file
  cannot be written, or its ending is unknown.
  """
  if _ending(path) not in _ENDINGS:
    raise _unwritable(path, 'its ending is unknown')
  import cycler
  import matplotlib  # half a second; only who plots waits for it
  from matplotlib import figure

  cycle: dict[Any, Any] = {'axes.prop_cycle': cycler.cycler(color=_COLOURS)}
  with matplotlib.rc_context(_STYLE | cycle):
    made = figure.Figure(figsize=(wide, high), layout='constrained')
    yield made
    made.suptitle(printing.one_line(title))
    with warnings.catch_warnings(), files.writing(path):
      # A name may have characters that the font lacks.
      warnings.filterwarnings('ignore', 'Glyph .* missing', UserWarning)
      with files.whole(path) as file:
        made.savefig(file, dpi=150, format=_ending(path)[1:])


def style(number: int, count: int) -> dict[str, Any]:
  """Returns how curve `number` of `count` is drawn.

  Curves that coincide stay visible: an earlier one is wider, and shows between
  the dashes of those above it.
  """
  below = (count - 1 - number) / max(1, count - 1)
  return {
    'color': f'C{number}',
    'linestyle': _DASHES[number % len(_DASHES)],
    'marker': _MARKERS[number % len(_MARKERS)],
    'linewidth': 1.2 + 2.4 * below,
    'markersize': 4 + 4 * below,
  }


def whole_numbers(axis: Any) -> None:
  """Has the ticks of an axis at steps or slots: whole numbers, at most ten."""
  from matplotlib import ticker

  axis.set_major_locator(
    ticker.MaxNLocator(10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
  )


def logarithmic(panel: Any, name: str = 'y') -> None:
  """Gives a panel a logarithmic axis whose ticks are plain decimals."""
  from matplotlib import ticker

  panel.set(**{f'{name}scale': 'log'})
  axis = getattr(panel, f'{name}axis')
  low, high = axis.get_view_interval()
  locator = ticker.LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,))
  if high / low < 10:  # too few of those
    locator = ticker.MaxNLocator(6)
  axis.set_major_locator(locator)
  axis.set_major_formatter('{x:g}')
  axis.set_minor_formatter(ticker.NullFormatter())
