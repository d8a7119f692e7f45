"""Metrics: what a second brings; TensorBoard has what the JSON lines have."""

import builtins
import glob
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
