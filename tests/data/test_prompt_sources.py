"""Prompt files out of JSONL, parquet and TFDS; and what a bad source is told."""

import datetime
import json
import sys

import pytest

from specdiff_jax.core import errors
from specdiff_jax.data import prompt_sources
from specdiff_jax.data import prompts

SHAREGPT = [
  {'from': 'system', 'value': 'Be brief.'},
  {'from': 'human', 'value': 'Hi'},
  {'from': 'gpt', 'value': 'Hello'},
  {'from': 'human', 'value': 'Why?'},
  {'from': 'gpt', 'value': 'Because.'},
]
ASKED = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'Hi'},
  {'role': 'assistant', 'content': 'Hello'},
  {'role': 'user', 'content': 'Why?'},
]
TOOLS = [{'type': 'function', 'function': {'name': 'f'}}]


@pytest.fixture
def source(tmp_path):
  """Writes records as JSON lines; returns the path."""

  def write(*records):
    path = tmp_path / 'source.jsonl'
    path.write_text(''.join(json.dumps(one) + '\n' for one in records))
    return str(path)

  return write


@pytest.fixture
def out(tmp_path):
  return str(tmp_path / 'out.jsonl')


def test_texts_of_another_field(source, out):
  path = source(
    {'question': 'One?', 'answer': '1'},
    {'question': ' \n'},
    {'question': None},
    {'question': 'Two?'},
    {'question': 'One?', 'answer': 'another'},
  )
  found = prompt_sources.write(out, path, field='question')
  assert found == {'prompts': 2, 'empty': 2, 'duplicates': 1}
  made = prompts.read(out)
  assert [one.text for one in made] == ['One?', 'Two?']
  # Ids are of the text alone: in another order they are the same.
  other = source({'question': 'Two?'}, {'question': 'One?'})
  prompt_sources.write(out, other, field='question', overwrite=True)
  assert prompts.read(out) == made[::-1]
  assert made[0].id != made[1].id


def test_ids_of_a_field_and_a_limit(source, out):
  path = source(*({'prompt': f'p{i}', 'n': i} for i in range(5)))
  done = []
  found = prompt_sources.write(
    out, path, id_field='n', limit=3, progress=done.append
  )
  assert found['prompts'] == 3 and done == [1, 2, 3]
  assert prompts.read(out)[2] == prompts.Prompt('2', 'p2')
  path = source({'prompt': 'a', 'n': 1}, {'prompt': 'b', 'n': 1})
  with pytest.raises(errors.InputError, match="line 2: the id '1' is also .*1"):
    prompt_sources.write(out, path, id_field='n', overwrite=True)
  assert len(prompts.read(out)) == 3  # what was there stays


@pytest.mark.parametrize('chat', [SHAREGPT, [*ASKED, {'role': 'assistant', 'content': 'x'}], ASKED])  # fmt: skip
def test_messages_up_to_the_last_one_of_the_user(source, out, chat):
  path = source(
    {'chat': chat, 'tools': TOOLS}, {'chat': []}, {'chat': chat[:1]}
  )
  found = prompt_sources.write(out, path, field='chat')
  assert found == {'prompts': 1, 'empty': 2, 'duplicates': 0}
  (made,) = prompts.read(out)
  assert made.text == ASKED and made.template == {'tools': TOOLS}


def test_parquet_is_as_json_lines(source, out, tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  records = [
    {'messages': ASKED, 'text': 'é 🙂', 'id': 7},
    {'messages': ASKED[:2], 'text': None, 'id': 8},
  ]
  path = str(tmp_path / 'source.parquet')
  parquet.write_table(pyarrow.Table.from_pylist(records), path)
  for field in ('messages', 'text'):
    made = []
    for one in (path, source(*records)):
      prompt_sources.write(out, one, field=field, id_field='id', overwrite=True)
      made.append(prompts.read(out))
    assert made[0] == made[1] and made[0][0].id == '7'
  with pytest.raises(errors.InputError, match="row 1 has .*'x'; it has id, me"):
    prompt_sources.write(out, path, field='x', overwrite=True)
  with open(path, 'rb+') as file:
    file.truncate(40)
  with pytest.raises(errors.InputError, match='cannot be read as a parquet'):
    prompt_sources.write(out, path, field='x', overwrite=True)


def test_parquet_without_its_package(tmp_path, out, monkeypatch):
  path = tmp_path / 'source.parquet'
  path.write_bytes(b'PAR1')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(errors.InputError, match=r'pyarrow.*\[parquet\]') as error:
    prompt_sources.write(out, str(path))
  assert str(path) in str(error.value)


def test_gsm8k_of_tfds(tmp_path, out, monkeypatch):
  from specdiff_jax.data import tfds_builder

  published = tmp_path / 'published'
  for split, count in (('train', 3), ('test', 1)):
    lines = (
      json.dumps({'question': f'{split} {i}, é?', 'answer': f'So #### {i}'})
      for i in range(count)
    )
    published.mkdir(exist_ok=True)
    (published / f'{split}.jsonl').write_text('\n'.join(lines) + '\n')
  home = tmp_path / 'home'
  monkeypatch.setattr(tfds_builder.tfds.core.constants, 'DATA_DIR', str(home))
  monkeypatch.setattr(tfds_builder, '_GSM8K', f'file://{tmp_path}/nowhere')
  with pytest.raises(errors.InputError, match="split 'train' of gsm8k .*fetch"):
    prompt_sources.write(out, 'gsm8k')
  monkeypatch.setattr(tfds_builder, '_GSM8K', f'file://{published}')
  assert prompt_sources.write(out, 'gsm8k')['prompts'] == 3
  made = {one.text: one.id for one in prompts.read(out)}
  assert made.keys() == {f'train {i}, é?' for i in range(3)}
  # What is on the disk is not fetched again; other names and splits of it.
  monkeypatch.setattr(tfds_builder, '_GSM8K', f'file://{tmp_path}/nowhere')
  for name, split, field, count in (
    ('gsm8k', 'test', 'short_answer', 1),
    ('gsm8k:1.0.0', 'train[:2]', '', 2),
  ):
    found = prompt_sources.write(out, name, split, field, overwrite=True)
    assert found['prompts'] == count
  assert all(made[one.text] == one.id for one in prompts.read(out))
  for split, field, said in (
    ('tst', '', "'tst'.*train"),
    ('test', 'x', "gsm8k, record 0 of test .*'x'; it has annotation, answer"),
  ):
    with pytest.raises(errors.InputError, match=said):
      prompt_sources.write(out, 'gsm8k', split, field, overwrite=True)


BAD = {
  'nothing': ((), 'has no prompts'),
  'empty': (({'prompt': ''},), 'has no prompts: of 1 records'),
  'no such field': (({'a': 1, 'b': 2},), "line 1 has no field 'prompt'; .* a, b"),
  'later': (({'prompt': 'x'}, {'a': 1}), "line 2 has no field 'prompt'"),
  'a number': (({'prompt': 3},), "'prompt' is 3, but a prompt is a text"),
  'texts': (({'prompt': ['a', 'b']},), "the message 'a', which is no object"),
  'no role': (({'prompt': [{'content': 'a'}]},), 'which has no role'),
  'no content': (({'prompt': [{'role': 'user'}]},), 'which has no content'),
  'no value': (({'prompt': [{'from': 'human'}]},), 'which has no content'),
  'a wrong role': (({'prompt': [{'role': 1, 'content': ''}]},), 'role is wrong'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_a_bad_source_leaves_nothing(source, out, tmp_path, name):
  records, said = BAD[name]
  path = source(*records)
  with pytest.raises(errors.InputError, match=said) as error:
    prompt_sources.write(out, path)
  assert '\n' not in str(error.value) and path in str(error.value)
  assert [one.name for one in tmp_path.iterdir()] == ['source.jsonl']


def test_sources_that_are_none(tmp_path, out):
  (tmp_path / 'array.json').write_text('[\n{"prompt": "a"}]')
  (tmp_path / 'text.txt').write_text('hello\n')
  for path, said in (
    ('nowhere.jsonl', 'nowhere.jsonl is neither a file'),
    ('no_such_set/of:1.0.0', 'neither a file .* nor a dataset'),
    (tmp_path, 'not a regular file'),
    (tmp_path / 'array.json', 'one JSON array.*jq'),
    (tmp_path / 'text.txt', 'line 1: not JSON'),
  ):
    with pytest.raises(errors.InputError, match=said):
      prompt_sources.write(out, str(path))
  good = tmp_path / 'good.jsonl'
  good.write_text('{"prompt": "a"}')
  with pytest.raises(errors.InputError, match='cannot be written'):
    prompt_sources.write(f'{tmp_path}/no/out.jsonl', str(good))
  (tmp_path / 'out.jsonl').write_text('mine')
  with pytest.raises(errors.InputError, match='is there already'):
    prompt_sources.write(out, str(good))
  assert (tmp_path / 'out.jsonl').read_text() == 'mine'


def test_an_id_is_a_text_or_a_number(tmp_path, out):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path, now = str(tmp_path / 'own.parquet'), datetime.datetime(2026, 11, 29)
  records = [{'prompt': 'p', 'id': now}]
  parquet.write_table(pyarrow.Table.from_pylist(records), path)
  with pytest.raises(
    errors.InputError, match="row 1: the field 'id' is .*2026"
  ):
    prompt_sources.write(out, path, id_field='id')
  assert prompt_sources.write(out, path)['prompts'] == 1  # the control


def test_a_long_field_of_a_csv_table(tmp_path, out):
  path, text = tmp_path / 'long.csv', 'a' * 200_000
  path.write_text(f'prompt\n{text}\n')
  assert prompt_sources.write(out, str(path))['prompts'] == 1
  assert prompts.read(out)[0].text == text
