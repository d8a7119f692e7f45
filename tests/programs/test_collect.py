"""`collect`: stopped, full disk, resumed; nothing written is lost."""

import errno
import os

import pytest

from specdiff_jax.data import trajectories

PROMPTS = 8


@pytest.fixture
def argv(tiny, root):
  return (
      'collect', tiny, f'--prompts={root}/configs/prompts/tiny.jsonl',
      f'--limit={PROMPTS}', '--config.batch=2', '--config.system=lookup',
      '--config.temperature=1.0',
  )  # fmt: skip


def records(workdir):
  header, source = trajectories.open_dataset(str(workdir))
  found = [source[i] for i in range(len(source))]
  return header, {r.id: (r.prompt.tolist(), r.completion.tolist()) for r in found}


def test_collects_and_goes_on(specdiff, argv, tmp_path):
  run = specdiff(*argv, f'--workdir={tmp_path}/a')
  assert run.code == 0, run.err
  assert run.json['prompts'] == PROMPTS and run.json['tokens'] > 0
  header, whole = records(tmp_path / 'a')
  assert header['verifier'] == run.json['verifier']
  assert header['temperature'] == 1.0
  assert len(whole) == PROMPTS

  again = specdiff(*argv, f'--workdir={tmp_path}/a')
  assert again.code == 0 and again.json['tokens'] == 0

  fewer = specdiff(*argv, '--limit=3', f'--workdir={tmp_path}/b')
  assert fewer.code == 0 and len(records(tmp_path / 'b')[1]) == 3
  assert specdiff(*argv, f'--workdir={tmp_path}/b').code == 0
  assert records(tmp_path / 'b')[1] == whole


def test_another_law_needs_another_folder(specdiff, argv, tmp_path):
  assert specdiff(*argv, '--limit=2', f'--workdir={tmp_path}').code == 0
  run = specdiff(*argv, f'--workdir={tmp_path}', '--config.temperature=0.5')
  assert run.code == 2 and 'temperature' in run.err


@pytest.mark.parametrize('how', ['killed', 'disk full'])
def test_what_was_written_stays(specdiff, argv, tmp_path, monkeypatch, how):
  assert specdiff(*argv, f'--workdir={tmp_path}/a').code == 0
  real, writes = os.write, []

  def write(file, data):
    writes.append(len(data))
    if len(writes) == 4:  # the header, then a row each time
      real(file, bytes(data[: len(data) // 2]))
      if how == 'killed':
        raise KeyboardInterrupt
      raise OSError(errno.ENOSPC, 'No space left on device')
    return real(file, data)

  monkeypatch.setattr(os, 'write', write)
  run = specdiff(*argv, f'--workdir={tmp_path}/b')
  monkeypatch.undo()
  assert run.code == (130 if how == 'killed' else 2), run
  assert len(writes) == 4
  assert 'Traceback' not in run.err
  if how == 'disk full':
    assert 'space' in run.err and 'journal' in run.err
  assert run.out == ''

  run = specdiff(*argv, f'--workdir={tmp_path}/b')
  assert run.code == 0, run.err
  tokens = specdiff(*argv, f'--workdir={tmp_path}/c').json['tokens']
  assert 0 < run.json['tokens'] < tokens  # it did not start over
  assert records(tmp_path / 'b')[1] == records(tmp_path / 'a')[1]
