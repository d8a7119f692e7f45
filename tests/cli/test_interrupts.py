"""Ctrl-C: told of at once, waited for by what must not be torn, code 130."""

import importlib.util
import signal
import subprocess
import sys
import time

import pytest

# Each is run after `watch`, and interrupted at its line 'ready'.
HEAD = """
import os, signal, sys, threading, time
from specdiff_jax.cli import interrupts
from specdiff_jax.core import interrupts as lib
{before}
interrupts.watch('specdiff test')
def ready():
  os.write(2, b'ready\\n')
"""
BLOCKED = """
sys.stdout.write('a line')
ready()
lock = threading.Lock()
lock.acquire()
lock.acquire()  # as in XLA: no instruction of Python's is run
"""
HELD = """
with lib.held('finishing a file'):
  ready()
  time.sleep(0.3)
  sys.stdout.write('whole')
with lib.held('another'):
  sys.stdout.write('torn')
"""
ENDLESS = """
with lib.held('what never ends'):
  ready()
  time.sleep(60)
"""
DONE = """
assert not lib.over()
ready()
time.sleep(0.3)
"""
HANDLED = """
signal.signal(signal.SIGINT, lambda *_: sys.stdout.write('handled '))
with lib.held('a step'):
  ready()
  while not lib.came():
    time.sleep(0.01)
  time.sleep(0.1)
interrupts.leave()
"""


@pytest.fixture(autouse=True, scope='module')
def not_ignored():
  """A child ignores SIGINT if this process does, as in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def start(body, before=''):
  return subprocess.Popen(
    [sys.executable, '-c', HEAD.format(before=before) + body],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(process, times=1):
  """Interrupts a process, which has to end soon; returns its code and words."""
  assert process.stderr.readline() == 'ready\n'
  said = ''
  for number in range(times):
    if number:
      said = process.stderr.readline()
    process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=30)
  return process.returncode, out, said + err


def test_a_program_that_python_cannot_interrupt():
  code, out, err = ended(start(BLOCKED))
  assert (code, out) == (130, 'a line')  # what was not flushed
  assert err.startswith('specdiff test: interrupted. What was written stays')
  assert len(err.splitlines()) == 1


def test_what_is_held_is_finished_and_nothing_else_begins():
  code, out, err = ended(start(HELD))
  assert (code, out) == (130, 'whole')
  first, last = err.splitlines()
  assert 'interrupted; finishing a file (Ctrl-C again' in first
  assert last.startswith('specdiff test: finished.')


def test_a_second_one_leaves_at_once():
  code, _, err = ended(start(ENDLESS), times=2)
  assert code == 130
  assert err.endswith('specdiff test: interrupted again.\n')


def test_a_program_that_is_done_keeps_its_code():
  code, _, err = ended(start(DONE))
  assert (code, err) == (0, '')


def test_one_that_is_ignored_stays_so():
  ignored = 'signal.signal(signal.SIGINT, signal.SIG_IGN)'
  code, _, err = ended(start('ready()\ntime.sleep(0.3)', ignored))
  assert (code, err) == (0, '')


def test_handlers_of_a_program_do_not_matter():
  """As that of the training loop, which stops after a step."""
  code, out, err = ended(start(HANDLED))
  assert (code, out) == (130, 'handled ')
  assert len(err.splitlines()) == 1 and 'interrupted; a step' in err


@pytest.fixture(scope='module')
def sends(root):
  """`benchmarks/interrupts.py`, which sends more."""
  path = root / 'benchmarks' / 'interrupts.py'
  spec = importlib.util.spec_from_file_location('interrupts_program', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [1.0, 3.0, 6.0])
def test_a_bench_while_it_starts_and_compiles(sends, seconds):
  process = sends.start(sends.command('bench', ''))
  found = sends.interrupted(process, seconds)
  assert found[0] == 130 and 'Traceback' not in found[-1], found


@pytest.mark.slow
def test_a_distillation_is_saved(sends, data, tmp_path):
  """After the step that it is at, which the next run goes on from."""
  arguments = [
      'distill', f'{sends.CONFIG}:smoke', f'--workdir={tmp_path}',
      f'--config.data={data}', '--config.steps=1000000', '--config.log_every=1',
  ]  # fmt: skip
  process = sends.start(arguments)
  metrics = tmp_path / 'metrics.jsonl'
  while not metrics.exists() and process.poll() is None:
    time.sleep(0.1)
  code, _, _, out, err = sends.interrupted(process, 0.5)
  assert code == 130 and not out and 'Traceback' not in err, err
  step = int(err.splitlines()[-1].split()[3].rstrip(','))
  assert err.splitlines()[-1] == f'Stopped after step {step}, which is saved.'
  assert (tmp_path / 'checkpoints' / str(step)).is_dir()
  assert len(metrics.read_text().splitlines()) == step
