"""Checkpoints in folders of any name, and damaged ones: never other params."""

import json
import os
import shutil

import flips_program
import pytest
import tiny_training

from specdiff_jax.core import errors
from specdiff_jax.training import checksum
from specdiff_jax.training.checkpoint import saving


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder with two checkpoints, and the digests of their states."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, flips_program.write(folder)


def test_flipped_bits(capfd):
  """A short form of the program, which tells how to run more."""
  told = flips_program.main(10)
  assert sum(n for name, n in told.items() if name != 'seconds') == 10
  assert told['newest'] < 10
  assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize(
  'name', ['run[1]', 'a{b,c}', 'a*b', 'what?', 'back\\slash', 'ü #%~:\n']
)
def test_a_folder_of_any_name(tmp_path, name):
  """Saved, restored by another one, and only as many kept as wanted."""
  folder, told = tmp_path / name, []
  (tmp_path / 'aXb').mkdir()
  digests = flips_program.write(folder)
  assert flips_program.outcome(folder, digests) == 'newest'
  state, _ = tiny_training.start()
  saved = saving.Checkpointer(str(folder), keep=1, say=told.append)
  state = saved.restore(state, tiny_training.batches())
  with saved:
    saved.save(state.replace(step=state.step + 1), tiny_training.batches())
  assert saved.steps() == [2, 5] and not told  # the best, and the newest
  (folder / '5' / 'state' / 'manifest.ocdbt').write_bytes(b'')
  (folder / '2' / 'state' / 'manifest.ocdbt').write_bytes(b'')
  with pytest.raises(errors.InputError) as caught:
    saved.restore(state, tiny_training.batches())
  assert str(folder) in str(caught.value)
  assert '/proc/self' not in str(caught.value)


def copied(whole, tmp_path):
  return shutil.copytree(whole[0], tmp_path / 'copy')


@pytest.mark.parametrize(
  'item, text',
  [
    ('metrics/metrics', b'\xff garbage'),
    ('metrics/metrics', b'{"tau": "high"}'),
    ('metrics/metrics', b'{"tau": NaN}'),
    ('metrics/metrics', b'{"tau": 9.5}'),  # would be the best
    ('seal/metadata', b'[' * 100000),
    ('data/metadata', b'{"next_index": 3}'),
    ('_CHECKPOINT_METADATA', b'garbage'),
  ],
)
def test_garbage_in_the_newest_is_set_aside(whole, tmp_path, item, text):
  folder = copied(whole, tmp_path)
  (folder / '4' / item).write_bytes(text)
  outcome = flips_program.outcome(folder, whole[1])
  assert outcome == ('newest' if item[0] == '_' else 'older')


@pytest.mark.parametrize(
    'text',
    [b'[]', b'7', b'{"item_handlers":7}', b'{"init_timestamp_nsecs":"x"}',
     b'[' * 100000],
)  # fmt: skip
def test_what_orbax_cannot_open_is_set_aside(whole, tmp_path, text):
  folder = copied(whole, tmp_path)
  (folder / '4' / '_CHECKPOINT_METADATA').write_bytes(text)
  assert flips_program.outcome(folder, whole[1]) == 'older'


@pytest.mark.parametrize('item', ['_CHECKPOINT_METADATA', 'state/_METADATA'])
def test_a_pipe_is_not_waited_for(whole, tmp_path, item):
  folder = copied(whole, tmp_path)
  (folder / '4' / item).unlink()
  os.mkfifo(folder / '4' / item)
  assert flips_program.outcome(folder, whole[1]) == 'older'


def test_other_folders_are_left_alone(whole, tmp_path):
  folder = copied(whole, tmp_path)
  (folder / '007').mkdir()
  assert flips_program.outcome(folder, whole[1]) == 'newest'
  assert (folder / '007').is_dir()


def test_metrics_of_all_damaged_is_an_error(whole, tmp_path):
  folder = copied(whole, tmp_path)
  for step in ('2', '4'):
    (folder / step / 'metrics' / 'metrics').write_bytes(b'garbage')
  with pytest.raises(errors.InputError, match='none is whole; step 4'):
    saving.Checkpointer(str(folder))
  assert sorted(path.name for path in folder.iterdir()) == ['2', '4']


def test_older_seals_have_no_tau(whole, tmp_path):
  folder = copied(whole, tmp_path)
  path = folder / '4' / 'seal' / 'metadata'
  sealed = json.loads(path.read_text())
  del sealed['tau']
  path.write_text(json.dumps(sealed))
  assert flips_program.outcome(folder, whole[1]) == 'newest'


def test_too_little_memory_is_no_damage(whole, tmp_path, monkeypatch):
  folder = copied(whole, tmp_path)
  real, calls = checksum.of, []

  def of(*args):
    calls.append(1)
    if len(calls) == 1:
      raise MemoryError
    return real(*args)

  monkeypatch.setattr(checksum, 'of', of)
  saved = saving.Checkpointer(str(folder))
  with pytest.raises(MemoryError):
    saved.restore(tiny_training.start()[0], tiny_training.batches())
  assert sorted(path.name for path in folder.iterdir()) == ['2', '4']
