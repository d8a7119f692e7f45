"""A picture of a bench run, and one of a sweep."""

from collections.abc import Sequence

from specdiff_jax.core import errors
from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.sweep import table as sweep_lib


def save(path: str, rows: Sequence[metrics.Row], title: str = '') -> None:
  """Draws speeds and acceptance curves into `path` (.png, .svg or .pdf).

  Raises InputError if the file cannot be written or its ending is unknown.
  """
  from matplotlib import figure  # half a second; only who plots waits for it

  canvas = figure.Figure(figsize=(9, 3.5), layout='constrained')
  speed, curve = canvas.subplots(1, 2)
  bars = speed.bar(
    [row.system for row in rows], [row.tokens_per_s for row in rows]
  )
  speed.bar_label(bars, [f'{row.speedup:.2f}x' for row in rows])
  speed.margins(y=0.1)  # room for the labels
  speed.set_ylabel('tokens/s, prefill excluded')
  for row in rows:
    if len(row.histogram) > 1:
      values = metrics.surv(row.histogram)
      curve.plot(range(1, len(values) + 1), values, 'o-', label=row.system)
  curve.set_xlabel('drafted position')
  curve.set_ylabel('accepted up to it')
  curve.set_ylim(0, 1)
  curve.xaxis.get_major_locator().set_params(integer=True)
  if curve.lines:
    curve.legend()
  canvas.suptitle(title, parse_math=False)  # a path may hold $
  _write(canvas, path)


def save_sweep(
  path: str, rows: Sequence[sweep_lib.Row], title: str = ''
) -> None:
  """Draws the runs of a sweep: how they learnt, and what they came to by slot.

  Raises InputError if the file cannot be written or its ending is unknown.
  """
  from matplotlib import figure

  rows = [row for row in rows if not row.failure]
  canvas = figure.Figure(figsize=(9, 7.5), layout='constrained')
  panels = canvas.subplots(2, 2)
  (learnt, tau), (agree, surv) = panels
  for row in rows:
    learnt.plot(*row.over_steps('streak'), label=row.name)
    tau.plot(*row.over_steps('tau'), 'o-')
    for panel, name in ((agree, 'agree'), (surv, 'surv')):
      values = [v or float('nan') for v in row.curve(name)]  # 0: no logarithm
      panel.plot(range(1, len(values) + 1), values, 'o-', markersize=3)
  learnt.set(xlabel='step', ylabel='J of the training windows')
  tau.set(xlabel='step', ylabel='held-out tau')
  agree.set(xlabel='slot j', ylabel='agree_j', yscale='log')
  surv.set(xlabel='slot j', ylabel='surv_j', yscale='log')
  for panel in panels.flat:
    panel.xaxis.get_major_locator().set_params(integer=True)
  if rows:
    canvas.legend(loc='outside lower center', ncols=min(len(rows), 4))
  canvas.suptitle(title, parse_math=False)  # a path may hold $
  _write(canvas, path)


def _write(canvas, path: str) -> None:
  try:
    canvas.savefig(path, dpi=150)
  except (OSError, ValueError) as error:
    raise errors.InputError(
      f'The plot cannot be written to {path!r}: {error}. Give a file in a '
      'folder that exists, ending in .png, .svg or .pdf.'
    ) from error
