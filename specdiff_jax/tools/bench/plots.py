"""A picture of a bench."""

from collections.abc import Sequence

from specdiff_jax.tools import plots
from specdiff_jax.tools.bench import metrics


def save(path: str, rows: Sequence[metrics.Row], title: str = '') -> None:
  """Draws speeds and acceptance curves into `path` (.png, .svg or .pdf).

  Raises InputError if the file cannot be written or its ending is unknown.
  """
  with plots.canvas(path, title, 9, 3.5) as canvas:
    speed, curve = canvas.subplots(1, 2)
    bars = speed.bar(
      [row.system for row in rows], [row.tokens_per_s for row in rows]
    )
    speed.bar_label(bars, [f'{row.speedup:.2f}x' for row in rows])
    speed.margins(y=0.1)  # room for the labels
    speed.set_ylabel('tokens/s, prefill excluded')
    drafted = [row for row in rows if len(row.histogram) > 1]
    for number, row in enumerate(drafted):
      values = metrics.surv(row.histogram)
      style = plots.style(number, len(drafted))
      curve.plot(range(1, len(values) + 1), values, **style, label=row.system)
    curve.set_xlabel('drafted position')
    curve.set_ylabel('accepted up to it')
    curve.set_ylim(0, 1)
    plots.whole_numbers(curve.xaxis)
    if curve.lines:
      curve.legend()
