"""A sweep's table and picture: seeds are brought together, curves told apart."""

import contextlib
import json

import numpy as np
import pytest

from specdiff_jax.tools import plots
from specdiff_jax.tools.sweep import plots as sweep_plots
from specdiff_jax.tools.sweep import table


def row(tau, failure='', agree=(0.5, 0.25), **values):
  """Returns a run whose tau ends at `tau`."""
  lines = [{'step': 5, 'streak': tau / 2}, {'step': 10, 'streak': tau}]
  lines += [{'step': 10, 'eval': {'tau': tau}}]
  result = {
    'loss': 1.0,
    'steps': 10,
    'tau_eval': tau,
    'evaluation': {'agree': list(agree), 'surv': [0.5, 0.0]},
  }
  return table.Row(values, 'd', failure, {} if failure else result, lines)


SEEDS = [
  row(1.0, loss='ce', seed='0'),
  row(9.0, loss='kl', seed='0'),
  row(2.0, loss='ce', seed='1'),
  row(3.0, loss='ce', seed='2', agree=(0.7, None)),
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """Returns what draws rows, and gives the figure."""
  figures, real = [], plots.canvas

  @contextlib.contextmanager
  def canvas(*args):
    with real(*args) as figure:
      figures.append(figure)
      yield figure

  monkeypatch.setattr(plots, 'canvas', canvas)

  def draw(rows):
    sweep_plots.save(str(tmp_path / 'a.png'), rows)
    return figures[-1]

  return draw


def test_runs_that_differ_in_their_seed_are_one_group():
  ce, kl = table.groups(SEEDS)
  assert (ce.name, len(ce.rows), kl.name, len(kl.rows)) == (
      'loss=ce', 3, 'loss=kl', 1,
  )  # fmt: skip
  assert ce.over_steps('tau') == ([10], [2.0], [1.0])
  assert ce.over_steps('streak') == ([5, 10], [1.0, 2.0], [0.5, 1.0])
  assert kl.over_steps('tau') == ([10], [9.0], [0.0])
  first, second = ce.curve('agree')
  assert first == pytest.approx((1.7 / 3, 0.2 / 3**0.5))
  assert second == (0.25, 0.0)  # of those that have it
  (alone,) = table.groups([row(1.0, seed='0'), row(2.0, seed='1')])
  assert alone.name == '2 seeds'


def test_a_step_that_one_run_lacks_is_left_out():
  short = row(4.0, loss='ce', seed='3')
  short.lines.pop(0)
  (group,) = table.groups([SEEDS[0], short])
  assert group.over_steps('streak')[0] == [10]


def test_the_table_has_means_over_seeds():
  sweep = table.Sweep([*SEEDS, row(0.0, 'no', loss='kl', seed='1')])
  lines = [list(line) for line in sweep.table().rows]
  assert len(lines) == 6  # one of kl is done alone
  assert lines[-1] == [
      'ce', '3 seeds', 'mean', '10', '1.000 ±0.000', '2.000 ±1.000',
      '0.567 ±0.115', '0.250 ±0.000', '0.000 ±0.000',
  ]  # fmt: skip
  assert 'standard deviation' in sweep.legend
  (told,) = json.loads(json.dumps(sweep.to_json('r')))['over_seeds']
  assert told['values'] == {'loss': 'ce'} and told['seeds'] == ['0', '1', '2']
  assert told['tau_eval'] == {'mean': 2.0, 'std': 1.0}


def test_the_table_of_one_seed_is_as_it_was():
  sweep = table.Sweep(SEEDS[:2])
  assert [line[2] for line in sweep.table().rows] == ['done', 'done']
  assert sweep.legend == table.LEGEND
  assert sweep.to_json('r')['over_seeds'] == []


def test_the_picture_has_bars_and_says_of_what(drawn):
  figure = drawn(SEEDS)
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == [
      'loss=ce', 'loss=kl',
  ]  # fmt: skip
  assert 'standard deviation' in legend.get_title().get_text()
  learnt, tau, agree, _ = figure.axes
  np.testing.assert_array_equal(learnt.lines[0].get_ydata(), [1.0, 2.0])
  band = learnt.collections[0].get_paths()[0].vertices
  assert band[:, 1].min() == 0.5 and band[:, 1].max() == 3.0
  assert len(agree.containers) == 2  # with error bars
  alone = drawn(SEEDS[:2]).legends[0].get_title().get_text()
  assert not alone


def test_a_spread_beyond_the_mean_leaves_the_axis_to_the_means(drawn):
  """Its bar ends below the panel: 0 and less have no logarithm."""
  wide = [
    row(1.0, agree=agree, loss='ce', seed=str(i))
    for i, agree in enumerate([(0.9, 0.1), (0.8, 0.001)])
  ]
  low, high = drawn(wide).axes[2].get_ylim()
  assert 0.02 < low < 0.0505 < 0.85 < high < 2


def test_curves_that_coincide_are_told_apart(drawn):
  figure = drawn([row(1.0, loss=name) for name in ('ce', 'kl', 'streak')])
  for panel in figure.axes:
    lines = [line for line in panel.lines if len(line.get_xdata()) > 0]
    shown = [lines[i] for i in range(3)]
    for what in ('color', 'linestyle', 'linewidth'):
      assert len({getattr(x, f'get_{what}')() for x in shown}) == 3
    widths = [line.get_linewidth() for line in shown]
    assert widths == sorted(widths, reverse=True)  # the first is below


def test_it_is_drawn_for_light_and_dark_pages(drawn, tmp_path):
  """No page of its own, and ink that is as far from white as from black."""
  from matplotlib import colors
  from matplotlib import image

  figure = drawn(SEEDS)
  pixels = image.imread(str(tmp_path / 'a.png'))
  assert pixels.shape[-1] == 4 and pixels[0, 0, 3] == 0  # transparent
  assert (pixels[..., 3] == 0).mean() > 0.5

  def luminance(color):
    rgb = np.array(colors.to_rgb(color))
    linear = np.where(
      rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]

  for label in (figure.axes[0].xaxis.label, figure.legends[0].get_texts()[0]):
    ink = luminance(label.get_color())
    for page in ('#ffffff', '#0d1117'):
      light, dark = sorted((ink, luminance(page)), reverse=True)
      assert (light + 0.05) / (dark + 0.05) > 4


@pytest.mark.parametrize('agree', [(0.6, 0.55), (0.9, 0.02), (0.9, 1e-5)])
def test_ticks_can_be_read(drawn, agree):
  """Whole slots and steps; plain decimals, several of them, on a log axis."""
  figure = drawn([row(1.0, loss='ce', agree=agree)])
  figure.canvas.draw()
  for panel in figure.axes:
    low, high = panel.get_xlim()
    ticks = [x for x in panel.get_xticks() if low <= x <= high]
    assert ticks and all(x == round(x) for x in ticks)
  panel = figure.axes[2]
  low, high = panel.get_ylim()
  shown = [
    label.get_text()
    for label in panel.get_yticklabels()
    if low <= label.get_position()[1] <= high
  ]
  assert len(shown) >= 2
  assert all(
    '$' not in text and float(text.replace('\N{MINUS SIGN}', '-')) > 0
    for text in shown
  )


def test_nothing_done_is_an_empty_picture(drawn, tmp_path):
  assert not drawn([row(0.0, 'no', loss='ce')]).legends
  assert (tmp_path / 'a.png').stat().st_size > 1000
