"""The figures of a report, each drawn where the results have what it shows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from specdiff_jax.core import types
from specdiff_jax.tools import plots
from specdiff_jax.tools.report import results as results_lib


class Figure(NamedTuple):
  """A picture, and what to see in it."""

  name: str
  title: str
  caption: str
  draw: Callable[[Any], None]  # onto a figure of matplotlib
  wide: float
  high: float

  def save(self, path: str) -> None:
    """Writes it as .png, .svg or .pdf."""
    with plots.canvas(path, '', self.wide, self.high) as canvas:
      self.draw(canvas)


_MEAN = (
  'A point is the mean over the results that it is measured in: give the same '
  'prompts at each.'
)


def of(results: results_lib.Results) -> list[Figure]:
  """Returns what can be drawn of these results."""
  made = (
    _speed,
    _budget,
    _acceptance,
    _ends,
    _cycle,
    _prediction,
    _temperature,
    _drafts,
    _learnt,
  )
  return [one for make in made if (one := make(results)) is not None]


def _systems(benches: Sequence[results_lib.Bench]) -> list[str]:
  """Returns the systems of all results, in the order of the first."""
  names = (row['system'] for bench in benches for row in bench.systems)
  return list(dict.fromkeys(names))


def _rows(bench: results_lib.Bench, key: str) -> dict[str, Any]:
  """Returns the rows by system that have something under a key."""
  return {row['system']: row for row in bench.systems if row.get(key)}


def _grid(canvas: Any, count: int, **more: Any) -> list[Any]:
  """Returns panels, at most two beside each other."""
  wide = min(count, 2)
  panels = canvas.subplots(-(-count // wide), wide, squeeze=False, **more).flat
  for panel in panels[count:]:
    panel.set_visible(False)
  return list(panels[:count])


def _high(count: int, each: float = 2.9) -> float:
  return each * -(-count // 2) + 0.6


def _speed(results):
  benches = results.benches
  names = [name for name in _systems(benches) if name != 'ar']
  if not names:
    return None

  def draw(canvas):
    panel, room = canvas.subplots(), 0.8 / len(names)
    for number, name in enumerate(names):
      found = [_rows(bench, 'speedup').get(name) for bench in benches]
      bars = panel.bar(
        [i + (number - (len(names) - 1) / 2) * room for i in range(len(found))],
        [row['speedup'] if row else 0.0 for row in found],
        room * 0.92,
        label=name,
        color=f'C{number}',
      )
      told = [f'{row["speedup"]:.2f}' if row else '' for row in found]
      panel.bar_label(bars, told, fontsize=8, padding=1)
    panel.axhline(1, linestyle='--', linewidth=1, color=plots.INK)
    names_of = [bench.name for bench in benches]
    long = max(map(len, names_of)) > 6 * len(names)
    aside = {'rotation': 30, 'ha': 'right'} if long and len(benches) > 1 else {}
    panel.set_xticks(range(len(benches)), names_of, **aside)
    panel.grid(axis='x', visible=False)
    panel.margins(y=0.12)
    panel.set_ylabel('speed over plain decoding')
    _one_legend(canvas, [panel])

  return Figure(
    'speedup', 'Speed-up', 'Decoding speed over plain decoding of the same '
    'verifier in the same dtype (dashed: as fast). Prefill is in neither.',
    draw, max(5.0, 1.6 + 0.55 * len(names) * len(benches)), 3.8,
  )  # fmt: skip


def _budget(results):
  benches = [one for one in results.benches if any(map(_times, one.systems))]
  if not benches:
    return None
  names = _systems(benches)

  def draw(canvas):
    panels = _grid(canvas, len(benches), sharey=True)
    for bench, panel in zip(benches, panels):
      found = {n: r for n, r in _rows(bench, 'graded').items() if _times(r)}
      last = 1.1 * max(t for row in found.values() for t, _ in _times(row))
      for name, row in found.items():
        times = _times(row)
        # Nothing is answered before the first.
        right = [times[0][0], *(t for t, correct in times if correct)]
        share = [100 * n / len(times) for n in range(len(right))]
        style = plots.style(names.index(name), len(names)) | {'marker': ''}
        panel.step(
          [*right, last], [*share, share[-1]], where='post', label=name, **style
        )
      panel.set_title(bench.name, fontsize=10)
      panel.set_xlabel('seconds for each prompt')
      panel.set_ylim(bottom=0)
      plots.logarithmic(panel, 'x')
    panels[0].set_ylabel('answered correctly, %')
    _one_legend(canvas, panels)

  return Figure(
    'budget', 'Accuracy in a time budget', 'Share of prompts that are answered '
    'correctly within so many seconds each. Prompts whose answer could not be '
    'graded, or that were decoded together with others, are left out.',
    draw, 8.5 if len(benches) > 1 else 5.5, _high(len(benches)),
  )  # fmt: skip


def _times(row) -> list[tuple[float, bool]]:
  """Returns (seconds, whether it was correct) of graded prompts, ascending."""
  return sorted(
    (one['seconds'], one['correct'])
    for one in row.get('graded') or ()
    if one['correct'] is not None and one['seconds'] is not None
  )


def _acceptance(results):
  benches = [one for one in results.benches if _rows(one, 'cond')]
  if not benches:
    return None
  names = _systems(benches)

  def draw(canvas):
    panels = _grid(canvas, len(benches), sharey=True)
    for bench, panel in zip(benches, panels):
      for name, row in _rows(bench, 'cond').items():
        curve = [(j, x) for j, x in enumerate(row['cond'], 1) if x is not None]
        style = plots.style(names.index(name), len(names))
        panel.plot(*zip(*curve), **style, label=name)
      panel.set_title(bench.name, fontsize=10)
      panel.set_ylim(0, 1)
      panel.set_xlabel('drafted position')
      plots.whole_numbers(panel.xaxis)
    panels[0].set_ylabel('accepted, given the one before')
    _one_legend(canvas, panels)

  return Figure(
    'acceptance', 'Acceptance by position', 'How often a drafted token is '
    'accepted where the one before it was. Streak-distillation is to hold this '
    'up at late positions.',
    draw, 8.5 if len(benches) > 1 else 5.0, _high(len(benches)),
  )  # fmt: skip


def _one_legend(canvas, panels) -> None:
  found: dict[str, Any] = {}
  for panel in panels:
    for handle, label in zip(*panel.get_legend_handles_labels()):
      found.setdefault(label, handle)
  if found:
    canvas.legend(
      list(found.values()), list(found), loc='outside lower center',
      ncols=min(len(found), 5),
    )  # fmt: skip


def _ends(results):
  benches = [one for one in results.benches if _rows(one, 'ends')]
  if not benches:
    return None

  def draw(canvas):
    panels = _grid(canvas, len(benches), sharex=True)
    for bench, panel in zip(benches, panels):
      rows = {n: r for n, r in _rows(bench, 'ends').items() if r.get('cond')}
      left = dict.fromkeys(rows, 0.0)
      for number, name in enumerate(types.ENDS):
        shares = {
          system: 100 * sum(row['ends'].get(name, ())) / max(row['cycles'], 1)
          for system, row in rows.items()
        }
        panel.barh(
          list(rows), list(shares.values()), 0.7, list(left.values()),
          label=name, color=f'C{number}',
        )  # fmt: skip
        left = {system: left[system] + shares[system] for system in rows}
      panel.invert_yaxis()
      panel.set_title(bench.name, fontsize=10)
      panel.set_xlabel('% of cycles')
      panel.grid(axis='y', visible=False)
    _one_legend(canvas, panels)

  told = '; '.join(f'{n}: the next token {w}' for n, w in types.ENDS.items())
  return Figure(
    'ends', 'Why drafts end', f'Share of cycles. {told}.',
    draw, 8.5 if len(benches) > 1 else 5.0, _high(len(benches), 2.4),
  )  # fmt: skip


def _cycle(results):
  benches = [one for one in results.benches if _rows(one, 'r')]
  if not benches:
    return None
  parts = {'r': 'verifying', 'c_draft': 'drafting', 'cycle_overhead': 'other'}

  def draw(canvas):
    panels = _grid(canvas, len(benches))
    for bench, panel in zip(benches, panels):
      rows = _rows(bench, 'r')
      left = [0.0] * len(rows)
      for number, (key, label) in enumerate(parts.items()):
        size = [_in_steps(row, key) for row in rows.values()]
        panel.barh(list(rows), size, 0.7, left, label=label, color=f'C{number}')
        left = [a + b for a, b in zip(left, size)]
      for place, row in enumerate(rows.values()):
        panel.plot(
          row['tau'], place, marker='D', color='black', markeredgecolor='white'
        )
      panel.invert_yaxis()
      panel.set_title(bench.name, fontsize=10)
      panel.set_xlabel('plain steps')
      panel.grid(axis='y', visible=False)
    _one_legend(canvas, panels)

  return Figure(
    'cycle', 'What a cycle costs', 'Time of a cycle in steps of plain decoding. '
    'The mark is tau, the tokens that it yields: a system is faster than plain '
    'decoding where it lies beyond the bar.',
    draw, 8.5 if len(benches) > 1 else 5.0, _high(len(benches), 2.4),
  )  # fmt: skip


def _in_steps(row, key: str) -> float:
  """Returns a part of a cycle in plain steps; the overhead is a share of it."""
  if key != 'cycle_overhead':
    return row[key]
  return max(0.0, row[key] * (row['r'] + row['c_draft']))


def _prediction(results):
  found = [
    (bench.name, row)
    for bench in results.benches
    for row in _rows(bench, 'predicted_speedup').values()
  ]
  if not found:
    return None
  names = list(dict.fromkeys(name for name, _ in found))

  def draw(canvas):
    panel = canvas.subplots()
    for number, name in enumerate(names):
      rows = [row for one, row in found if one == name]
      x = [row['predicted_speedup'] for row in rows]
      y = [row['speedup'] for row in rows]
      style = plots.style(number, len(names)) | {'linestyle': ''}
      panel.plot(x, y, **style, label=name)
      for row in rows:
        at = row['predicted_speedup'], row['speedup']
        panel.annotate(
          row['system'], at, (5, 4), textcoords='offset points', fontsize=8
        )
    panel.axline((1, 1), slope=1, linestyle='--', linewidth=1, color=plots.INK)
    panel.set(xlabel='predicted: tau over a cycle', ylabel='measured speed-up')
    panel.margins(0.15)
    _one_legend(canvas, [panel])

  return Figure(
    'prediction', 'Predicted and measured', 'tau over a cycle that is timed '
    'alone, against the speed-up that was measured (dashed: equal).',
    draw, 5.0, 4.2,
  )  # fmt: skip


def _taus(results) -> dict[tuple[str, int, float], float]:
  """Returns tau by system, drafts K and temperature: means over results."""
  found: dict[tuple[str, int, float], list[float]] = {}
  for bench in results.benches:
    heat = bench.told.get('temperature', 0.0)
    for row in bench.systems:
      if row['system'] != 'ar':
        key = row['system'], row.get('drafts') or 1, heat
        found.setdefault(key, []).append(row['tau'])
  return {key: sum(taus) / len(taus) for key, taus in found.items()}


def _temperature(results):
  points: dict[tuple[str, int], dict[float, float]] = {}
  for (system, drafts, heat), tau in _taus(results).items():
    points.setdefault((system, drafts), {})[heat] = tau
  if len({t for at in points.values() for t in at}) < 2:
    return None

  def draw(canvas):
    panel = canvas.subplots()
    for number, ((system, drafts), at) in enumerate(points.items()):
      style = plots.style(number, len(points))
      label = f'{system}, K {drafts}' if drafts > 1 else system
      panel.plot(*zip(*sorted(at.items())), **style, label=label)
    panel.set(xlabel='temperature', ylabel='tau')
    _one_legend(canvas, [panel])

  return Figure(
    'temperature', 'Temperature', 'Tokens for each call of the verifier, by '
    f'temperature, system and number of drafts K. {_MEAN}',
    draw, 5.5, 4.2,
  )  # fmt: skip


def _drafts(results):
  curves: dict[tuple[str, float], dict[int, float]] = {}
  for (system, drafts, heat), tau in _taus(results).items():
    curves.setdefault((system, heat), {})[drafts] = tau
  curves = {key: at for key, at in curves.items() if len(at) > 1}
  if not curves:
    return None

  def draw(canvas):
    panel = canvas.subplots()
    for number, ((system, heat), at) in enumerate(curves.items()):
      style = plots.style(number, len(curves))
      label = f'{system}, temperature {heat:g}'
      panel.plot(*zip(*sorted(at.items())), **style, label=label)
    panel.set(xlabel='drafts K', ylabel='tau')
    plots.whole_numbers(panel.xaxis)
    _one_legend(canvas, [panel])

  return Figure(
    'drafts', 'Number of drafts', 'Tokens for each call of the verifier, by the '
    f'number K of drafts of a pass, system and temperature. {_MEAN}',
    draw, 5.5, 4.2,
  )  # fmt: skip


def _learnt(results):
  runs = [run for run in results.runs if run.curve]
  if not runs:
    return None

  def draw(canvas):
    panel = canvas.subplots()
    for number, run in enumerate(runs):
      style = plots.style(number, len(runs))
      style = style if len(run.curve) <= 12 else style | {'marker': ''}
      # Legends leave out names that begin with _.
      name = f' {run.name}' if run.name.startswith('_') else run.name
      panel.plot(*zip(*run.curve), **style, label=name)
    panel.set(xlabel='step', ylabel='held-out tau')
    plots.whole_numbers(panel.xaxis)
    _one_legend(canvas, [panel])

  return Figure(
    'distillation', 'Distillation', 'tau on held-out trajectories while '
    'drafters learn, simulated with the drafter alone.',
    draw, 5.5, 4.0,
  )  # fmt: skip
