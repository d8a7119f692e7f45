"""Progress without a terminal: lines in the log, from the first process."""

import re
import sys
import time

import pytest

from specdiff_jax.cli import console
from specdiff_jax.parallel import processes


@pytest.fixture
def soon(monkeypatch):
  """Has the first line come after a moment, and the others as fast."""
  monkeypatch.setattr(console, '_FIRST', 0.02)
  monkeypatch.setattr(console, '_LONGEST', 0.02)


def pause():
  time.sleep(0.15)


def test_a_line_tells_what_is_done_how_fast_and_how_long(capsys, soon):
  with console.ticking('distill', distributed=False):
    pause()
    with console.progress('distilling', 40) as show:
      pause()
      show(10, 40, 'loss 2.5')
      pause()
      show(20, 40, 'loss 1.5')
      pause()
    with console.patient('loading (million values)') as show:
      show(1, 3)
      pause()
  told = capsys.readouterr().err.splitlines()
  assert told[0] == '0:00:00 distill ...'
  for wanted in (
    r'distilling 0/40, starting',  # it compiles, say
    r'distilling 10/40, loss 2\.5, starting',
    r'distilling 20/40, loss 1\.5, [\d.]+/s, ETA 0:00:00',
    r'loading \(million values\) 1/3, starting',
  ):
    pattern = rf'0:00:0\d distill: {wanted}'
    assert any(re.fullmatch(pattern, line) for line in told), (wanted, told)
  pause()
  assert not capsys.readouterr().err  # it ends with the program


def test_rate_and_time_left(monkeypatch):
  task, now = console._Task('distilling', 1000), 100.0
  monkeypatch.setattr(console.time, 'monotonic', lambda: now)
  task.update(500, 1000, '')  # goes on there
  now += 60
  task.update(530, 1000, 'loss 1')
  assert task.line() == 'distilling 530/1000, loss 1, 0.5/s, ETA 0:15:40'
  now += 540  # nothing new since then
  assert task.line() == 'distilling 530/1000, loss 1, 0:00:20 each, ETA 2:36:40'


def test_silence_grows_to_half_a_minute_at_most():
  waits = []

  class Over:
    def wait(self, seconds):
      waits.append(seconds)
      return len(waits) > 9

  console._tick(console._Log([], False), Over(), 0.0)
  assert 5 <= waits[0] <= 10 and waits == sorted(waits)
  assert 15 < waits[-1] < 25  # a busy machine adds some


@pytest.mark.parametrize('first', [True, False])
def test_the_first_of_several_processes_speaks(
  capsys, soon, monkeypatch, first
):
  for name in ('JAX_PROCESS_ID', 'SLURM_PROCID'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(processes, 'is_first', lambda: first)
  with console.ticking('collect', distributed=True):
    pause()
    assert not capsys.readouterr().err  # they have not joined yet
    with console.progress('collecting', 2):
      pause()
  assert bool(capsys.readouterr().err) == first


@pytest.mark.parametrize('number', ['0', '1'])
def test_the_launcher_says_which_is_the_first(
  capsys, soon, monkeypatch, number
):
  monkeypatch.setenv('SLURM_PROCID', number)
  with console.ticking('collect', distributed=True):
    pause()  # it waits for the others
  assert bool(capsys.readouterr().err) == (number == '0')


def test_a_terminal_has_no_lines(capsys, soon, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
  with console.ticking('bench', distributed=False):
    pause()
  assert not capsys.readouterr().err
