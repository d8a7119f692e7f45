"""A run that stops, however it stops, comes to the bits of one that did not."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import tiny_training

from specdiff_jax.core import errors
from specdiff_jax.parallel import processes
from specdiff_jax.training import checksum
from specdiff_jax.training import loop
from specdiff_jax.training import metrics
from specdiff_jax.training.checkpoint import saving


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Six steps at one go: (result, metrics lines)."""
  workdir = tmp_path_factory.mktemp('whole')
  result = tiny_training.train(workdir, 6, evaluate=evaluate)
  return result, read(workdir)


def evaluate(params):
  return {'norm': float(np.sum(np.asarray(params['head']) ** 2))}


def read(workdir):
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return [
    {name: v for name, v in line.items() if not name.endswith('_per_s')}
    for line in records
  ]


def assert_same(result, workdir, whole):
  assert result.steps == 6 and not result.interrupted
  assert checksum.digest(result.state) == checksum.digest(whole[0].state)
  assert result.params_sha256 == whole[0].params_sha256
  assert (result.loss, result.evaluation) == (
    whole[0].loss,
    whole[0].evaluation,
  )
  assert read(workdir) == whole[1]


def test_three_and_three_are_six(tmp_path, whole):
  first = tiny_training.train(tmp_path, 3, evaluate=evaluate)
  assert first.params_sha256 != whole[0].params_sha256
  second = tiny_training.train(tmp_path, 6, evaluate=evaluate)
  assert_same(second, tmp_path, whole)


def test_negative_control_a_fresh_iterator_differs(tmp_path, whole):
  """Without the iterator's place the same steps see other batches."""
  tiny_training.train(tmp_path, 3)
  state, step_fn = tiny_training.start()
  saved = saving.Checkpointer(str(tmp_path / 'checkpoints'))
  state = saved.restore(state, tiny_training.batches())
  iterator = tiny_training.batches()  # From its start.
  for _ in range(3):
    state, _ = step_fn(state, next(iterator), None)
  assert checksum.digest(state.params) != whole[0].params_sha256


def test_a_finished_run_does_nothing(tmp_path, whole):
  tiny_training.train(tmp_path, 6, evaluate=evaluate)

  def step_fn(*args):
    raise AssertionError('no step is due')

  again = tiny_training.train(tmp_path, 6, step_fn=step_fn)
  assert_same(again, tmp_path, whole)


def test_metrics_past_the_checkpoint_are_dropped(tmp_path, whole):
  """As when killed at step 5 with the last checkpoint at step 3."""
  tiny_training.train(tmp_path, 3, evaluate=evaluate)
  writer = metrics.MetricsWriter(str(tmp_path / 'metrics.jsonl'))
  writer.write(4, {'loss': 99.0})
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 5, "lo')  # Torn.
  result = tiny_training.train(tmp_path, 6, evaluate=evaluate)
  assert_same(result, tmp_path, whole)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_resumes(tmp_path, whole, number):
  told = []

  def progress(done, steps, values):
    told.append((done, steps, float(values['loss'])))
    if done == 2:
      os.kill(os.getpid(), number)

  def handler(number, frame):
    raise AssertionError('the signal is not for this one')

  before = signal.signal(number, handler)  # one that is ignored stays so
  try:
    first = tiny_training.train(
      tmp_path, 6, evaluate=evaluate, progress=progress
    )
    assert signal.getsignal(number) is handler
  finally:
    signal.signal(number, before)
  assert first.interrupted and first.steps == 2
  assert first.preempted == (number == signal.SIGTERM)
  assert [t[:2] for t in told] == [(1, 6), (2, 6)]
  result = tiny_training.train(tmp_path, 6, evaluate=evaluate)
  assert_same(result, tmp_path, whole)


KILLED = """
    import os, pathlib, signal, sys
    import orbax.checkpoint as ocp
    import tiny_training

    finalize = ocp.StandardCheckpointHandler.finalize

    def killing(self, directory):
      parts = pathlib.Path(str(directory)).relative_to(sys.argv[1]).parts
      if any(part.startswith('4.') for part in parts):
        os.kill(os.getpid(), signal.SIGKILL)
      return finalize(self, directory)

    ocp.StandardCheckpointHandler.finalize = killing
    tiny_training.train(sys.argv[1], 6, save_every=2)
"""


def test_killed_while_saving(tmp_path, whole):
  paths = [os.getcwd(), os.path.dirname(tiny_training.__file__)]
  killed = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(KILLED), str(tmp_path)],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
    capture_output=True,
    timeout=120,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
  left = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert '2' in left and '4' not in left and len(left) > 1  # Half of step 4.
  seen = []
  result = tiny_training.train(
    tmp_path, 6, evaluate=evaluate, progress=lambda *a: seen.append(a[0])
  )
  assert seen == [3, 4, 5, 6]
  assert result.params_sha256 == whole[0].params_sha256


def largest_file(directory):
  files = [p for p in directory.rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def flip(directory):
  """Flips a bit of each head, wherever the store keeps them."""
  path = largest_file(directory / 'state')
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def cut(directory):
  path = largest_file(directory / 'state')
  path.write_bytes(path.read_bytes()[:-50])


def drop_iterator(directory):
  shutil.rmtree(directory / 'data')


def move_iterator(directory):
  path = directory / 'data' / 'metadata'
  text = path.read_text()
  assert '4' in text
  path.write_text(text.replace('4', '3'))


@pytest.mark.parametrize('damage', [flip, cut, drop_iterator, move_iterator])
def test_corrupt_newest_falls_back(tmp_path, whole, damage):
  tiny_training.train(tmp_path, 4, save_every=2, evaluate=evaluate)
  damage(tmp_path / 'checkpoints' / '4')
  seen = []
  result = tiny_training.train(
    tmp_path, 6, evaluate=evaluate, progress=lambda *a: seen.append(a[0])
  )
  assert seen == [3, 4, 5, 6]
  assert (tmp_path / 'checkpoints' / '4.corrupt').is_dir()
  assert result.params_sha256 == whole[0].params_sha256


def test_what_another_process_cannot_read_none_takes(tmp_path, monkeypatch):
  tiny_training.train(tmp_path, 4, save_every=2)
  state, _ = tiny_training.start()
  saved = saving.Checkpointer(str(tmp_path / 'checkpoints'))
  failing = ['of another process']

  def together(action):
    found = action()
    if failing:
      raise errors.InputError(failing.pop())
    return found

  monkeypatch.setattr(processes, 'together', together)
  with saved:
    restored = saved.restore(state, tiny_training.batches())
  assert int(restored.step) == 2 and not failing
  assert (tmp_path / 'checkpoints' / '4.corrupt').is_dir()


def test_all_corrupt_is_an_error_and_nothing_is_removed(tmp_path):
  tiny_training.train(tmp_path, 4, save_every=2)
  for name in ('2', '4'):
    cut(tmp_path / 'checkpoints' / name)
  with pytest.raises(errors.InputError, match=r'\[2, 4\].*checkpoints'):
    tiny_training.train(tmp_path, 6)
  assert (tmp_path / 'checkpoints' / '4').is_dir()


def test_other_shapes_are_an_error(tmp_path):
  tiny_training.train(tmp_path, 2)
  state, _ = tiny_training.start()
  params = state.params | {'head': jax.numpy.ones((9, 6))}
  saved = saving.Checkpointer(str(tmp_path / 'checkpoints'))
  with pytest.raises(errors.InputError, match=r'head is float32\[8, 6\]'):
    saved.restore(state.replace(params=params), tiny_training.batches())
  del params['head']
  with pytest.raises(errors.InputError, match='head is .* there, missing'):
    saved.restore(state.replace(params=params), tiny_training.batches())
  params |= {'head': jax.numpy.ones((9, 6)), 'bias': jax.numpy.ones(9)}
  with pytest.raises(errors.InputError, match=r'bias is .*; .*head is '):
    saved.restore(state.replace(params=params), tiny_training.batches())


FULL = """
    import resource, sys
    import numpy as np
    from specdiff_jax.core import errors
    from specdiff_jax.training.checkpoint import saving
    import tiny_training

    def next_state(state):
      noise = np.random.default_rng(0).standard_normal((100, 100))
      return state.replace(step=state.step + 1, params={'head': noise})

    state, _ = tiny_training.start()
    saved = saving.Checkpointer(sys.argv[1])
    saved.save(state, tiny_training.batches())
    saved.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    state = next_state(state)
    try:
      saved.save(state, tiny_training.batches())
      saved.wait()
    except errors.InputError as error:
      print('InputError', error)
    print(saved.steps())
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saved.save(next_state(state), tiny_training.batches())
    saved.wait()
    print(saved.steps())
"""


def test_a_write_that_fails_is_an_error_and_loses_nothing(tmp_path):
  """A limit on file sizes stands in for a full disk."""
  paths = [os.getcwd(), os.path.dirname(tiny_training.__file__)]
  full = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(FULL), str(tmp_path)],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert 'InputError checkpoints: step 1' in full.stdout, full.stderr[-2000:]
  assert str(tmp_path) in full.stdout
  assert full.stdout.endswith('[0]\n[0, 2]\n')
  left = [path.name for path in tmp_path.iterdir()]
  assert not any('tmp' in name for name in left), left


def failing(monkeypatch, steps):
  """Lets the saves of these steps fail."""
  save = saving.Checkpointer.save

  def sometimes(self, state, iterator, tau=None):
    if int(state.step) in steps:
      raise errors.InputError(f'step {int(state.step)} does not fit')
    save(self, state, iterator, tau)

  monkeypatch.setattr(saving.Checkpointer, 'save', sometimes)


def test_a_full_disk_need_not_stop_a_run(tmp_path, whole, monkeypatch):
  failing(monkeypatch, (4,))
  with pytest.raises(errors.InputError, match='step 4 does not fit'):
    tiny_training.train(tmp_path / 'stops', 6, save_every=2)
  there = tmp_path / 'stops' / 'checkpoints'
  assert saving.Checkpointer(str(there)).steps() == [2]
  result = tiny_training.train(
    tmp_path / 'goes on', 6, save_every=2, survive_full_disk=True
  )
  assert result.params_sha256 == whole[0].params_sha256
  there = tmp_path / 'goes on' / 'checkpoints'
  assert saving.Checkpointer(str(there)).steps() == [2, 6]
  told = [line.get('not_written') for line in read(tmp_path / 'goes on')]
  assert told == [None] * 4 + [['step 4 does not fit']] * 2
  failing(monkeypatch, (6,))  # the last one has to be written
  with pytest.raises(errors.InputError, match='step 6 does not fit'):
    tiny_training.train(tmp_path / 'last', 6, survive_full_disk=True)


def test_the_newest_and_the_best_are_kept(tmp_path):
  state, _ = tiny_training.start()
  saved = saving.Checkpointer(str(tmp_path), keep=2)
  assert saved.best() is None
  for tau in (1.5, 2.5, None, 2.0, float('nan'), None):
    saved.save(state, tiny_training.batches(), tau)
    state = state.replace(step=state.step + 1)
  saved.wait()
  assert saved.steps() == [1, 4, 5] and saved.best() == 1
  again = saving.Checkpointer(str(tmp_path), keep=2)
  assert again.steps() == [1, 4, 5] and again.best() == 1


def test_a_run_may_come_to_its_best_checkpoint(tmp_path, whole):
  """Evaluated at steps 3 and 6; also when it goes on, or is done before."""

  def train(steps, sign=-1, **more):
    return tiny_training.train(
        tmp_path / str(sign), steps, save_every=3, best=True,
        evaluate=lambda params: {'tau': 100 + sign * evaluate(params)['norm']},
        **more,
    )  # fmt: skip

  first = train(3)
  for result in (train(6), train(6)):
    assert (result.best, result.steps, int(result.state.step)) == (3, 6, 3)
    assert result.params_sha256 == first.params_sha256
    assert result.params_sha256 == checksum.digest(result.state.params)
    assert result.evaluation == first.evaluation
    assert result.loss == whole[0].loss  # of the run
  other = train(6, sign=1)  # the control: there the last one is the best
  assert other.best == 6 and other.params_sha256 == whole[0].params_sha256
  cut(tmp_path / '-1' / 'checkpoints' / '3')
  with pytest.raises(errors.InputError, match='step 3 .*export=last'):
    train(6)


def test_metrics_are_valid_json(tmp_path):
  writer = metrics.MetricsWriter(str(tmp_path / 'a' / 'm.jsonl'))
  writer.write(1, {'loss': np.float32('nan'), 'slots': [1.5, np.inf]})
  writer.write(2, {'loss': jax.numpy.float32(0.5), 'n': np.int32(3)})
  assert writer.read() == [
    {'step': 1, 'loss': None, 'slots': [1.5, None]},
    {'step': 2, 'loss': 0.5, 'n': 3},
  ]
  assert writer.last('loss') == 0.5 and writer.last('slots') == [1.5, None]
  assert writer.last('absent') is None
  silent = metrics.MetricsWriter(None)
  silent.write(1, {'loss': 1.0})
  silent.truncate(0)
  assert silent.read() == []


def test_metrics_disk_trouble_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='metrics: .*file'):
    metrics.MetricsWriter(str(tmp_path / 'file' / 'm.jsonl'))


def test_trouble_of_the_first_process_at_the_start_is_that_of_all(
  tmp_path, monkeypatch
):
  """Another one's file of metrics cannot be cut: no process makes a step."""
  cut = []

  def together(action):
    found = action()
    if cut:
      raise errors.InputError('of another process')
    return found

  monkeypatch.setattr(
    metrics.MetricsWriter, 'truncate', lambda *_: cut.append(True)
  )
  monkeypatch.setattr(processes, 'together', together)
  with pytest.raises(errors.InputError, match='of another process'):
    tiny_training.train(tmp_path, 6, step_fn=lambda *_: pytest.fail('a step'))


class Poisoned:
  """Numbered batches, of which those of some steps are NaN."""

  def __init__(self, steps):
    self._steps, self._inner, self._number = steps, tiny_training.batches(), 0

  def __next__(self):
    self._number += 1
    batch = next(self._inner)
    if self._number in self._steps:
      batch = batch | {'x': np.full_like(batch['x'], np.nan)}
    return batch | {'number': self._number}

  def get_state(self):
    return {'inner': self._inner.get_state(), 'number': self._number}

  def set_state(self, state):
    self._inner.set_state(state['inner'])
    self._number = state['number']


def train_poisoned(workdir, steps, **more):
  return tiny_training.train(
      workdir, 6, iterator=Poisoned(steps), save_every=2,
      prepare=lambda batch: {k: v for k, v in batch.items() if k != 'number'},
      records=lambda batch: [f'text {batch["number"]}'], **more,
  )  # fmt: skip


def test_updates_left_out_are_named(tmp_path):
  result = train_poisoned(tmp_path, (2, 5), skip_limit=2)
  assert result.steps == 6 and result.skipped == 2
  told = {line['step']: line.get('left_out') for line in read(tmp_path)}
  assert {s: v for s, v in told.items() if v} == {
      2: {'2': ['text 2']}, 5: {'5': ['text 5']},
  }  # fmt: skip


def test_without_a_log_they_are_still_looked_at(tmp_path, monkeypatch):
  """The batches since the last look are held, so it must come."""
  monkeypatch.setattr(loop, '_LOOK', 2)
  with pytest.raises(errors.InputError, match='text 3; .*: text 4. '):
    train_poisoned(tmp_path, (3, 4, 5, 6), skip_limit=2, log_every=0)


def test_a_row_between_two_lines_of_the_log_counts(tmp_path):
  with pytest.raises(errors.InputError, match='text 3; .*: text 4. '):
    train_poisoned(tmp_path, (3, 4), skip_limit=2, log_every=6)


def test_what_is_looked_at_before_a_line_is_told_in_it(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, '_LOOK', 2)
  train_poisoned(tmp_path, (2, 5), log_every=6)
  told = [line['left_out'] for line in read(tmp_path) if 'left_out' in line]
  assert told == [{'2': ['text 2'], '5': ['text 5']}]


def test_too_many_in_a_row_stop_the_run(tmp_path, whole):
  with pytest.raises(errors.InputError, match='text 3; .*: text 4. '):
    train_poisoned(tmp_path, (3, 4), skip_limit=2)
  saved = saving.Checkpointer(str(tmp_path / 'checkpoints'))
  assert saved.steps() == [2]
  # That is the last good one: from it the run goes on to the very same bits.
  result = train_poisoned(tmp_path, ())
  assert result.params_sha256 == whole[0].params_sha256
