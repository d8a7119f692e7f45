"""Two processes of one run come to what one comes to.

STEPS=20 in the environment makes the runs longer, and takes those that are left
out otherwise.
"""

import json
import os
import re
import signal
import time

import meshes_program
import numpy as np
import processes
import pytest

from specdiff_jax.checkpoints import presets

STEPS = int(os.environ.get('STEPS', 4))
long = pytest.mark.skipif(
  'STEPS' not in os.environ, reason='takes a minute more: set STEPS=20'
)


@pytest.fixture(scope='module')
def arguments(tmp_path_factory, root):
  """Of a short run over random texts."""
  folder = tmp_path_factory.mktemp('data')
  checkpoint = presets.random('tiny', 'float32')
  meshes_program.write_trajectories(folder, checkpoint)
  return [
      'distill', f'--config={root}/configs/tiny.py:smoke',
      f'--config.data={folder}', '--config.tokens=32', '--config.batch=4',
      f'--config.steps={STEPS}', '--config.log_every=1',
  ]  # fmt: skip


def losses(workdir):
  lines = processes.lines(workdir / 'metrics.jsonl')
  return [line['loss'] for line in lines if 'loss' in line]


def steps(path):
  """Returns {step: records} of a process."""
  return dict(processes.lines(path))


@pytest.mark.slow
@pytest.mark.parametrize(
  'more',
  [
    ('(2,1)',),
    pytest.param(('(1,2)', '--config.feature_cache=0'), marks=long),
  ],
)
def test_two_processes_are_one(arguments, tmp_path, more):
  """Split by rows, and by heads (with a verifier that none holds whole)."""
  alone, both = tmp_path / 'alone', tmp_path / 'both'
  shape, *rest = more
  one = processes.start(
    [*arguments, *rest, f'--workdir={alone}', '--config.mesh=(1,1)'],
    records=tmp_path / 'one',
  )
  two = processes.start_together(
      2, [*arguments, *rest, f'--workdir={both}', f'--config.mesh={shape}'],
      records=tmp_path / 'two',
  )  # fmt: skip
  ended = [processes.finished(process) for process in (one, *two)]
  assert [code for code, _, _ in ended] == [0, 0, 0], ended
  said = [json.loads(out.splitlines()[-1]) for _, out, _ in ended[:2]]
  assert [result['steps'] for result in said] == [STEPS, STEPS]
  assert '{' not in ended[2][1]  # the first process speaks for all
  far = np.abs(np.divide(losses(both), losses(alone)) - 1).max()
  assert far <= 1e-5, far
  assert len(losses(both)) == STEPS
  assert said[0]['tau_eval'] == pytest.approx(said[1]['tau_eval'])
  given = steps(tmp_path / 'one')
  first, second = (steps(tmp_path / f'two.{i}') for i in range(2))
  for step, records in given.items():
    if shape == '(2,1)':  # disjoint, and all of them
      assert sorted(first[step] + second[step]) == sorted(records)
      assert not set(first[step]) & set(second[step])
    else:  # both need all rows
      assert first[step] == second[step] == records
  print(f'{shape}: losses of {STEPS} steps differ by {far:.2g} at most')
  # The control: the steps differ from each other.
  assert abs(losses(alone)[0] / losses(alone)[1] - 1) > 1e-5


@pytest.mark.slow
@long
def test_sigterm_to_one_process_stops_both(arguments, tmp_path):
  """After the same step, which is saved; and the run goes on from it."""
  arguments = [*arguments, f'--workdir={tmp_path}', '--config.mesh=(2,1)']
  long = [a for a in arguments if 'config.steps' not in a]
  two = processes.start_together(2, [*long, '--config.steps=100000'])
  metrics = tmp_path / 'metrics.jsonl'
  while not metrics.exists() and two[0].poll() is None:
    time.sleep(0.1)
  two[1].send_signal(signal.SIGTERM)
  ended = [processes.finished(process) for process in two]
  assert [code for code, _, _ in ended] == [75, 75], ended
  stopped = [
    re.search(r'Stopped after step (\d+)', err)[1] for _, _, err in ended
  ]
  assert stopped[0] == stopped[1]
  assert (tmp_path / 'checkpoints' / stopped[0]).is_dir()


@pytest.mark.slow
def test_a_process_that_never_comes_is_an_error(arguments, tmp_path):
  environment = {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{processes.free_port()}',
      'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0',
  }  # fmt: skip
  more = '--config.distributed=True', '--config.join_timeout=1'
  alone = processes.start(
    [*arguments, f'--workdir={tmp_path}', *more], environment
  )
  code, _, err = processes.finished(alone)
  assert code == 2, err
  assert 'within 1 seconds (not all of 2 processes came)' in err, err


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_an_error_in_both(tmp_path):
  """The save is given up by both; the one before and the next are whole."""
  two = processes.start_together(
    2, [tmp_path], program=[processes.PROGRAMS / 'full_disk_process_program.py']
  )
  ended = [processes.finished(process) for process in two]
  assert [code for code, _, _ in ended] == [0, 0], ended
  first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in ended)
  assert first['said'] == second['said'] and len(first['said']) == 2
  for step, said in enumerate(first['said'], 1):
    assert said.startswith(f'checkpoints: step {step} could not be written')
    assert 'File too large' in said, said
  print(f'after {first["seconds"]} and {second["seconds"]} seconds')
  assert max(first['seconds'] + second['seconds']) < 60
  assert first['steps'] == second['steps'] == [0, 3]
  assert not [path for path in tmp_path.iterdir() if 'tmp' in path.name]
