"""`ngram`: from texts to a file that the system diffuspec takes."""

import json

import pytest


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'source.jsonl'
  chat = [{'role': 'user', 'content': 'a b'}, {'role': 'x', 'content': 'c'}]
  records = [
    {'prompt': 'a b a b', 'answer': 'b'},
    {'prompt': chat, 'answer': ''},
  ]
  path.write_text('\n'.join(map(json.dumps, records)))
  return path


def test_texts_of_records_and_of_trajectories(specdiff, data, source, tmp_path):
  out = tmp_path / 'out.safetensors'
  argv = 'ngram', '--verifier=random:tiny', f'--out={out}'
  run = specdiff(*argv, f'--from={source}', '--order=2')
  assert run.code == 0, run.err
  told = {'out': str(out), 'order': 2, 'texts': 3, 'tokens': 11}
  assert told.items() <= run.json.items() and len(run.json['ngrams']) == 2
  made = out.read_bytes()
  run = specdiff(*argv, f'--from={source}')
  assert run.code == 2 and '--overwrite' in run.err
  assert out.read_bytes() == made
  more = '--overwrite', '--field=prompt,answer', '--limit=2'
  run = specdiff(*argv, f'--from={source}', *more)
  assert run.json['texts'] == 2 and run.json['tokens'] == 8
  run = specdiff(*argv, f'--from={data}', '--overwrite')
  assert run.code == 0 and run.json['order'] == 3


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--out=x'], 'There is no --from'),
    (['--from={source}'], 'There is no --out'),
    (['--from={source}', '--field=x'], "no field 'x'; it has answer, prompt"),
    (['--from={out}'], 'neither a file that is there nor'),
    (['--from={source}', '--order=9'], '--order is 9, but'),
    (['--from={source}', '--order=0'], 'order'),
    (['--from=x.arpa', '--order=2'], '--order is given, but'),
    (['--from={source}', '--out={out}.arpa'], 'give another ending'),
    (['--from={source}', '--verifier=random:x'], 'the random ones are'),
    (['--from={source}', '--verifier={source}'], 'source.jsonl'),
  ],
)
def test_bad_input(specdiff, source, tmp_path, flags, said):
  out = tmp_path / 'out.safetensors'
  argv = [f.format(source=source, out=out) for f in flags]
  if '--from' in said or '--out' not in said:
    argv = ['--verifier=random:tiny', f'--out={out}', *argv]
  if 'no --from' in said:
    argv = [f'--out={out}']
  run = specdiff('ngram', *argv)
  assert run.code == 2 and said in run.err and run.out == ''
  assert len(run.err.strip().splitlines()) == 1 and not out.exists()
