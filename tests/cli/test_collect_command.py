"""`collect`: stopped, full disk, resumed; nothing written is lost."""

import errno
import os

import pytest

from specdiff_jax.data import dataset
from specdiff_jax.data import trajectories
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import collecting as build_collecting

PROMPTS = 8


@pytest.fixture
def argv(tiny, root):
  return (
      'collect', tiny, f'--prompts={root}/configs/prompts/tiny.jsonl',
      f'--limit={PROMPTS}', '--config.batch=2', '--config.system=lookup',
      '--config.temperature=1.0',
  )  # fmt: skip


def records(workdir):
  header, source = dataset.read(str(workdir))
  found = [source[i] for i in range(len(source))]
  texts = {r.id: (r.prompt.tolist(), r.completion.tolist()) for r in found}
  return header, texts


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


def test_prompts_that_changed_are_refused(specdiff, argv, root, tmp_path):
  """Under the same ids, in the file or by what they are made into."""
  assert specdiff(*argv, '--limit=2', f'--workdir={tmp_path}/a').code == 0
  before = (tmp_path / 'a' / 'journal.jsonl').read_bytes()
  text = (root / 'configs' / 'prompts' / 'tiny.jsonl').read_text()
  other = tmp_path / 'other.jsonl'
  other.write_text(text.replace('waits', 'sleeps'))
  run = specdiff(*argv, f'--prompts={other}', f'--workdir={tmp_path}/a')
  assert run.code == 2 and "'tiny-1'" in run.err and 'tiny-0' not in run.err
  assert run.out == '' and str(tmp_path / 'a') in run.err
  assert (tmp_path / 'a' / 'journal.jsonl').read_bytes() == before


def test_a_prompt_beyond_the_positions_is_named_first(specdiff, tiny, tmp_path):
  prompts = tmp_path / 'p.jsonl'
  prompts.write_text(
    '{"id": "short", "prompt": "one"}\n'
    '{"id": "long", "prompt": "%s"}\n' % ('a' * 1020)
  )
  run = specdiff(
    'collect', tiny, f'--prompts={prompts}', f'--workdir={tmp_path}/a',
    '--config.system=ar', '--config.prompt_buckets=(64,1024)',
  )  # fmt: skip
  assert run.code == 2 and "'long' has 102" in run.err, run.err
  assert '1024 positions' in run.err and not (tmp_path / 'a').exists()


def test_a_dataset_without_its_journal_stays(specdiff, argv, tmp_path):
  workdir = f'--workdir={tmp_path}'
  assert specdiff(*argv, '--limit=2', workdir).code == 0
  (tmp_path / 'journal.jsonl').unlink()
  run = specdiff(*argv, '--limit=1', workdir)
  assert run.code == 2 and 'dataset without its journal' in run.err
  assert len(records(tmp_path)[1]) == 2


def test_a_journal_taken_away_is_noticed(specdiff, argv, tmp_path, monkeypatch):
  real = trajectories.Journal.append

  def append(self, some):
    real(self, some)
    os.remove(self.path)

  monkeypatch.setattr(trajectories.Journal, 'append', append)
  run = specdiff(*argv, f'--workdir={tmp_path}')
  assert run.code == 2 and 'journal.jsonl was deleted' in run.err
  assert run.out == '' and 'Traceback' not in run.err


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


def test_several_completions_of_a_prompt(specdiff, argv, tmp_path):
  """Whatever drafts, and whatever else is collected with them."""
  more = ('--limit=3', '--config.completions=3')
  run = specdiff(*argv, *more, f'--workdir={tmp_path}/a')
  assert run.code == 0, run.err
  _, whole = records(tmp_path / 'a')
  assert run.json['prompts'] == 3
  assert run.json['trajectories'] + run.json['duplicates'] == 9
  assert run.json['trajectories'] == len(whole) > 3
  ids = [name for name in whole if name.partition('#')[0] == min(whole)]
  assert len({tuple(whole[name][0]) for name in ids}) == 1
  assert len({tuple(whole[name][1]) for name in ids}) == len(ids)

  # Another system, in another batch, goes on with more completions.
  other = (*argv, '--limit=3', '--config.system=specdiff', '--config.batch=3',
           f'--workdir={tmp_path}/b')  # fmt: skip
  few = specdiff(*other)
  assert few.code == 0 and few.json['tokens'] < run.json['tokens']
  assert specdiff(*other, *more).code == 0
  assert records(tmp_path / 'b')[1] == whole


def test_several_greedy_completions_are_refused(specdiff, argv, tmp_path):
  more = ('--config.completions=2', '--config.temperature=0.0')
  run = specdiff(*argv, *more, f'--workdir={tmp_path}')
  assert run.code == 2 and 'completions' in run.err and not os.listdir(tmp_path)


def test_processes_share_the_prompts(specdiff, argv, tmp_path):
  """One of three, stopped; then two, which share what is left."""
  assert specdiff(*argv, f'--workdir={tmp_path}/a').code == 0
  whole = records(tmp_path / 'a')[1]
  workdir = f'--workdir={tmp_path}/b'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build_collecting, '_all_there', _lengths)
    patch.setattr(dataset, 'build', lambda _: {'records': 0})
    patch.setattr(processes, 'on_first', lambda act: None)
    patch.setattr(processes, 'is_first', lambda: False)
    for index, count in ((2, 3), (1, 2)):
      patch.setattr(processes, 'process_index', lambda index=index: index)
      patch.setattr(processes, 'process_count', lambda count=count: count)
      assert specdiff(*argv, workdir).code == 0
  # Prompts 2, 5 of the third of three; 1, 3, 7 of the second of two.
  assert len(trajectories.lengths(f'{tmp_path}/b')) == 5
  run = specdiff(*argv, workdir)  # the first process takes what is left
  assert run.code == 0 and run.json['trajectories'] == PROMPTS
  assert records(tmp_path / 'b')[1] == whole


def _lengths(workdir, ids):
  del ids  # nobody waits for the others
  return trajectories.lengths(workdir)
