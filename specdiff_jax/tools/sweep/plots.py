"""A picture of a sweep."""

from collections.abc import Sequence

from specdiff_jax.tools import plots
from specdiff_jax.tools.sweep import table

_SEEDS = 'mean over seeds, with one standard deviation'


def save(path: str, rows: Sequence[table.Row], title: str = '') -> None:
  """Draws the runs of a sweep: how they learnt, and what each slot yields.

  Runs that differ in their seed alone are one curve. Raises InputError if the
  file cannot be written or its ending is unknown.
  """
  groups = table.groups([row for row in rows if not row.failure])
  with plots.canvas(path, title, 9, 7.5) as canvas:
    panels = canvas.subplots(2, 2)
    (learnt, tau), (agree, surv) = panels
    for number, group in enumerate(groups):
      style = plots.style(number, len(groups))
      for panel, name in ((learnt, 'streak'), (tau, 'tau')):
        steps, means, spreads = group.over_steps(name)
        dots = style if len(steps) <= 10 else style | {'marker': ''}
        panel.plot(steps, means, **dots, label=group.name)
        low, high = (
          [mean + sign * spread for mean, spread in zip(means, spreads)]
          for sign in (-1, 1)
        )
        panel.fill_between(steps, low, high, color=style['color'], alpha=0.2)
      # Beside each other, so that their bars can be told apart.
      shift = 0.3 * (number - (len(groups) - 1) / 2) / max(1, len(groups))
      for panel, name in ((agree, 'agree'), (surv, 'surv')):
        slots = [
          (j, *one)
          for j, one in enumerate(group.curve(name), 1)
          if one and one[0] > 0  # 0 has no logarithm
        ]
        panel.errorbar(
          [j + shift for j, _, _ in slots],
          [mean for _, mean, _ in slots],
          [spread for _, _, spread in slots],
          **style,
          elinewidth=1,
        )
    learnt.set(xlabel='step', ylabel='J of the training windows')
    tau.set(xlabel='step', ylabel='held-out tau')
    agree.set(xlabel='slot j', ylabel='agree_j')
    surv.set(xlabel='slot j', ylabel='surv_j')
    for panel in (agree, surv):
      plots.logarithmic(panel)
    for panel in panels.flat:
      plots.whole_numbers(panel.xaxis)
    if groups:
      several = any(len(group.rows) > 1 for group in groups)
      canvas.legend(
        *tau.get_legend_handles_labels(),
        loc='outside lower center',
        ncols=min(len(groups), 4),
        title=_SEEDS if several else None,
      )
