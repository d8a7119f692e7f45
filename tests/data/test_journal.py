"""The journal loses nothing: not to a kill, a full disk or a second writer."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trajectory

from specdiff_jax.core import errors
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import trajectories

ROOT = pathlib.Path(__file__).parents[2]
HEADER = {'verifier': 'abc', 'temperature': 0.7, 'seed': 0, 'chat': True}


def made(name, size=5):
  return trajectory.trajectory(
    np.arange(3), np.arange(size), id=name, temperature=0.7
  )


def path_of(folder):
  return pathlib.Path(folder) / 'journal.jsonl'


def test_what_is_written_is_read_back(tmp_path):
  workdir = str(tmp_path / 'a/b')
  with trajectories.Journal(workdir, HEADER) as journal:
    journal.append([made('x'), made('y', 0)])
    journal.append([made('z')])
    assert journal.ids() == {'x', 'y', 'z'}
  with trajectories.Journal(workdir, HEADER) as journal:
    assert journal.ids() == {'x', 'y', 'z'}
  records = list(trajectories.every(workdir))
  assert [record.id for record in records] == ['x', 'y', 'z']
  assert vars(records[0]).keys() == vars(made('x')).keys()
  np.testing.assert_array_equal(records[0].completion, np.arange(5))
  assert records[1].completion.shape == (0,)
  assert records[0].prompt.dtype == records[1].completion.dtype == np.int32


def test_an_id_stands_once(tmp_path):
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made('x')])
    for twice in ([made('x')], [made('y'), made('y')]):
      with pytest.raises(ValueError):
        journal.append(twice)
    assert journal.ids() == {'x'}


@pytest.mark.parametrize(
  'torn', [b'{"id":"to', b'{"id":"torn"}', b'\0\0\0\0\n', b'\0\0', b'[1]\n']
)
def test_a_torn_last_line_goes_and_nothing_else(tmp_path, torn):
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made('x'), made('y')])
  whole = path_of(tmp_path).read_bytes()
  path_of(tmp_path).write_bytes(whole + torn)
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    assert path_of(tmp_path).read_bytes() == whole
    journal.append([made('z')])
  assert path_of(tmp_path).read_bytes().startswith(whole)
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    assert journal.ids() == {'x', 'y', 'z'}


def test_a_cut_at_any_byte_keeps_all_whole_lines(tmp_path):
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made('x', 1), made('y', 1)])
  data = path_of(tmp_path).read_bytes()
  for size in range(len(data) + 1):
    path_of(tmp_path).write_bytes(data[:size])
    with trajectories.Journal(str(tmp_path), HEADER) as journal:
      assert len(journal.ids()) == max(data[:size].count(b'\n') - 1, 0)


def test_damage_in_the_middle_is_named(tmp_path):
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made('x'), made('y')])
  lines = path_of(tmp_path).read_bytes().splitlines(keepends=True)
  old = b'{"journal":1,"header":%s}\n' % json.dumps(HEADER).encode()
  for first, bad, said in (
    (lines[0], b'{"id"\n', 'line 2: not a JSON object'),
    (lines[0], b'{"id":"x"}\n', 'line 2: without a checksum'),
    (old, b'{"id":"x"}\n', 'line 2: not a trajectory'),
  ):
    path_of(tmp_path).write_bytes(first + bad + lines[2])
    with pytest.raises(errors.InputError, match=said):
      trajectories.Journal(str(tmp_path), HEADER)
    assert path_of(tmp_path).read_bytes() == first + bad + lines[2]


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
  path_of(tmp_path).write_text('{"id": "a", "prompt": "b"}\n')
  with pytest.raises(errors.InputError, match='line 1: not the header'):
    trajectories.Journal(str(tmp_path), HEADER)
  assert path_of(tmp_path).read_text() == '{"id": "a", "prompt": "b"}\n'


def test_another_header_is_refused_and_the_field_named(tmp_path):
  trajectories.Journal(str(tmp_path), HEADER).close()
  same = dict(reversed(HEADER.items()), temperature=np.float64(0.7).item())
  trajectories.Journal(str(tmp_path), same).close()
  for changed, said in (
    ({**HEADER, 'seed': 1}, 'seed was 0 and is now 1'),
    ({**HEADER, 'top_k': 5}, 'top_k was absent and is now 5'),
    (
      {'verifier': 'abc', 'temperature': 0.7, 'seed': 0},
      'chat was True and is now absent',
    ),
  ):
    with pytest.raises(errors.InputError, match=said) as caught:
      trajectories.Journal(str(tmp_path), changed)
    assert 'verifier' not in str(caught.value)


def test_one_process_writes_at_a_time(tmp_path):
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    with pytest.raises(errors.InputError, match='Another process'):
      trajectories.Journal(str(tmp_path), HEADER)
    journal.append([made('x')])
  trajectories.Journal(str(tmp_path), HEADER).close()


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, monkeypatch):
  write = os.write

  def half(file, data):  # as a disk that fills up: a part, then no more
    if len(data) > 20:
      return write(file, data[:20])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made('x')])
    before = path_of(tmp_path).read_bytes()
    with monkeypatch.context() as patch:
      patch.setattr(journal_lib.os, 'write', half)
      with pytest.raises(errors.InputError, match='No space left') as caught:
        journal.append([made('y')])
    assert 'run the same command again' in ' '.join(str(caught.value).split())
    assert path_of(tmp_path).read_bytes() == before
    assert journal.ids() == {'x'}
    journal.append([made('y')])  # space was freed
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    assert journal.ids() == {'x', 'y'}


def test_a_short_write_is_finished(tmp_path, monkeypatch):
  write = os.write
  monkeypatch.setattr(
    journal_lib.os, 'write', lambda file, data: write(file, data[:7])
  )
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made('x'), made('y')])
  written = trajectories.every(str(tmp_path))
  assert [record.id for record in written] == ['x', 'y']


def test_a_folder_that_cannot_be_is_said(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='Cannot write'):
    trajectories.Journal(str(tmp_path / 'file' / 'workdir'), HEADER)


WRITER = """
import sys
import numpy as np
from specdiff_jax.data import trajectories
with trajectories.Journal(sys.argv[1], {'seed': 0}) as journal:
  number = len(journal.ids())
  while True:
    journal.append([trajectories.Trajectory(
        id=f'{number + i}', prompt_hash='0' * 16, prompt=np.arange(9),
        completion=np.arange(2000), temperature=0.0, top_k=0, top_p=1.0,
        seed=0) for i in range(4)])
    number += 4
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_confirmed(tmp_path):
  for _ in range(2):
    writer = subprocess.Popen(
      [sys.executable, '-c', WRITER, str(tmp_path)],
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    for _ in range(5):
      confirmed = int(writer.stdout.readline())
    writer.kill()  # SIGKILL, most likely in the middle of a write
    confirmed = int((writer.communicate()[0].split() or [confirmed])[-1])
    with trajectories.Journal(str(tmp_path), {'seed': 0}):  # cuts it
      records = list(trajectories.every(str(tmp_path)))
    assert [r.id for r in records] == [str(i) for i in range(len(records))]
    assert confirmed <= len(records) <= confirmed + 4
    assert all(len(r.completion) == 2000 for r in records)
  assert len(records) >= 40


def test_the_journal_is_compact(tmp_path):
  with trajectories.Journal(str(tmp_path), HEADER) as journal:
    journal.append([made(f'{i}', 300) for i in range(100)])
  data = path_of(tmp_path).read_bytes()
  assert len(data) < 100 * (300 * 4 + 200)
  assert json.loads(data.splitlines()[1])['id'] == '0'
