"""The dataset: the journal's records, without TensorFlow or a network."""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.data import dataset
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import tfds_builder
from specdiff_jax.data import trajectories

ROOT = pathlib.Path(__file__).parents[2]
HEADER = {'verifier': 'abc', 'temperature': 0.7, 'list': [1, 2]}


def made(number):
  rng = np.random.default_rng(number)
  return trajectories.Trajectory(
    id=f'prompt-{number} é',
    prompt_hash=f'{number:016x}',
    prompt=np.append(number, rng.integers(0, 1000, number % 5)).astype('i4'),
    completion=rng.integers(0, 1000, number % 7).astype(np.int32),
    temperature=0.7,
    top_k=50,
    top_p=0.95,
    seed=2**40 + number,
  )


def collected(workdir, numbers, process=0):
  with trajectories.Journal(str(workdir), HEADER, process) as journal:
    journal.append([made(number) for number in numbers])


def same(one, other):
  return all(
    np.array_equal(value, getattr(other, name))
    and type(value) is type(getattr(other, name))
    for name, value in vars(one).items()
  )


def test_the_dataset_holds_the_journal_in_order(tmp_path):
  collected(tmp_path, range(40))
  manifest = dataset.build(str(tmp_path))
  stored = (tmp_path / 'dataset/manifest.json').read_text()
  assert json.loads(stored) == manifest and manifest['header'] == HEADER
  assert (manifest['records'], manifest['duplicates']) == (40, 0)
  assert manifest['prompt_hashes'] == [f'{i:016x}' for i in range(40)]
  header, source = dataset.read(str(tmp_path))
  assert header == HEADER and len(source) == 40
  assert all(same(source[i], made(i)) for i in range(40))
  assert not same(source[0], made(1))  # `same` can fail
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']


def test_it_is_made_again_only_for_a_longer_journal(tmp_path, monkeypatch):
  collected(tmp_path, range(3))
  builds = []
  write = tfds_builder.write
  monkeypatch.setattr(
    tfds_builder,
    'write',
    lambda *arguments: (builds.append(1), write(*arguments)),
  )
  dataset.build(str(tmp_path))
  dataset.build(str(tmp_path))
  with open(tmp_path / 'journal.jsonl', 'ab') as file:
    file.write(b'{"torn')
  dataset.build(str(tmp_path))
  assert len(builds) == 1
  collected(tmp_path, range(3, 5))
  dataset.build(str(tmp_path))
  assert len(builds) == 2
  assert len(dataset.read(str(tmp_path))[1]) == 5
  os.remove(tmp_path / 'journal.jsonl')
  dataset.build(str(tmp_path))
  assert len(builds) == 2


def test_a_dataset_of_before_there_was_more_to_say_stays(tmp_path):
  collected(tmp_path, range(3))
  manifest = dataset.build(str(tmp_path))
  path = tmp_path / 'dataset/manifest.json'
  new = ('duplicates', 'stored_top_k', 'prompt_hashes', 'most_id')
  new += ('files', 'sum')
  old = {name: manifest[name] for name in manifest if name not in new}
  path.write_text(json.dumps(old))
  assert dataset.build(str(tmp_path)) == old
  assert len(dataset.read(str(tmp_path))[1]) == 3
  path.write_text(json.dumps(old | {'journal_bytes': 1}))  # the control
  assert dataset.build(str(tmp_path)) == manifest


def test_equal_completions_of_a_prompt_stand_once(tmp_path):
  one = made(3)
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([
        one, dataclasses.replace(one, id='again', seed=1), made(4),
        dataclasses.replace(one, id='other', completion=one.completion[:-1]),
        dataclasses.replace(one, id='asked', prompt=one.prompt[:-1]),
        # The same tokens, parted otherwise.
        dataclasses.replace(
            one, id='parted', prompt=np.append(one.prompt, one.completion[:1]),
            completion=one.completion[1:]),
    ])  # fmt: skip
  manifest = dataset.build(str(tmp_path))
  assert (manifest['records'], manifest['duplicates']) == (5, 1)
  _, source = dataset.read(str(tmp_path))
  ids = [source[i].id for i in range(len(source))]
  assert ids == [one.id, made(4).id, 'other', 'asked', 'parted']


def test_the_journals_of_all_processes_are_one_dataset(tmp_path):
  for process, numbers in enumerate([range(5), range(5, 7), range(7, 9)]):
    collected(tmp_path, numbers, process)
  (tmp_path / 'journal_old.jsonl').write_text('not one of them')
  with open(tmp_path / 'journal.1.jsonl', 'ab') as file:
    file.write(b'{"torn')
  assert dataset.build(str(tmp_path))['records'] == 9
  _, source = dataset.read(str(tmp_path))
  assert all(same(source[i], made(i)) for i in range(9))
  assert trajectories.lengths(str(tmp_path)) == {
    made(i).id: len(made(i).completion) for i in range(9)
  }
  collected(tmp_path, [9], 2)
  assert dataset.build(str(tmp_path))['records'] == 10
  with trajectories.Journal(str(tmp_path), HEADER | {'list': []}, 3) as journal:
    journal.append([made(10)])
  with pytest.raises(errors.InputError, match='journal.3.*list was'):
    dataset.build(str(tmp_path))


def test_a_journal_may_be_read_while_it_grows(tmp_path, monkeypatch):
  """The reader meets a half-written line, which is whole a moment later."""
  collected(tmp_path, range(2))
  path = tmp_path / 'journal.jsonl'
  whole = path.read_bytes()
  path.write_bytes(whole[:-9])
  parse = journal_lib.parsed

  def growing(line):
    if not line.endswith(b'\n'):
      path.write_bytes(whole + whole[whole.index(b'\n') + 1 :])
    return parse(line)

  monkeypatch.setattr(journal_lib, 'parsed', growing)
  assert list(trajectories.lengths(str(tmp_path))) == [made(0).id]


def with_law(number, k=3):
  rng = np.random.default_rng(number)
  record = made(number)
  shape = (len(record.completion), k)
  return dataclasses.replace(
    record,
    top_ids=rng.integers(0, 1 << 17, shape).astype(np.int32),
    top_log_p=-rng.random(shape).astype(np.float16),
  )


def test_a_stored_law_comes_back_to_the_bit(tmp_path):
  records = [with_law(number) for number in range(1, 7)]
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append(records)
  assert all(map(same, trajectories.every(str(tmp_path)), records))
  assert dataset.build(str(tmp_path))['stored_top_k'] == 3
  _, source = dataset.read(str(tmp_path))
  assert all(same(source[i], records[i]) for i in range(6))
  assert not same(source[0], made(1))


def test_joined_sources(tmp_path):
  parts = [made(0), made(1)], [], [made(2)]
  source = dataset.Joined(parts)
  assert len(source) == 3
  assert all(same(source[i], made(i)) for i in range(3))


def test_a_killed_build_leaves_no_trace(tmp_path, monkeypatch):
  collected(tmp_path, range(3))
  with monkeypatch.context() as patch:
    patch.setattr(tfds_builder.os, 'rename', None)  # a bug, not an OSError
    with pytest.raises(TypeError):
      dataset.build(str(tmp_path))
  os.makedirs(tmp_path / 'dataset.partial/trajectories')  # kill -9 leaves it
  with pytest.raises(errors.InputError, match='no trajectory dataset'):
    dataset.read(str(tmp_path))
  dataset.build(str(tmp_path))
  assert len(dataset.read(str(tmp_path))[1]) == 3
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']


@pytest.mark.slow
def test_a_full_disk_keeps_the_dataset_before(tmp_path):
  collected(tmp_path, range(3))
  dataset.build(str(tmp_path))
  collected(tmp_path, range(3, 3000))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:  # a real failure of write() in array_record's own code
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    with pytest.raises(errors.InputError, match='nothing is lost'):
      dataset.build(str(tmp_path))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert len(dataset.read(str(tmp_path))[1]) == 3
  dataset.build(str(tmp_path))
  assert len(dataset.read(str(tmp_path))[1]) == 3000
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']


def test_nothing_collected_is_said(tmp_path):
  for call in (dataset.build, dataset.read):
    with pytest.raises(errors.InputError, match='specdiff collect'):
      call(str(tmp_path))
  trajectories.Journal(str(tmp_path), HEADER).close()
  with pytest.raises(errors.InputError, match='no trajectory yet'):
    dataset.build(str(tmp_path))


def test_a_damaged_dataset_is_said(tmp_path):
  collected(tmp_path, range(3))
  dataset.build(str(tmp_path))
  [shard] = tmp_path.glob('dataset/**/*.array_record*')
  shard.write_bytes(shard.read_bytes()[:100])
  with pytest.raises(errors.InputError, match='damaged.*Delete that'):
    dataset.read(str(tmp_path))
  shard.unlink()
  with pytest.raises(errors.InputError, match='damaged'):
    dataset.read(str(tmp_path))


ALONE = """
import json, socket, sys
calls = []
def refuse(*arguments):
  calls.append(str(arguments[1:]))
  raise OSError('no network')
socket.socket.connect = socket.getaddrinfo = refuse
from specdiff_jax.data import dataset
light = 'tensorflow_datasets' not in sys.modules
dataset.build(sys.argv[1])
source = dataset.read(sys.argv[1])[1]
from specdiff_jax.data import windows
config = windows.WindowConfig(tokens=16, windows=4, gamma=2, batch=2)
next(iter(windows.batches(source, config)))
heavy = {'tensorflow', 'apache_beam'} & set(sys.modules)
print(json.dumps([len(source), light, sorted(heavy), calls]))
"""


@pytest.mark.slow
def test_no_tensorflow_no_network_no_traces_elsewhere(tmp_path):
  collected(tmp_path / 'work', range(30))
  home, temporary = tmp_path / 'home', tmp_path / 'tmp'
  home.mkdir()
  temporary.mkdir()
  done = subprocess.run(
    [sys.executable, '-c', ALONE, str(tmp_path / 'work')],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'HOME': str(home),
      'TMPDIR': str(temporary),
      'JAX_PLATFORMS': 'cpu',
    },
  )
  # TFDS prints where it builds; here stdout is the programs' own.
  assert json.loads(done.stdout) == [30, True, [], []]
  assert not os.listdir(home) and not os.listdir(temporary)
