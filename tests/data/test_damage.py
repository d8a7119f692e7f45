"""Damage and other processes: noticed, never a silently other record."""

import json
import os
import pathlib
import secrets

import damage_program
import numpy as np
import pytest
import trajectory

from specdiff_jax.core import errors
from specdiff_jax.data import dataset
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import outputs
from specdiff_jax.data import tfds_builder
from specdiff_jax.data import trajectories

HEADER = {'verifier': 'abc'}
SETTINGS = {'seed': 0}


def made(name, size=5, **fields):
  return trajectory.trajectory(np.arange(3), np.arange(size), id=name, **fields)


def journal(folder, *records):
  """Writes them; returns the path."""
  with trajectories.Journal(str(folder), HEADER) as file:
    file.append(list(records))
  return pathlib.Path(folder) / 'journal.jsonl'


def test_flipped_bits_and_strange_lines():
  """A short form of the program, which tells how to run more."""
  told = damage_program.main(12, 24)
  assert told['journal'].get('said', 0) >= 10
  assert told['dataset'].get('said', 0) >= 10
  assert told['dataset and journal'] == {'right': 12}
  assert sum(told['outputs'].values()) == 12
  assert told['lines']['said'] >= 12


def test_negative_control_damage_without_checksums_goes_unseen(tmp_path):
  path = journal(tmp_path, made('x'))
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines[1]['completion'][0] += 1
  for line in lines:
    del line['sum']
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  [record] = trajectories.read_all(str(tmp_path)).records
  assert record.completion[0] == 1


@pytest.mark.parametrize('line', [0, 1, 2])
def test_a_changed_digit_is_named(tmp_path, line):
  path = journal(tmp_path, made('x'), made('y'))
  lines = path.read_bytes().splitlines(keepends=True)
  lines[line] = lines[line].replace(b'1', b'2', 1)
  path.write_bytes(b''.join(lines))
  with pytest.raises(errors.InputError, match=f'line {line + 1}: .*checksum'):
    trajectories.Journal(str(tmp_path), HEADER)
  assert path.read_bytes() == b''.join(lines)


def test_a_changed_last_newline_does_not_lose_a_line(tmp_path):
  path = journal(tmp_path, made('x'), made('y'))
  path.write_bytes(path.read_bytes()[:-1] + b'K')
  with pytest.raises(errors.InputError, match='line 3: not a JSON object'):
    trajectories.Journal(str(tmp_path), HEADER)


def older(path):
  """Takes the checksums of a file away, as older versions wrote it."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text(''.join(
      json.dumps({n: line[n] for n in line if n != 'sum'}) + '\n'
      for line in lines
  ))  # fmt: skip


def test_an_older_journal_goes_on(tmp_path):
  path = journal(tmp_path, made('x'), made('y'))
  older(path)
  journal(tmp_path, made('z'))
  lines = path.read_text().splitlines()
  assert ['"sum"' in line for line in lines] == [False] * 3 + [True]
  assert len(trajectories.read_all(str(tmp_path)).records) == 3
  path.write_text('\n'.join([*lines, lines[1]]) + '\n')  # the control
  with pytest.raises(errors.InputError, match='line 5: without a checksum'):
    trajectories.read_all(str(tmp_path))


def line(name):
  return {'id': name, 'text': 'a', 'tokens': [1], 'tau': 1.0,
          'prompt_sha256': '0' * 16}  # fmt: skip


def opened(path):
  return outputs.Outputs(str(path), SETTINGS, {'x': '0' * 16, 'y': '0' * 16})


def test_an_older_file_of_completions_goes_on(tmp_path):
  path, settings = tmp_path / 'out', tmp_path / 'out.settings.json'
  with opened(path) as file:
    file.append(line('x'))
  older(path)
  settings.write_text(json.dumps(SETTINGS))
  with opened(path) as file:
    assert file.done == {'x'}
    file.append(line('y'))
  with opened(path) as file:
    assert file.done == {'x', 'y'}
  text = path.read_text()
  for wrong in ({'text': 7}, {'tokens': [1.5]}, {'more': 1}):
    path.write_text(json.dumps(line('x') | wrong) + '\n')
    with pytest.raises(errors.InputError, match='line 1: not a completion'):
      opened(path)
  path.write_text(text)
  settings.write_text(json.dumps(SETTINGS | {'sum': '0' * 16}))
  with pytest.raises(errors.InputError, match='checksum.*--overwrite'):
    opened(path)


def test_types_of_trajectories_are_checked(tmp_path):
  path = journal(tmp_path, made('x'))
  older(path)
  header, good = path.read_text().splitlines()
  law = {'top_ids': 'AAAAAA==', 'top_log_p': 'AAA='}
  for wrong, said in (
    ({'completion': [1.5]}, 'completion'),
    ({'completion': [True]}, 'completion'),
    ({'prompt': [-1]}, 'no token'),
    ({'prompt': [2**31]}, 'no token'),
    ({'id': 7}, 'id'),
    ({'prompt_hash': 'x'}, 'prompt_hash'),
    ({'temperature': 'hot'}, 'temperature'),
    ({'temperature': float('nan')}, 'temperature'),
    ({'seed': 2**63}, 'seed'),
    ({'more': 1}, 'more'),
    ({'top_ids': 'AAAA'}, 'multiple of element size'),
    ({'top_ids': 'AAAAAA=='}, 'reshape|missing'),
    (law, 'reshape'),
  ):
    path.write_text(f'{header}\n{json.dumps(json.loads(good) | wrong)}\n')
    with pytest.raises(errors.InputError, match=f'line 2: not a .*{said}'):
      trajectories.read_all(str(tmp_path))


def test_tokens_beyond_the_vocabulary_are_named(tmp_path):
  path = journal(tmp_path, made('x'), made('far', 50))
  dataset.build(str(tmp_path))
  _, source = dataset.read(str(tmp_path))
  dataset.check_ids(str(tmp_path), source, 50)
  where = f'{path}, line 3: the trajectory .far. has the token 49'
  with pytest.raises(errors.InputError, match=where):
    dataset.check_ids(str(tmp_path), source, 49)
  manifest = tmp_path / 'dataset' / 'manifest.json'  # an older one
  fields = json.loads(manifest.read_text())
  for name in ('most_id', 'files', 'sum'):
    del fields[name]
  manifest.write_text(json.dumps(fields))
  dataset.check_ids(str(tmp_path), source, 50)
  with pytest.raises(errors.InputError, match=where):
    dataset.check_ids(str(tmp_path), source, 49)


def test_a_damaged_dataset_is_made_again(tmp_path):
  journal(tmp_path, made('x'), made('y', 6))
  manifest = dataset.build(str(tmp_path))
  [shard] = tmp_path.glob('dataset/**/*.array_record*')
  for path in (shard, tmp_path / 'dataset' / 'manifest.json'):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.InputError, match='damaged|no trajectory'):
      dataset.read(str(tmp_path))
    assert dataset.build(str(tmp_path))['records'] == 2
    assert len(dataset.read(str(tmp_path))[1]) == 2
  name = str(shard.relative_to(tmp_path / 'dataset'))
  assert name in manifest['files']


@pytest.mark.parametrize('how', ['deleted', 'replaced', 'cut', 'grown'])
def test_a_file_taken_away_is_noticed(tmp_path, how):
  path = tmp_path / 'out'

  def harm():
    data = path.read_bytes()
    if how in ('deleted', 'replaced'):
      path.unlink()
    if how == 'replaced':
      path.write_bytes(data)
    if how == 'cut':
      os.truncate(path, len(data) - 3)
    if how == 'grown':
      path.write_bytes(data + b'{}\n')

  file = opened(path)
  file.append(line('x'))
  harm()
  before = path.read_bytes() if path.exists() else None
  with pytest.raises(errors.InputError, match='another process') as caught:
    file.append(line('y'))
  assert str(path) in str(caught.value) and file.done == {'x'}
  assert (path.read_bytes() if path.exists() else None) == before
  file.close()
  path.unlink(missing_ok=True)
  with pytest.raises(errors.InputError, match='another process'):
    with opened(path) as file:  # after the last line, too
      file.append(line('x'))
      harm()


def test_pipes_are_refused_and_parts_follow_no_link(tmp_path, monkeypatch):
  target, pipe = tmp_path / 'target', tmp_path / 'pipe'
  os.mkfifo(pipe)
  with pytest.raises(errors.InputError, match='cannot be written'):
    opened(pipe)
  with pytest.raises(errors.InputError, match='not a regular file'):
    journal_lib.AppendFile(str(pipe))
  with pytest.raises(errors.InputError, match='not a regular file'):
    next(journal_lib.lines(str(pipe)))
  with monkeypatch.context() as patched:  # its name is known to nobody
    patched.setattr(secrets, 'token_hex', lambda _: 'a')
    (tmp_path / 'out.settings.json.a.part').symlink_to(target)
    with pytest.raises(errors.InputError):
      opened(tmp_path / 'out')
  opened(tmp_path / 'out').close()
  assert not target.exists()


def test_a_file_may_be_a_link_to_another_disk_or_a_device(tmp_path):
  (tmp_path / 'out').symlink_to(tmp_path / 'elsewhere')
  for _ in range(2):
    with opened(tmp_path / 'out') as file:
      file.append(line(str(len(file.done))))
  assert (tmp_path / 'out').is_symlink()
  assert (tmp_path / 'elsewhere').read_bytes().count(b'\n') == 2
  with opened('/dev/null') as file:
    file.append(line('a'))
    file.append(line('b'))


def test_lines_of_any_length_are_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(journal_lib, '_LONGEST', 400)
  file = journal_lib.AppendFile(str(tmp_path / 'a'))
  with pytest.raises(errors.InputError, match='more than the 400'):
    file.append([{'id': 'x' * 400}])
  file.close()
  (tmp_path / 'a').write_bytes(b'{"id":"' + b'x' * 400 + b'"}\n')
  with pytest.raises(errors.InputError, match='more than 400 bytes'):
    list(journal_lib.lines(str(tmp_path / 'a')))


@pytest.mark.parametrize('name', ['run[1]', 'a{b,c}', 'a*b', 'ü?', 'back\\s'])
def test_a_dataset_in_a_folder_of_any_name(tmp_path, name):
  (tmp_path / 'aXb').mkdir()  # what `a*b` would find as a pattern
  for folder, key in ((tmp_path / 'aXb', 'other'), (tmp_path / name, 'x')):
    journal(folder, made(key))
    dataset.build(str(folder))
  _, source = dataset.read(str(tmp_path / name))
  assert [source[i].id for i in range(len(source))] == ['x']


def test_what_lies_in_the_place_of_a_dataset_goes(tmp_path):
  journal(tmp_path, made('x'))
  os.mkfifo(tmp_path / 'dataset')
  (tmp_path / 'dataset.partial').symlink_to(tmp_path / 'target')
  assert tfds_builder.read_manifest(str(tmp_path / 'dataset')) is None
  assert dataset.build(str(tmp_path))['records'] == 1
  assert sorted(os.listdir(tmp_path)) == ['dataset', 'journal.jsonl']
