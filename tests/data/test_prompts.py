"""Prompt files: what they hold, and what each bad line is told."""

import json
import os
import pathlib

import pytest

from specdiff_jax.core import errors
from specdiff_jax.data import overlap
from specdiff_jax.data import prompts

SHARED = pathlib.Path(__file__).parents[2] / '../shared/data'


def write(tmp_path, text):
  path = tmp_path / 'prompts.jsonl'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(path)


def test_reads_ids_and_texts_and_ignores_the_rest(tmp_path):
  path = write(
    tmp_path,
    '{"id": "a", "prompt": "Hello", "task": "x"}\n\n'
    '{"id": 7, "prompt": " h\\u00e9 \\n"}',
  )
  assert prompts.read(path) == [
    prompts.Prompt('a', 'Hello'),
    prompts.Prompt('7', ' hé \n'),
  ]
  assert prompts.read(path, limit=1) == [prompts.Prompt('a', 'Hello')]
  assert not prompts.read(path, limit=0)


def test_a_limit_stops_before_a_later_bad_line(tmp_path):
  path = write(tmp_path, '{"id": "a", "prompt": "x"}\nnot json\n')
  assert len(prompts.read(path, limit=1)) == 1
  with pytest.raises(errors.InputError):
    prompts.read(path)


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'is empty'),
    ('\n \n', 'is empty'),
    ('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt"\n', 'line 2: not JSON'),
    (b'{"id": "a", "prompt": "\xff"}\n', 'line 1: not JSON'),
    ('["a"]\n', 'line 1: a JSON object was expected, found list'),
    ('\n{"id": "a"}\n', 'line 2: the field "prompt" is missing'),
    ('{"prompt": "x"}\n', 'line 1: the field "id" is missing'),
    ('{"id": "a", "prompt": 3}\n', 'line 1: the field "prompt" must be'),
    ('{"id": "a", "prompt": " "}\n', 'line 1: the field "prompt" must be'),
    ('{"id": true, "prompt": "x"}\n', 'line 1: the field "id" must be'),
    (
      '{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "y"}\n',
      "line 2: the id '1' stands already on line 1",
    ),
    ('{"id": "\\ud800", "prompt": "x"}\n', 'line 1: not JSON'),
    ('{"id": "a", "prompt": "x \\udfff"}\n', 'half of a surrogate pair'),
    ('{"id": "a", "prompt": "x", "y": %s}\n' % ('[' * 10**5), 'line 1: not'),
    (
      '{"id": "a", "prompt": "x", "y": %s1%s}\n' % ('[' * 99, ']' * 99),
      'nested too deep',
    ),
    ('{"id": 1%s, "prompt": "x"}\n' % ('0' * 9999), 'line 1: not JSON'),
    ('{"id": 1%s, "prompt": "x"}\n' % ('0' * 2000), 'has 2001 characters'),
    ('{"id": "a", "id": "b", "prompt": "x"}\n', '"id" stands there twice'),
    ('{"id": "a", "prompt": "x", "prompt": "y"}\n', '"prompt" stands there'),
  ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, said):
  path = write(tmp_path, text)
  with pytest.raises(errors.InputError) as caught:
    prompts.read(path)
  assert said in str(caught.value) and path in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
  os.mkfifo(tmp_path / 'fifo')  # nobody writes to it: it would be waited for
  for path, said in (
    (tmp_path / 'none.jsonl', 'there is no such file'),
    (tmp_path, 'not a regular file'),
    (tmp_path / 'fifo', 'not a regular file'),
    ('/dev/zero', 'not a regular file'),
  ):
    with pytest.raises(errors.InputError, match=f'{path}: {said}'):
      prompts.read(str(path))


def test_a_line_without_end_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(prompts, 'LONGEST_LINE', 99)
  good = '{"id": "a", "prompt": "x"}\n'
  assert len(prompts.read(write(tmp_path, good + ' ' * 99))) == 1
  with pytest.raises(errors.InputError, match='line 2: longer than 99 bytes'):
    prompts.read(write(tmp_path, good + ' ' * 100))


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
  text = '\ufeff{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "\U0001f600"}'
  read = prompts.read(write(tmp_path, text))
  assert [(p.id, p.text) for p in read] == [('a', 'x'), ('b', '\U0001f600')]


def test_what_is_no_character_is_refused_wherever_it_comes_from():
  for one in ('\ud800', 'caf\udce9'):  # as Python reads bytes of an argument
    for fields in (('a', one), (one, 'x')):
      with pytest.raises(errors.InputError, match='which is no character'):
        prompts.Prompt(*fields)


def test_hashes_see_words_and_not_white_space():
  assert prompts.text_hash(' a  b\n') == prompts.text_hash('a b')
  assert prompts.text_hash('a b') != prompts.text_hash('ab')
  assert prompts.text_hash('a b') == 'c8687a08aa5d6ed2'


def test_shared_prompts_are_an_error():
  overlap.check_disjoint(['a', 'b'], ['c'])
  with pytest.raises(errors.InputError, match='2 evaluation prompts.*a, b'):
    overlap.check_disjoint({'a', 'b', 'c'}, ['b', 'd', 'a'])


@pytest.mark.skipif(not SHARED.is_dir(), reason='needs the shared prompts')
def test_the_shared_training_prompts_are_disjoint_from_evaluation():
  hashes = {
    path.stem: [prompts.text_hash(p.text) for p in prompts.read(str(path))]
    for path in SHARED.glob('*.jsonl')
  }
  assert len(hashes['gsm8k_train']) == 7473
  train = hashes['gsm8k_train'] + hashes['instructions']
  for name in ('gsm8k_test', 'math500', 'mbpp', 'humaneval'):
    overlap.check_disjoint(train, hashes[name])
  with pytest.raises(errors.InputError):  # the check can fail
    overlap.check_disjoint(train, hashes['gsm8k_test'] + train[:1])


def test_repeated_prompts_have_ids_of_their_own():
  one = [prompts.Prompt('a', 'x'), prompts.Prompt('b', 'y')]
  assert prompts.repeated(one, 1) == one
  found = prompts.repeated(one, 3)
  assert [p.id for p in found] == ['a', 'a#2', 'a#3', 'b', 'b#2', 'b#3']
  assert [p.text for p in found] == ['x'] * 3 + ['y'] * 3
  clash = [*one, prompts.Prompt('a#2', 'z')]
  assert len(prompts.repeated(clash, 1)) == 3
  with pytest.raises(errors.InputError, match="'a#2'.*Rename"):
    prompts.repeated(clash, 2)


CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': [{'type': 'text', 'text': ' Hi\n'}]},
  {'role': 'assistant', 'tool_calls': [{'function': {'name': 'f'}}]},
  {'role': 'tool', 'content': '3', 'name': 'f'},
  {'role': 'user', 'content': 'Why?'},
]


def test_messages_and_arguments_of_the_template(tmp_path):
  lines = (
    {'id': 'a', 'prompt': CHAT},
    {'id': 'b', 'messages': CHAT, 'template': {'x': 1}, 'tools': [{}]},
    {'id': 'c', 'prompt': 'text', 'messages': CHAT, 'tools': 'none of ours'},
    {'id': 'd', 'prompt': 'text', 'template': 'none of ours'},
    {'id': 'e', 'prompt': CHAT, 'chat_template_kwargs': None, 'tools': None},
    {'id': 'f', 'prompt': 'text', 'chat_template_kwargs': {'x': False}},
  )
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  assert prompts.read(write(tmp_path, text)) == [
    prompts.Prompt('a', CHAT),
    prompts.Prompt('b', CHAT, {'tools': [{}], 'x': 1}),
    prompts.Prompt('c', 'text'),
    prompts.Prompt('d', 'text'),
    prompts.Prompt('e', CHAT),
    prompts.Prompt('f', 'text', {'x': False}),
  ]


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'prompt': []}, 'line 1 has no messages'),
    ({'messages': []}, 'line 1 has no messages'),
    ({'messages': 'x'}, 'the field "prompt" is missing'),
    ({'prompt': ['x']}, "has the message 'x', which is no object"),
    ({'prompt': [{'content': 'x'}]}, 'which has no role'),
    ({'prompt': [{'role': 3, 'content': 'x'}]}, 'whose role is wrong'),
    ({'prompt': [{'role': 'user'}]}, 'which has no content'),
    ({'prompt': [*CHAT, {'role': 'user', 'content': None}]}, 'has no content'),
    ({'prompt': [{'role': 'user', 'content': ['x']}]}, 'content is wrong'),
    ({'prompt': CHAT, 'chat_template_kwargs': 'x'}, '"chat_template_kwargs"'),
  ],
)
def test_bad_messages_are_named_with_their_line(tmp_path, fields, said):
  path = write(tmp_path, json.dumps({'id': 'a', **fields}))
  with pytest.raises(errors.InputError) as caught:
    prompts.read(path)
  assert said in str(caught.value) and f'{path}, line 1' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_hash_of_messages_is_of_what_the_user_says():
  said = prompts.text_hash('Hi Why?')
  assert prompts.text_hash(CHAT) == prompts.text_hash(CHAT[1:]) == said
  assert prompts.text_hash(CHAT[:2]) == prompts.text_hash('Hi') != said
  assert prompts.text_hash(CHAT[:1]) == prompts.text_hash('Be brief.')
