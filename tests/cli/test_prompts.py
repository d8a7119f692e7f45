"""`prompts`: from a dataset to a file that the other programs read."""

import json

import pytest

from specdiff_jax.cli import console


@pytest.fixture
def source(tmp_path):
  texts = ['a b a b', 'c d', '', 'a b a b']
  path = tmp_path / 'source.jsonl'
  lines = [json.dumps({'question': t, 'n': i}) for i, t in enumerate(texts)]
  path.write_text('\n'.join(lines))
  return path


def test_a_file_that_is_decoded(specdiff, tiny, source, tmp_path):
  out = tmp_path / 'out.jsonl'
  argv = 'prompts', f'--from={source}', '--field=question', f'--out={out}'
  run = specdiff(*argv)
  assert run.code == 0, run.err
  counts = {'prompts': 2, 'empty': 1, 'duplicates': 1}
  assert run.json == counts | {'out': str(out)}
  assert '1 records without a prompt and 1 whose prompt' in run.err
  made = out.read_text()
  run = specdiff(*argv)
  assert run.code == 2 and '--overwrite' in run.err
  run = specdiff(*argv, '--overwrite', '--limit=1', '--id_field=n')
  assert run.code == 0 and run.json['prompts'] == 1 and not run.err
  again = specdiff(*argv, '--overwrite', '--split=test')
  assert again.code == 0 and 'which has no splits' in again.err
  run = specdiff(*argv, '--overwrite', '--limit=1', '--id_field=n')
  assert json.loads(out.read_text()) == {'id': 0, 'prompt': 'a b a b'}
  out.write_text(made)
  small = '--config.system=lookup', '--config.prompt_buckets=(16,)'
  run = specdiff('decode', tiny, f'--prompts={out}', *small)
  assert run.code == 0, run.err
  assert run.out.count('== ') == 2


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--out=x'], 'There is no --from'),
    (['--from={source}'], 'There is no --out'),
    (['--from={source}', '--out={out}'], "no field 'prompt'; it has n, quest"),
    (['--from={out}', '--out={out}'], 'neither a file that is there nor'),
    (['--from=gs://a/b', '--out={out}'], 'not at addresses'),
    (
      ['--from={source}', '--out={out}', '--feld=x'],
      'Did you mean field or id_field?',
    ),
    (['--from={source}', '--out={out}', 'x'], 'no positional'),
  ],
)
def test_bad_input(specdiff, source, tmp_path, flags, said):
  out = tmp_path / 'out.jsonl'
  run = specdiff('prompts', *(f.format(source=source, out=out) for f in flags))
  assert run.code == 2 and said in run.err and run.out == ''
  assert len(run.err.strip().splitlines()) == 1
  assert list(tmp_path.iterdir()) == [source]


def test_no_file_without_prompts(specdiff, source, tmp_path):
  """All of them are of the evaluation."""
  out = tmp_path / 'out.jsonl'
  argv = 'prompts', f'--from={source}', '--field=question'
  first = specdiff(*argv, f'--out={tmp_path}/first.jsonl')
  assert first.code == 0
  against = f'--against={tmp_path}/first.jsonl'
  run = specdiff(*argv, f'--out={out}', against)
  assert run.code == 2 and 'no prompts to write' in run.err
  assert not out.exists()
  assert specdiff(*argv, against).code == 1  # a check alone


def test_ctrl_c_leaves_no_half_a_file(specdiff, source, tmp_path, monkeypatch):
  monkeypatch.setattr(console.interrupts, 'came', lambda: True)
  run = specdiff(
    'prompts', f'--from={source}', '--field=question', f'--out={tmp_path}/x'
  )
  assert run.code == 130 and list(tmp_path.iterdir()) == [source]


def test_prompts_of_evaluations_are_left_out(specdiff, source, tmp_path):
  held = tmp_path / 'held.jsonl'
  held.write_text('{"id": "h", "prompt": "C, d!"}')
  argv = 'prompts', f'--from={source}', '--field=question', '--id_field=n'
  only = specdiff(*argv, f'--against={held}')
  assert only.code == 1 and '1 prompts overlap' in only.err
  assert only.json['overlapping'] == {'1': 'h'} and only.json['out'] is None
  out = tmp_path / 'out.jsonl'
  run = specdiff(*argv, f'--against={held}', f'--out={out}')
  assert run.code == 0 and run.json['prompts'] == 1
  assert json.loads(out.read_text()) == {'id': 0, 'prompt': 'a b a b'}
  again = specdiff(
    'prompts', f'--from={out}', f'--against={held}', '--id_field=id'
  )
  assert again.code == 0 and again.json['overlapping'] == {}


def test_a_suite_becomes_a_prompt_file(specdiff, tmp_path):
  out = tmp_path / 'out.jsonl'
  run = specdiff('prompts', '--suite=mixed', '--limit=5', f'--out={out}')
  assert run.code == 0 and run.json == {'prompts': 5, 'out': str(out)}
  first = json.loads(out.read_text().splitlines()[0])
  assert first['id'] == 'arithmetic-0' and '####' in first['reference']
  for flags, said in (
    (['--suite=x', f'--out={out}x'], 'There is no suite'),
    (['--suite=mixed', f'--out={out}'], '--overwrite'),
    (['--suite=mixed'], 'There is no --out'),
    (['--suite=mixed', '--field=q', f'--out={out}'], '--field'),
    (['--suite=math500', f'--out={out}x'], '--from=FILE'),
  ):
    run = specdiff('prompts', *flags)
    assert run.code == 2 and said in run.err, run.err
