"""Files of a tokenizer that come from a stranger: success, or one sentence."""

import json
import os
import pathlib
import subprocess
import sys
import time
import tracemalloc

import fuzz_text_program
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe

_PROGRAM = (
  pathlib.Path(__file__).parents[1] / 'programs' / 'fuzz_text_program.py'
)
# How many cases; 400 of each were run once. A tokenizer.json takes the longest.
_CASES = {
  'tokenizer.json': 40,
  'tokenizer_config.json': 100,
  'added_tokens.json': 100,
  'special_tokens_map.json': 100,
  'generation_config.json': 100,
  'vocab.json': 50,
  'merges.txt': 50,
  'chat_template.jinja': 50,
}


@pytest.mark.parametrize('name', _CASES)
def test_damaged_files(root, tmp_path, name):
  done = subprocess.run(
    [sys.executable, _PROGRAM, tmp_path, name, '0', str(_CASES[name])],
    env=os.environ | {'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  told = json.loads(done.stdout)
  assert not told['wrong'], told['wrong'][:5]
  assert told['read'] and told['refused'] > _CASES[name] // 4
  assert told['read'] + told['refused'] == _CASES[name]


def write(folder, name='tokenizer.json', **more):
  """Writes a sound directory, with other files or other content."""
  for other, value in (fuzz_text_program.valid(name) | more).items():
    data = value if isinstance(value, str) else json.dumps(value)
    (folder / other).write_bytes(data.encode('utf-8', 'surrogatepass'))


def read(folder):
  return tokenizer_lib.Tokenizer.from_directory(str(folder))


def test_the_directory_is_sound(tmp_path):
  write(tmp_path)
  tokenizer = read(tmp_path)
  assert tokenizer.end_ids == (258, 259)
  assert tokenizer.encode('ab<x>')[-2:] == [256, 260]


_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'generation_config.json',
  'config.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
  'additional_chat_templates/default.jinja',
)


@pytest.mark.parametrize('kind', ['fifo', 'device', 'directory', 'large'])
@pytest.mark.parametrize('name', _FILES)
def test_what_is_no_file_of_a_usual_size(tmp_path, name, kind):
  write(tmp_path, 'added_tokens.json')
  if name == 'tokenizer.model':
    (tmp_path / 'vocab.json').unlink()
  file = tmp_path / name
  file.parent.mkdir(exist_ok=True)
  file.unlink(missing_ok=True)
  if kind == 'fifo':
    os.mkfifo(file)
  elif kind == 'device':
    file.symlink_to('/dev/zero')
  elif kind == 'directory':
    file.mkdir()
  else:
    with open(file, 'wb') as large:
      large.truncate(65 << 20)
  begin = time.monotonic()
  wanted = 'larger than' if kind == 'large' else 'not a regular file'
  with pytest.raises(errors.InputError, match=f'{name}: {wanted}'):
    read(tmp_path)
  assert time.monotonic() - begin < 5


def changed(change):
  """Returns a tokenizer.json with change(it) done."""
  value = fuzz_text_program.valid('tokenizer.json')['tokenizer.json']
  change(value)
  return value


def in_model(**more):
  return changed(lambda value: value['model'].update(more))


def other_part(part, **more):
  return changed(lambda value: value.update({part: more}))


def adds(ids):
  def change(value):
    value['post_processor']['special_tokens']['<s>'] |= {
      'ids': ids,
      'tokens': ['<s>'] * len(ids),
    }

  return changed(change)


def grows():
  steps = [
    {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'a' * 999}
  ] * 9
  return other_part('normalizer', type='Sequence', normalizers=steps)


_WRONG = {
  'a panic at encoding': other_part(
    'pre_tokenizer', type='FixedLength', length=0
  ),
  'a panic at decoding': other_part(
    'decoder', type='Strip', content='a', start=99, stop=99
  ),
  'a panic at reading': in_model(continuing_subword_prefix='####'),
  'an abort': in_model(
    continuing_subword_prefix='é',
    vocab={'a': 0, '日': 1, 'aé': 2, 'é': 3},
    merges=[['a', '日']],
  ),
  'an expression that takes ages': other_part(
    'pre_tokenizer',
    type='Split',
    pattern={'Regex': '(a|a)+$'},
    behavior='Isolated',
    invert=False,
  ),
  'a text that grows': grows(),
  'a replacement that is long': other_part(
    'normalizer', type='Replace', pattern={'String': 'q'}, content='x' * 17
  ),
  'replacements that multiply': other_part(
    'decoder',
    type='Sequence',
    decoders=[
      {'type': 'Replace', 'pattern': {'String': a}, 'content': b * 9}
      for a, b in ('qw', 'we')
    ],
  ),
  'an unknown token that is not there': in_model(
    type='WordLevel', vocab={'a': 0}, unk_token='zz'
  ),
  'brackets': '[' * 10**6,
  'objects': '{"a":' * 10**5,
  'nothing': '',
  'null': 'null',
}


@pytest.mark.parametrize('name', _WRONG)
def test_tokenizer_json_that_breaks_the_library(tmp_path, capfd, name):
  """Not an abort, a hang or a panic of this process; nothing else is said."""
  write(tmp_path, **{'tokenizer.json': _WRONG[name]})
  begin = time.monotonic()
  with pytest.raises(errors.InputError, match='tokenizer.json: not a token'):
    read(tmp_path)
  assert time.monotonic() - begin < 20  # takes 2 on a machine that is not busy
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize('ids', [[262], [99999], [2**31]])
def test_ids_of_the_processor_that_no_token_has(tmp_path, ids):
  write(tmp_path, **{'tokenizer.json': adds(ids)})
  with pytest.raises(errors.InputError, match=f'adds the id {ids[0]}, w'):
    read(tmp_path)


def test_ids_that_no_vocabulary_has(tmp_path):
  vocabulary = fuzz_text_program.valid('vocab.json')['vocab.json'] | {
    'q': 2**32 - 1
  }
  write(tmp_path, **{'tokenizer.json': in_model(vocab=vocabulary)})
  with pytest.raises(errors.InputError, match='4294967295.*no vocabulary'):
    read(tmp_path)


def test_dropout_of_training_is_switched_off(tmp_path):
  write(tmp_path, **{'tokenizer.json': in_model(dropout=0.9)})
  tokenizer = read(tmp_path)
  made = {tuple(tokenizer.encode('ab' * 20)) for _ in range(5)}
  assert len(made) == 1


@pytest.mark.parametrize('value', [-1, 10**6, 2**31, 10**30, [], None, [-1]])
def test_ends_that_no_token_has_end_nothing(tmp_path, value):
  write(tmp_path, **{'generation_config.json': {'eos_token_id': value}})
  assert read(tmp_path).end_ids == (258, 259)


@pytest.mark.parametrize('value', [True, 1.5, '2', {}, [2, '3'], [[2]]])
def test_ends_of_a_wrong_type(tmp_path, value):
  write(tmp_path, **{'generation_config.json': {'eos_token_id': value}})
  with pytest.raises(errors.InputError, match='generation_config.json: eos'):
    read(tmp_path)


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('eos_token', 7, 'eos_token is 7, not a token'),
    ('eos_token', {'content': 7}, 'not a token'),
    ('mask_token', ['x'], "mask_token is .'x'., not a token"),
    ('added_tokens_decoder', [], r'added_tokens_decoder is \[\], not a ta'),
    ('added_tokens_decoder', {'x': 'a'}, "an added token has the id 'x'"),
    ('added_tokens_decoder', {'-1': 'a'}, "an added token has the id '-1'"),
    ('added_tokens_decoder', {'9' * 30: 'a'}, 'an added token has the id'),
    ('added_tokens_decoder', {'258': 5}, 'is 5, not a token'),
    ('added_tokens_decoder', {'400': 'qq'}, 'have the id 400.* is 262'),
    ('additional_special_tokens', 'x', "is 'x', not a list"),
    ('additional_special_tokens', [3], 'is 3, not a token'),
    ('extra_special_tokens', {'a': 3}, 'is 3, not a token'),
    ('split_special_tokens', 'yes', "is 'yes', not true or false"),
    ('clean_up_tokenization_spaces', 3, 'is 3, not true or false'),
    ('chat_template', 3, 'chat_template is 3, not a template'),
    ('chat_template', [3], 'not a template'),
    ('chat_template', [{'name': ['x'], 'template': 'x'}], 'not a template'),
    ('chat_template', [{'name': 'default'}], 'not a template'),
    ('chat_template', {'default': 3}, 'not a template'),
  ],
)
def test_settings_of_a_wrong_type(tmp_path, key, value, message):
  write(tmp_path)
  file = tmp_path / 'tokenizer_config.json'
  settings = json.loads(file.read_text()) | {key: value}
  file.write_text(json.dumps(settings))
  with pytest.raises(errors.InputError, match=f'(?s){message}'):
    read(tmp_path)


def test_how_much_there_may_be(tmp_path):
  """Refused before anything is made of it."""
  for key, value, message in (
    ('x', [[]] * 600_000, 'too many arrays or objects'),
    (
      'added_tokens_decoder',
      {str(i): f't{i}' for i in range(1000, 133_000)},
      'added_tokens_decoder adds 132000 tokens, where at',
    ),
    (
      'extra_special_tokens',
      {f'r{i}': 't' for i in range(132_000)},
      'extra_special_tokens adds 132000 tokens, where at',
    ),
    (
      'added_tokens_decoder',
      {'258': {'content': 'q' * 2**21, 'normalized': True}},
      'normalised have 2097152 letters, where at',
    ),
  ):
    write(tmp_path)
    file = tmp_path / 'tokenizer_config.json'
    settings = json.loads(file.read_text()) | {key: value}
    file.write_text(json.dumps(settings))
    begin = time.monotonic()
    with pytest.raises(errors.InputError, match=message):
      read(tmp_path)
    assert time.monotonic() - begin < 5


def test_how_many_tokens_there_may_be(tmp_path, monkeypatch):
  write(tmp_path, 'vocab.json')
  assert read(tmp_path).vocab_size == 262
  monkeypatch.setattr(tokenizer_bpe, 'MOST_TOKENS', 257)
  with pytest.raises(errors.InputError, match='vocab.json: holds 258 tokens'):
    read(tmp_path)


def test_how_many_keys_a_tokenizer_json_may_have(tmp_path):
  """They are counted before the file is parsed: this is no whole JSON."""
  write(tmp_path, **{'tokenizer.json': '{' + '"":0,' * ((1 << 20) + 1)})
  with pytest.raises(errors.InputError, match='more than 524288 tokens'):
    read(tmp_path)


def test_how_many_tokens_a_tokenizer_json_may_have(tmp_path):
  vocabulary = {f'{i:x}': i for i in range((1 << 19) + 1)}
  content = {
    'tokenizer.json': other_part(
      'model', type='WordLevel', vocab=vocabulary, unk_token='0'
    )
  }
  write(tmp_path, **content)
  begin = time.monotonic()
  with pytest.raises(errors.InputError, match='more than 524288 tokens'):
    read(tmp_path)
  assert time.monotonic() - begin < 20


def test_merges_on_one_line(tmp_path):
  """Not split into more parts than are looked at."""
  write(tmp_path, 'merges.txt', **{'merges.txt': 'a ' * 10**7})
  tracemalloc.start()
  with pytest.raises(errors.InputError, match='line 1 is not two tokens'):
    read(tmp_path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 200e6  # 600 with all the parts


def test_a_long_template(tmp_path):
  """Wherever it stands it is bounded, and reading does not search it."""
  write(tmp_path)
  file = tmp_path / 'tokenizer_config.json'
  settings = json.loads(file.read_text())
  template = '<a' * (1 << 19)
  more = {'extra_special_tokens': [f'<a{i}' for i in range(5000)]}
  file.write_text(json.dumps(settings | more | {'chat_template': template}))
  begin = time.monotonic()
  assert read(tmp_path).vocab_size == 5262
  assert time.monotonic() - begin < 4  # takes 19 s where all are searched
  file.write_text(json.dumps(settings | {'chat_template': template + 'a'}))
  with pytest.raises(errors.InputError, match='the chat template has 1048577'):
    read(tmp_path)


def test_a_template_that_is_not_utf8(tmp_path):
  write(tmp_path)
  (tmp_path / 'chat_template.jinja').write_bytes(b'caf\xe9')
  with pytest.raises(errors.InputError, match='jinja: not UTF-8'):
    read(tmp_path)


@pytest.mark.parametrize('chat', [False, True])
def test_half_of_a_surrogate_pair(chat):
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  tokenizer.chat_template = '{{ messages[0].content }}'
  with pytest.raises(errors.InputError, match='half of a surrogate pair'):
    tokenizer.encode_prompt('caf\udce9 and more', chat)
  assert tokenizer.encode_prompt('café', chat) == [*'café'.encode()]


def test_a_panic_later_on():
  """What no trial at reading has seen is an error of ours, too."""
  backend = tokenizers.Tokenizer(models.BPE({'a': 0}, []))
  backend.pre_tokenizer = pre_tokenizers.FixedLength(length=0)
  backend.decoder = tokenizers.decoders.Strip('a', 9, 9)
  tokenizer = tokenizer_lib.Tokenizer(backend, {}, [], source='some/model')
  with pytest.raises(errors.InputError, match="some/model.* fails on .*'aaa'"):
    tokenizer.encode('aaa')
  with pytest.raises(errors.InputError, match='some/model.* fails on ids'):
    tokenizer.decode([0])
  with pytest.raises(KeyboardInterrupt):  # is not taken for one
    tokenizer.decode(map(interrupt, [0]))


def interrupt(_):
  raise KeyboardInterrupt
