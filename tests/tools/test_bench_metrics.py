"""Figures of the bench, on measurements made by hand."""

import dataclasses

import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.bench import plots
from specdiff_jax.tools.bench import report
from specdiff_jax.tools.bench import result
from specdiff_jax.tools.bench import timing

SIZE = {'gamma': 3, 'drafts': 1, 'verify_tokens': 4}


def completion(tokens, cycles, accepted):
  return request_lib.Completion(
    0, np.asarray(tokens), cycles, len(tokens) - 1, np.asarray(accepted)
  )


def measured(speeds, completions):
  rounds = tuple(timing.Round(100, 101, 100 / s, 200 / s) for s in speeds)
  return timing.Measurement(rounds, tuple(completions), True, 0)


AR = measured([10, 10, 20], [completion([5, 6, 7, 8], 3, [3])])
DRAFTED = measured([20, 30, 80], [completion([5, 6, 7, 8], 2, [1, 1, 0])])


def row_of(system, measured, reference):
  return metrics.row(
    system, measured, ar=AR, fastest_ar=AR, reference=reference, size=SIZE
  )


def test_row():
  row = row_of('x', DRAFTED, [[5, 6, 7, 8]])
  assert row.tokens_per_s == pytest.approx(30)
  assert row.speedup == pytest.approx(3)  # of 2, 3, 4
  assert row.speedup_best == pytest.approx(4)
  assert row.tau == pytest.approx(1.5)
  assert row.accepted == pytest.approx(0.5)
  assert (row.exact, row.new_tokens, row.cycles) == (True, 4, 2)
  # Three times as fast with half a token more a cycle: it takes half a step.
  assert row.break_even_tau == pytest.approx(0.5)
  assert '0.50' in report.table([row]).rows[0]
  assert row_of('ar', AR, [[5]]).break_even_tau == 1
  still = dataclasses.replace(row, speedup=0.0)
  assert still.break_even_tau is None and '-' in report.table([still]).rows[0]


@pytest.mark.parametrize('wrong', [[5, 6, 7, 9], [5, 6, 7], [5, 6, 7, 8, 8]])
def test_a_differing_row_is_not_exact(wrong):
  row = row_of('x', DRAFTED, [wrong])
  assert not row.exact and row.mismatched_rows == 1


def test_rounds_that_differ_are_not_exact():
  shaky = dataclasses.replace(DRAFTED, repeatable=False)
  assert not row_of('x', shaky, [[5, 6, 7, 8]]).exact


def test_curves():
  histogram = [1, 1, 2]
  assert metrics.surv(histogram) == [0.75, 0.5]
  assert metrics.cond(histogram) == [0.75, pytest.approx(2 / 3)]
  assert sum(metrics.surv(histogram)) == metrics.mean_accepted(histogram)
  assert metrics.cond([4, 0, 0]) == [0.0, None]
  assert metrics.surv([]) == []
  assert metrics.add([[1, 2], [3], []]) == (4, 2)


def test_why_drafts_ended():
  whys = np.array([[2, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 2]])
  one = dataclasses.replace(completion([5, 6, 7, 8], 4, whys.sum(1)), ends=whys)
  row = row_of('x', measured([20] * 3, [one, one]), [[5, 6, 7, 8]] * 2)
  assert row.ends == {
    'not in top-K': (4, 0, 0),
    'wrong parent': (2, 0, 0),
    'budget': (0, 6, 0),
    'end': (0, 0, 4),
  }
  found = report.ends([row])
  assert found is not None
  assert found.rows[2] == ('x', 'budget', '0.0%', '75.0%', '0.0%')
  assert report.ends([row_of('ar', AR, [[]])]) is None


def test_report_and_plot(tmp_path):
  rows = [
    row_of('ar', AR, [[5, 6, 7, 8]]),
    row_of('x', DRAFTED, [[0]]),
  ]
  found = result.BenchResult(
    rows,
    verifier='v',
    device='d',
    dtype='float32',
    temperature=0.0,
    rounds=3,
    exact=True,
    settings={'gamma': 3},
    ar_tokens_per_s=2.0,
    fastest_ar_tokens_per_s=4.0,
    fastest_ar_dtype='bfloat16',
    ar_rows_unlike_reference=0,
  )
  main, curves = found.tables()
  assert len(main.rows) == len(curves.rows) == 2
  assert report.curves(rows[:1]) is None
  assert main.rows[1][:3] == ('x', '30.0', '3.00x') and found.legend()
  assert not found.passed and found.ar_over_rival is None
  line = found.to_json('c')
  assert list(line) == [
      'schema', 'device', 'fastest_ar_tokens_per_s', 'config', 'verifier',
      'dtype', 'temperature', 'systems', 'settings', 'rounds',
      'fastest_ar_dtype', 'ar_rows_unlike_reference', 'peak_memory_bytes',
      'read_bandwidth', 'ar_bandwidth',
  ]  # fmt: skip
  rivals = [metrics.Rival('a', '1.0', 4.0), metrics.Rival('b', 'pip install b')]
  table = dataclasses.replace(found, rivals=rivals).tables()[-1]
  assert table.rows[0] == ('a', '1.0', '4.0', '0.50x', '7.50x')
  assert table.rows[1] == ('b', 'pip install b', '-', '-', '-')
  rivalled = dataclasses.replace(found, rival_tokens_per_s=1.0, rivals=rivals)
  rivalled = rivalled.to_json()
  assert [one['tokens_per_s'] for one in rivalled['rivals']] == [4.0, None]
  assert rivalled['rival'] == 'transformers' and rivalled['ar_over_rival'] == 2
  assert list(line['systems'][0])[:11] == [
      'system', 'tokens_per_s', 'speedup', 'speedup_over_fastest_ar', 'tau',
      'accepted', 'exact', 'prompts', 'new_tokens', 'recompiles', 'cycles',
  ]  # fmt: skip
  assert [s['exact'] for s in line['systems']] == [True, False]
  plots.save(str(tmp_path / 'a.png'), rows)
  assert (tmp_path / 'a.png').stat().st_size > 1000
  with pytest.raises(errors.InputError, match='nowhere'):
    plots.save(str(tmp_path / 'nowhere' / 'a.png'), rows)
