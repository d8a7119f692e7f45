"""Standard sets in their publishers' forms, and what a bad one is told."""

import datetime
import gzip
import json

import pytest

from specdiff_jax.core import errors
from specdiff_jax.data import overlap
from specdiff_jax.data import prompt_sources
from specdiff_jax.data import prompts
from specdiff_jax.data import suites

# A record of each set, in its public form, and what is read of it.
RECORDS = {
  'gsm8k': ({'question': 'One and one?', 'answer': 'Two.\n#### 2'}, {
    'id': 'gsm8k-0', 'text': 'One and one?', 'task': 'gsm8k',
    'reference': 'Two.\n#### 2',
  }),
  'math500': ({
    'problem': '$1+1$?', 'solution': '', 'answer': '2', 'subject': 'Algebra',
    'unique_id': 'test/algebra/1.json',
  }, {
    'id': 'test/algebra/1.json', 'text': '$1+1$?', 'task': 'math500/Algebra',
    'reference': '\\boxed{2}',
  }),
  'humaneval': ({
    'task_id': 'HumanEval/0', 'prompt': 'def f():\n', 'entry_point': 'f',
    'canonical_solution': '  return 1\n', 'test': 'def check(f): pass',
  }, {
    'id': 'HumanEval/0', 'text': 'def f():\n', 'entry_point': 'f',
    'reference': '  return 1\n', 'test': 'def check(f): pass',
  }),
  'mbpp': ({
    'task_id': 11, 'text': 'Write f.', 'code': 'def f(): pass',
    'test_list': ['assert f() is None'], 'test_setup_code': 'import re',
  }, {
    'id': 'mbpp-11', 'test_list': ['import re', 'assert f() is None'],
    'text': 'Write f.\n\nYour code should pass these tests:\n\n'
    'assert f() is None',
  }),
  'mt_bench': ({
    'question_id': 81, 'category': 'writing', 'turns': ['Go.', 'And on.'],
  }, {
    'id': 'mt_bench-81', 'text': 'Go.', 'turns': ['Go.', 'And on.'],
    'task': 'mt_bench/writing',
  }),
  'spec_bench': ({
    'question_id': 81, 'category': 'coding', 'turns': ['Go.', 'And on.'],
  }, {
    'id': 'spec_bench-81', 'text': 'Go.', 'turns': ['Go.', 'And on.'],
    'task': 'spec_bench/multi-turn',
  }),
  'alpaca': ({'instruction': 'Sort.', 'input': 'b a', 'output': 'a b'}, {
    'id': 'alpaca-0', 'text': 'Sort.\n\nb a',
  }),
  'livecodebench': ({
    'question_id': 'x1', 'question_content': 'Solve.', 'difficulty': 'easy',
    'starter_code': 'class S:',
  }, {
    'id': 'x1', 'task': 'livecodebench/easy',
    'text': 'Solve.\n\nBegin with this code:\n\n```python\nclass S:\n```',
  }),
  'mixed': ({'id': 'a', 'prompt': 'Say.'}, {'id': 'a', 'text': 'Say.'}),
}  # fmt: skip


@pytest.mark.parametrize('name', RECORDS)
@pytest.mark.parametrize('zipped', (False, True))
def test_a_record_in_the_publishers_form(name, zipped, tmp_path):
  record, expected = RECORDS[name]
  path = tmp_path / ('set.jsonl.gz' if zipped else 'set.jsonl')
  opened = gzip.open(path, 'wt') if zipped else path.open('w')
  with opened as file:
    file.write(json.dumps(record) + '\n')
  (found,) = suites.read(name, str(path))
  got = {'id': found.id, 'text': found.text, **found.about}
  assert {key: got[key] for key in expected} == expected
  # Written as a prompt file it is the same prompt.
  out = str(tmp_path / 'out.jsonl')
  assert suites.write(out, name, str(path)) == 1
  assert prompts.read(out) == [found]
  assert prompts.read(out)[0].about == found.about
  with pytest.raises(errors.InputError, match='--overwrite'):
    suites.write(out, name, str(path))


def test_choices_in_an_order_of_their_own(tmp_path):
  path = tmp_path / 'gpqa.csv'
  head = 'Record ID,Question,Correct Answer'
  head += ''.join(f',Incorrect Answer {i}' for i in (1, 2, 3))
  rows = [f'r{i},"Why, {i}?",right {i},w1,w2,w3' for i in range(20)]
  path.write_text('\ufeff' + '\n'.join([head, *rows]) + '\n')
  found = suites.read('gpqa', str(path))
  letters = {one.about['reference'] for one in found}
  assert letters == set('ABCD')  # not always the first
  for number, one in enumerate(found):
    assert one.id == f'r{number}'
    assert f'({one.about["reference"]}) right {number}\n' in one.text
  assert [p.text for p in suites.read('gpqa', str(path))] == [
    p.text for p in found
  ]


def test_the_set_that_ships():
  found = suites.read('mixed')
  assert len(found) == 100
  tasks = [one.about['task'] for one in found]
  assert {tasks.count(task) for task in tasks} == {20}
  assert len(suites.read('mixed', limit=3)) == 3


@pytest.mark.parametrize(
  'name, message',
  (
    ('nothing', 'no suite .*gsm8k'),
    ('math500', '--path=FILE.*MATH-500'),
    ('humaneval', '--path=FILE.*HumanEval.jsonl.gz'),
  ),
)
def test_a_suite_that_is_not_there(name, message):
  with pytest.raises(errors.InputError, match=message):
    suites.read(name)


def test_files_that_are_no_suite(tmp_path):
  with pytest.raises(errors.InputError, match='not there. Get gsm8k from'):
    suites.read('gsm8k', str(tmp_path / 'none.jsonl'))
  path = tmp_path / 'set.jsonl'
  path.write_text('{"question": "a"}\n')
  with pytest.raises(errors.InputError, match="line 1: .*lacks 'answer'"):
    suites.read('gsm8k', str(path))
  path.write_text('')
  with pytest.raises(errors.InputError, match='holds no prompts'):
    suites.read('gsm8k', str(path))
  path.write_text('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n')
  with pytest.raises(errors.InputError, match="line 2: the id '1'"):
    suites.read('gsm8k', str(path))
  path.write_text('{"question_id": 1, "category": "a", "turns": "ab"}\n')
  with pytest.raises(errors.InputError, match='its turns are a text'):
    suites.read('mt_bench', str(path))
  path.write_text('{"task_id": 1, "text": "a", "test_list": "assert"}\n')
  with pytest.raises(errors.InputError, match='its test_list is a text'):
    suites.read('mbpp', str(path))
  (tmp_path / 'cut.jsonl.gz').write_bytes(gzip.compress(b'{"id"' * 99)[:-9])
  with pytest.raises(errors.InputError, match='cannot be read'):
    suites.read('gsm8k', str(tmp_path / 'cut.jsonl.gz'))
  (tmp_path / 'bad.csv').write_bytes(b'Question\n"open\n')
  with pytest.raises(errors.InputError, match='CSV'):
    suites.read('gpqa', str(tmp_path / 'bad.csv'))


LONG = 'one two three four five six seven eight nine ten eleven'


@pytest.mark.parametrize(
  'text, shared',
  (
    (LONG, True),
    ('And ' + LONG.upper().replace(' ', ', '), True),
    (LONG.replace('six', '6'), False),
    ('one two three', False),
    ('Short, that is!', True),
    ('Short, that was!', False),
    ('the second turn', True),
  ),
)
def test_overlap(text, shared):
  seen = overlap.Seen(
    [
      prompts.Prompt('long', LONG),
      prompts.Prompt('short', 'short that is'),
      prompts.Prompt('chat', 'x', about={'turns': ['x', 'the second turn']}),
    ]
  )
  assert bool(seen.like(prompts.Prompt('new', text))) is shared


def test_overlapping_prompts_are_left_out(tmp_path):
  source, out = tmp_path / 'train.jsonl', str(tmp_path / 'out.jsonl')
  rows = [{'prompt': 'Say a.'}, {'prompt': LONG + ' more'}]
  source.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  seen = overlap.Seen([prompts.Prompt('eval', LONG)])
  found = prompt_sources.write(out, str(source), unlike=seen)
  assert found['prompts'] == 1
  assert list(found['overlapping'].values()) == ['eval']
  assert [one.text for one in prompts.read(out)] == ['Say a.']
  # Without a file it only counts.
  again = prompt_sources.write('', str(source), unlike=seen)
  assert again == found


@pytest.mark.parametrize(
  'field, value, good',
  [
    ('turns', 'b', ['b']),
    ('turns', [], ['b']),
    ('choices', ['z-a', 'b'], ['x', 'y']),
    ('choices', [1, 2], 'ABCD'),
    ('test_list', True, ['assert f(1) == 2']),
    ('test_list', 'assert f(1) == 2', ['assert f(1) == 2', 'assert f(2)']),
    ('test', ['x'], 'x'),
    ('entry_point', 3, 'f'),
    ('reference', 42, '42'),
  ],
)
def test_what_an_answer_is_checked_against(field, value, good):
  line = {'id': 'a', 'prompt': 'p'}
  bad = json.dumps(line | {field: value}).encode()
  with pytest.raises(errors.InputError, match=f'there: the field "{field}" is'):
    prompts.parse(bad, 'there')
  for one in (good, None):  # of a table, in whose rows all fields are
    made = prompts.parse(json.dumps(line | {field: one}).encode(), 'there')
    assert made.about.get(field) == one


def test_what_json_has_no_form_for(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path, now = str(tmp_path / 'own.parquet'), datetime.datetime(2026, 11, 29)
  record = {'id': 'a', 'prompt': 'p', 'made': now}
  parquet.write_table(pyarrow.Table.from_pylist([record]), path)
  assert [one.id for one in suites.read('mixed', path)] == ['a']
  parquet.write_table(pyarrow.Table.from_pylist([record | {'id': now}]), path)
  with pytest.raises(errors.InputError, match='row 1: a field cannot be read'):
    suites.read('mixed', path)
