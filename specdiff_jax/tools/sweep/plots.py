"""A picture of a sweep."""

from collections.abc import Sequence

from specdiff_jax.tools import plots
from specdiff_jax.tools.sweep import table


def save(path: str, rows: Sequence[table.Row], title: str = '') -> None:
  """Draws the runs of a sweep: how they learnt, and what each slot yields.

  Raises InputError if the file cannot be written or its ending is unknown.
  """
  rows = [row for row in rows if not row.failure]
  with plots.canvas(path, title, 9, 7.5) as canvas:
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
