"""`decode`: the same text whatever drafts, whatever the batch."""

import json

import pytest

SMALL = ('--config.max_new_tokens=12', '--config.prompt_buckets=(16,48)')
SYSTEMS = ('lookup', 'specdiff')


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
      'decode', tiny, f'--prompts={prompts}', f'--out={out}', *SMALL, *more
  )
  assert run.code == 0, run.err
  assert run.out == ''
  return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_all_systems_and_batches_give_the_tokens_of_ar(
    specdiff, tiny, prompts, temperature
):
  law = f'--config.temperature={temperature}'

  def tokens(*more):
    records = outputs(specdiff, tiny, prompts, law, *more)
    assert [r['id'] for r in records] == ['p0', 'p1', 'p2', 'p3']
    assert all(set(r) == {'id', 'text', 'tokens', 'tau'} for r in records)
    return [r['tokens'] for r in records]

  plain = tokens('--config.system=ar', '--config.drafter=no/such/file')
  assert all(0 < len(row) <= 12 for row in plain)
  for system in SYSTEMS:
    for batch in (1, 3):
      more = (f'--config.system={system}', f'--config.batch={batch}')
      assert tokens(*more) == plain, more
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
