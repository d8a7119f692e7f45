"""The dataset: the journal's records, without TensorFlow or a network."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.data import tfds_builder
from specdiff_jax.data import trajectories

ROOT = pathlib.Path(__file__).parents[2]
HEADER = {'verifier': 'abc', 'temperature': 0.7, 'list': [1, 2]}


def made(number):
  rng = np.random.default_rng(number)
  return trajectories.Trajectory(
      id=f'prompt-{number} é', prompt_hash=f'{number:016x}',
      prompt=rng.integers(0, 1000, 1 + number % 5).astype(np.int32),
      completion=rng.integers(0, 1000, number % 7).astype(np.int32),
      temperature=0.7, top_k=50, top_p=0.95, seed=2**40 + number)


def collected(workdir, numbers):
  with trajectories.Journal(str(workdir), HEADER) as journal:
    journal.append([made(number) for number in numbers])


def same(one, other):
  return all(
      np.array_equal(value, getattr(other, name))
      and type(value) is type(getattr(other, name))
      for name, value in vars(one).items())


def test_the_dataset_holds_the_journal_in_order(tmp_path):
  collected(tmp_path, range(40))
  folder = trajectories.build_dataset(str(tmp_path))
  assert folder == str(tmp_path / 'dataset')
  header, source = trajectories.open_dataset(str(tmp_path))
  assert header == HEADER and len(source) == 40
  assert all(same(source[i], made(i)) for i in range(40))
  assert not same(source[0], made(1))  # `same` can fail
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']


def test_it_is_made_again_only_for_a_longer_journal(tmp_path, monkeypatch):
  collected(tmp_path, range(3))
  builds = []
  write = tfds_builder.write
  monkeypatch.setattr(
      tfds_builder, 'write',
      lambda *arguments: (builds.append(1), write(*arguments)))
  trajectories.build_dataset(str(tmp_path))
  trajectories.build_dataset(str(tmp_path))
  with open(tmp_path / 'journal.jsonl', 'ab') as file:
    file.write(b'{"torn')
  trajectories.build_dataset(str(tmp_path))
  assert len(builds) == 1
  collected(tmp_path, range(3, 5))
  trajectories.build_dataset(str(tmp_path))
  assert len(builds) == 2
  assert len(trajectories.open_dataset(str(tmp_path))[1]) == 5
  os.remove(tmp_path / 'journal.jsonl')
  trajectories.build_dataset(str(tmp_path))
  assert len(builds) == 2


def test_a_killed_build_leaves_no_trace(tmp_path, monkeypatch):
  collected(tmp_path, range(3))
  with monkeypatch.context() as patch:
    patch.setattr(tfds_builder.os, 'rename', None)  # a bug, not an OSError
    with pytest.raises(TypeError):
      trajectories.build_dataset(str(tmp_path))
  os.makedirs(tmp_path / 'dataset.partial/trajectories')  # kill -9 leaves it
  with pytest.raises(errors.InputError, match='no trajectory dataset'):
    trajectories.open_dataset(str(tmp_path))
  trajectories.build_dataset(str(tmp_path))
  assert len(trajectories.open_dataset(str(tmp_path))[1]) == 3
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']


def test_a_full_disk_keeps_the_dataset_before(tmp_path):
  collected(tmp_path, range(3))
  trajectories.build_dataset(str(tmp_path))
  collected(tmp_path, range(3, 3000))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:  # a real failure of write() in array_record's own code
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    with pytest.raises(errors.InputError, match='nothing is lost'):
      trajectories.build_dataset(str(tmp_path))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert len(trajectories.open_dataset(str(tmp_path))[1]) == 3
  trajectories.build_dataset(str(tmp_path))
  assert len(trajectories.open_dataset(str(tmp_path))[1]) == 3000
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']


def test_nothing_collected_is_said(tmp_path):
  for call in (trajectories.build_dataset, trajectories.open_dataset):
    with pytest.raises(errors.InputError, match='specdiff collect'):
      call(str(tmp_path))
  trajectories.Journal(str(tmp_path), HEADER).close()
  with pytest.raises(errors.InputError, match='no trajectory yet'):
    trajectories.build_dataset(str(tmp_path))


def test_a_damaged_dataset_is_said(tmp_path):
  collected(tmp_path, range(3))
  trajectories.build_dataset(str(tmp_path))
  [shard] = tmp_path.glob('dataset/**/*.array_record*')
  shard.write_bytes(shard.read_bytes()[:100])
  with pytest.raises(errors.InputError, match='damaged.*Delete that'):
    trajectories.open_dataset(str(tmp_path))
  shard.unlink()
  with pytest.raises(errors.InputError, match='damaged'):
    trajectories.open_dataset(str(tmp_path))


ALONE = """
import json, socket, sys
calls = []
def refuse(*arguments):
  calls.append(str(arguments[1:]))
  raise OSError('no network')
socket.socket.connect = socket.getaddrinfo = refuse
from specdiff_jax.data import trajectories
light = 'tensorflow_datasets' not in sys.modules
trajectories.build_dataset(sys.argv[1])
source = trajectories.open_dataset(sys.argv[1])[1]
from specdiff_jax.data import windows
config = windows.WindowConfig(tokens=16, windows=4, gamma=2, batch=2)
next(iter(windows.batches(source, config)))
heavy = {'tensorflow', 'apache_beam'} & set(sys.modules)
print(json.dumps([len(source), light, sorted(heavy), calls]))
"""


def test_no_tensorflow_no_network_no_traces_elsewhere(tmp_path):
  collected(tmp_path / 'work', range(30))
  home, temporary = tmp_path / 'home', tmp_path / 'tmp'
  home.mkdir()
  temporary.mkdir()
  done = subprocess.run(
      [sys.executable, '-c', ALONE, str(tmp_path / 'work')], cwd=ROOT,
      check=True, capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'HOME': str(home),
           'TMPDIR': str(temporary), 'JAX_PLATFORMS': 'cpu'})
  # TFDS prints where it builds; here stdout is the programs' own.
  assert json.loads(done.stdout) == [30, True, [], []]
  assert not os.listdir(home) and not os.listdir(temporary)
