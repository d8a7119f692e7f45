"""Metrics: what a second brings; TensorBoard has what the JSON lines have."""

import builtins
import glob
import os
import struct

import pytest

from specdiff_jax.core import errors
from specdiff_jax.training import metrics


def test_rates_are_those_of_the_steps_since_the_last_line():
  clock = [100.0]

  def passes(seconds):
    clock[0] += seconds

  pace = metrics.Pace(lambda: clock[0])
  passes(30)  # the first step, which is compiled
  pace.add({})
  assert pace.rates({'targets': 30}, 8) == {}
  for _ in range(2):
    passes(4)
    pace.add({})
  with pace.paused({}):
    passes(1000)  # an evaluation
  assert pace.rates({'targets': 30}, 8) == {
      'steps_per_s': 0.25, 'targets_per_s': 7.5, 'flops_per_s': 2.0,
  }  # fmt: skip
  passes(2)  # of the next line alone
  pace.add({})
  assert pace.rates({}, 8) == {'steps_per_s': 0.5, 'flops_per_s': 4.0}


def scalars(folder):
  """Returns (tag, step, value) of every event on disk."""
  from tensorboardX.proto import event_pb2

  found = []
  for path in glob.glob(f'{folder}/events.out.tfevents.*'):
    with open(path, 'rb') as file:
      data = file.read()
    while data:  # length, its checksum, the event, its checksum
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      for value in event.summary.value:
        found.append((value.tag, event.step, value.simple_value))
      data = data[16 + size :]
  return found


def test_a_resumed_run_writes_no_step_twice(tmp_path):
  pytest.importorskip('tensorboardX')

  def writer():
    return metrics.MetricsWriter(
      f'{tmp_path}/metrics.jsonl', f'{tmp_path}/events'
    )

  first = writer()
  first.truncate(0)
  for step in (1, 2, 3):
    first.write(step, {'loss': 10.0 + step, 'bad': float('nan')})
  first.write(3, {'eval': {'tau': 1.5, 'surv': [0.5, 0.25]}})
  again = writer()  # the first one was killed; step 2 was saved
  again.truncate(2)
  again.write(3, {'loss': 20.0})
  assert sorted(scalars(f'{tmp_path}/events')) == [
      ('loss', 1, 11.0), ('loss', 2, 12.0), ('loss', 3, 20.0),
  ]  # fmt: skip
  again.write(4, {'eval': {'tau': 1.5, 'surv': [0.5, 0.25]}})
  assert ('eval/tau', 4, 1.5) in scalars(f'{tmp_path}/events')


def test_without_tensorboard_it_is_said(tmp_path, monkeypatch):
  real = builtins.__import__

  def refusing(name, *args, **kwargs):
    if name.startswith('tensorboardX'):
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', refusing)
  with pytest.raises(errors.InputError, match='tensorboard]'):
    metrics.MetricsWriter(f'{tmp_path}/metrics.jsonl', f'{tmp_path}/events')
  metrics.MetricsWriter(f'{tmp_path}/metrics.jsonl')  # needs none


def test_damaged_lines_are_set_aside(tmp_path):
  path, told = tmp_path / 'metrics.jsonl', []
  writer = metrics.MetricsWriter(str(path), say=told.append)
  for step in (1, 2, 3):
    writer.write(step, {'loss': 10.0 + step, 'eval': {'tau': 1.0}})
  good = path.read_bytes()
  bad = [
      b'\xff\xfe{}\n', b'{"step": 2, "lo\n', b'[1]\n', b'{"loss": 1.0}\n',
      b'{"step": "2"}\n', b'{"step": 2, "loss": "low"}\n',
      b'{"step": 2, "loss": NaN}\n', b'{"step": 2, "eval": [1e999]}\n',
      b'[' * 2000 + b'\n',
  ]  # fmt: skip
  first, *rest = good.splitlines(keepends=True)
  path.write_bytes(b''.join([first, *bad, *rest]) + b'{"step": 4, "l')
  assert [line['step'] for line in writer.read()] == [1, 2, 3]
  assert writer.last('loss') == 13.0
  writer.truncate(2)
  assert path.read_bytes() == b''.join([first, rest[0]])
  assert (tmp_path / 'metrics.jsonl.damaged').read_bytes() == b''.join(bad)
  assert len(told) == 1 and f'{len(bad)} damaged lines' in told[0]
  writer.truncate(2)
  assert len(told) == 1  # a torn last line alone, or none, is no damage


def test_a_pipe_is_no_file_of_metrics_and_a_link_is_kept(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'link').symlink_to(tmp_path / 'target')
  with pytest.raises(errors.InputError, match='pipe'):
    metrics.MetricsWriter(f'{tmp_path}/pipe').truncate(0)
  writer = metrics.MetricsWriter(f'{tmp_path}/link')
  writer.write(1, {})
  writer.truncate(1)
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'target').read_text() == '{"step": 1}\n'
