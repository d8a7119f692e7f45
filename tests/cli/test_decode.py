"""`decode`: the same text whatever drafts, whatever the batch."""

import json
import os

import pytest

SMALL = ('--config.max_new_tokens=12', '--config.prompt_buckets=(32,)')
TWO = '--config.prompt_buckets=(16,32)'  # programs of their own: once
SYSTEMS = ('lookup', 'specdiff')
FIELDS = {'id', 'text', 'tokens', 'tau', 'prompt_sha256', 'sum'}


@pytest.fixture
def prompts(tmp_path):
  """A file of prompts of uneven lengths."""
  path = tmp_path / 'prompts.jsonl'
  texts = ['a', 'hello there', 'ab ab ab ab ab', 'one two three four five six']
  path.write_text(
    ''.join(
      json.dumps({'id': f'p{i}', 'prompt': t}) + '\n'
      for i, t in enumerate(texts)
    )
  )
  return path


def outputs(specdiff, tiny, prompts, *more):
  out = prompts.parent / 'out.jsonl'
  run = specdiff(
      'decode', tiny, f'--prompts={prompts}', f'--out={out}', '--overwrite',
      *SMALL, *more,
  )  # fmt: skip
  assert run.code == 0, run.err
  assert run.out == ''
  return sorted(lines(out), key=lambda record: record['id'])


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_all_systems_and_batches_give_the_tokens_of_ar(
  specdiff, tiny, prompts, temperature
):
  law = f'--config.temperature={temperature}'

  def tokens(*more):
    records = outputs(specdiff, tiny, prompts, law, *more)
    assert [r['id'] for r in records] == ['p0', 'p1', 'p2', 'p3']
    assert all(set(r) == FIELDS for r in records)
    return [r['tokens'] for r in records]

  plain = tokens('--config.system=ar', '--config.drafter=no/such/file')
  assert all(0 < len(row) <= 12 for row in plain)
  for system in SYSTEMS:
    for batch in (1, 3):
      more = (f'--config.system={system}', f'--config.batch={batch}')
      assert tokens(*more) == plain, more
  both = tokens('--config.system=ar', TWO)
  assert tokens('--config.system=lookup', '--config.batch=3', TWO) == both
  if temperature:  # the control: another seed gives other tokens
    assert tokens('--config.system=ar', '--config.seed=1') != plain


def test_text_on_stdout_is_the_text_of_the_file(specdiff, tiny, prompts):
  records = outputs(specdiff, tiny, prompts, '--config.system=ar')
  wanted = ''.join(f'== {r["id"]} ==\n{r["text"]}\n' for r in records)
  for batch in (1, 4):
    run = specdiff(
        'decode', tiny, f'--prompts={prompts}', '--config.system=ar',
        f'--config.batch={batch}', '--config.cycles_per_call=2', *SMALL,
    )  # fmt: skip
    assert run.code == 0 and run.out == wanted
  run = specdiff(
    'decode', tiny, '--prompt=hello there', '--config.system=ar', *SMALL
  )
  # One prompt, no heading. Greedy text does not depend on the prompt's id.
  assert run.out == records[1]['text'] + '\n'


def test_a_text_that_shows_nothing_is_told_of(specdiff, tiny, prompts):
  first = json.loads(prompts.read_text().splitlines()[0])
  empty = json.dumps({'id': 'empty', 'prompt': 'Once upon'})
  prompts.write_text(f'{json.dumps(first)}\n{empty}\n')
  for batch in (1, 4):
    run = specdiff(
        'decode', tiny, f'--prompts={prompts}', '--config.system=ar',
        f'--config.batch={batch}', *SMALL,
    )  # fmt: skip
    assert run.code == 0 and run.out.endswith('== empty ==\n\n')
    assert run.err == (
      "empty: the text '' has no visible character (a random verifier may end "
      'at once).\n'
    )


def test_stop_strings_cut_and_save_cycles(specdiff, tiny, prompts):
  whole = outputs(specdiff, tiny, prompts, '--config.system=ar')
  stop = whole[1]['text'][2:4]
  cut = outputs(
      specdiff, tiny, prompts, '--config.system=ar',
      f'--config.stop=({stop!r},)', '--config.cycles_per_call=1',
  )  # fmt: skip
  assert cut[1]['text'] == whole[1]['text'].partition(stop)[0]
  assert cut[1]['tokens'] == whole[1]['tokens'][: len(cut[1]['tokens'])]
  assert len(cut[1]['tokens']) < len(whole[1]['tokens'])


@pytest.fixture
def decode(specdiff, tiny, prompts):
  """Runs plain decoding of the prompts into out.jsonl."""
  out = prompts.parent / 'out.jsonl'

  def run(*more):
    return specdiff(
        'decode', tiny, f'--prompts={prompts}', f'--out={out}',
        '--config.system=ar', '--config.batch=2', *SMALL, *more,
    )  # fmt: skip

  return run, out


@pytest.mark.parametrize('how', ['killed', 'disk full'])
def test_a_stopped_run_goes_on(decode, monkeypatch, how):
  run, out = decode
  assert run().code == 0
  whole, writes, real = lines(out), [], os.write

  def write(file, data):
    writes.append(data)
    if len(writes) < 3:
      return real(file, data)
    real(file, bytes(data[: len(data) // 2]))
    if how == 'killed':  # so hard that nothing can be mended
      monkeypatch.setattr(os, 'ftruncate', lambda *_: None)
      raise KeyboardInterrupt
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'write', write)
  stopped = run('--overwrite')
  monkeypatch.undo()
  assert stopped.code == (130 if how == 'killed' else 2), stopped
  assert out.read_text().endswith('\n') == (how != 'killed')
  assert len(out.read_text().splitlines()) == (3 if how == 'killed' else 2)

  again = run()
  assert again.code == 0 and '2 of 4' in again.err
  key = lambda record: record['id']
  assert sorted(lines(out), key=key) == sorted(whole, key=key)
  before = out.stat()
  assert run().code == 0
  assert out.stat().st_mtime_ns == before.st_mtime_ns  # nothing was left to do


def test_a_file_taken_away_is_noticed(decode, monkeypatch):
  run, out = decode
  real = os.fsync

  def fsync(file):
    real(file)
    if out.exists() and out.stat().st_size:
      out.unlink()

  monkeypatch.setattr(os, 'fsync', fsync)
  stopped = run()
  monkeypatch.undo()
  assert stopped.code == 2 and 'out.jsonl was deleted' in stopped.err
  assert 'Traceback' not in stopped.err and not out.exists()
  assert run().code == 0 and len(lines(out)) == 4


def test_more_prompts_are_added(decode):
  run, out = decode
  assert run('--limit=2').code == 0
  assert {r['id'] for r in lines(out)} == {'p0', 'p1'}
  # What decides the speed alone may change.
  assert run('--config.batch=3', '--config.cache_step=16').code == 0
  assert [r['id'] for r in lines(out)[2:]] in (['p2', 'p3'], ['p3', 'p2'])


def test_what_others_wrote_is_neither_mixed_nor_lost(decode, prompts):
  run, out = decode

  def refused(*more, words):
    before = out.read_text()
    done = run(*more)
    assert done.code == 2 and out.read_text() == before
    for word in ('--overwrite', *words):
      assert word in done.err, done.err

  out.write_text('my diary')
  refused(words=['out.jsonl.settings.json'])
  assert run('--overwrite').code == 0 and len(lines(out)) == 4
  refused('--config.seed=1', words=['seed was 0 and is now 1'])
  refused('--config.system=lookup', words=["system was 'ar'"])
  prompts.write_text(prompts.read_text().replace('hello', 'howdy'))
  refused(words=["'p1'", 'another prompt'])
  assert run('--overwrite', '--config.seed=1').code == 0
  assert run('--config.seed=1').code == 0 and len(lines(out)) == 4
