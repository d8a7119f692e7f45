"""Tokenizers against definitions written out in the plainest way."""

import json
import os
import re
import time
import tracemalloc

import hf_reference
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from specdiff_jax.checkpoints.gguf import header
from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe

_TEXTS = (
  'Natalia sold 48 clips in April, and $1,250.75 in May: how many?',
  "It's  what we'll\n\n  see;\tdon't\n",
  'Ünïcödé – naïve café 日本語 🙂',
  ' def f(x):\n    return x**2 - 3*x',
  'total:   7',
  '',
  '   ',
)
_SPACE = '\u2581'


@pytest.mark.parametrize('text', [*_TEXTS, ''.join(map(chr, range(300)))])
def test_bytes(text):
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  ids = tokenizer.encode(text)
  assert ids == list(text.encode('utf-8'))
  assert tokenizer.decode(ids) == text
  assert tokenizer.encode_prompt(text, chat=False) == ids


def test_bytes_has_an_end_and_further_ids():
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  assert tokenizer.end_ids == (256,)
  further = [f'<|spare_{i}|>' for i in (257, 258, 259)]
  assert [tokenizer.tokens()[text] for text in further] == [257, 258, 259]
  assert tokenizer.mask_id is None
  assert tokenizer.vocab_size == 260
  ids = np.array([104, 105, 256, 258], np.int32)
  assert tokenizer.decode(ids) == 'hi'
  assert tokenizer.decode([255, 104]) == '\ufffdh'  # no valid UTF-8
  with pytest.raises(errors.InputError, match='at least 257'):
    tokenizer_lib.Tokenizer.bytes(256)
  with pytest.raises(errors.InputError, match='no chat template.*chat=False'):
    tokenizer.encode_prompt('hi', chat=True)


def merge_bytes(word, ranks, letters):
  """Merges the pair of the lowest rank, leftmost first, till none is left."""
  parts = [letters[b] for b in word.encode('utf-8')]
  while True:
    pairs = [
      (ranks.get((a, b), 1 << 30), i)
      for i, (a, b) in enumerate(zip(parts, parts[1:]))
    ]
    rank, i = min(pairs, default=(1 << 30, 0))
    if rank == 1 << 30:
      return parts
    parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.needs_quickstart
@pytest.mark.parametrize('text', _TEXTS)
def test_smollm2_against_plain_bpe(smollm2, smollm2_path, text):
  """Single digits apart, GPT-2's words, then merges by rank."""
  fields = header.read_header(smollm2_path).fields
  tokens = fields['tokenizer.ggml.tokens']
  merges = fields['tokenizer.ggml.merges']
  ids = {t: i for i, t in enumerate(tokens)}
  ranks = {tuple(m.split(' ')): i for i, m in enumerate(merges)}
  letters = tokenizer_bpe.byte_letters()
  words = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+"
    r'|\s+(?!\S)|\s+'
  )
  expected = []
  for piece in re.split(r'(\d)', text):
    for word in words.findall(piece):
      expected += [ids[p] for p in merge_bytes(word, ranks, letters)]
  assert smollm2.tokenizer.encode(text) == expected
  assert smollm2.tokenizer.decode(expected) == text
  if re.search(r'  \d', text):  # the negative control of digits apart
    backend = tokenizers.Tokenizer.from_str(smollm2.tokenizer.backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert backend.encode(text).ids != expected


@pytest.mark.needs_quickstart
def test_smollm2_chat(smollm2):
  tokenizer = smollm2.tokenizer
  assert tokenizer.render_chat('2+2?') == (
    '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, '
    'trained by Hugging Face<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  ids = tokenizer.encode_prompt('2+2?', chat=True)
  assert ids[0] == 1 and ids.count(1) == 3 and ids.count(2) == 2
  assert '<|im' not in tokenizer.decode(ids)
  assert tokenizer.encode_prompt('2+2?', chat=False) == tokenizer.encode('2+2?')


def byte_level_fields(**changes):
  """Returns metadata of a byte-level GGUF with three special tokens."""
  tokens = tokenizer_bpe.byte_letters() + ['<s>', '</s>', '<|eot_id|>', '<u>']
  fields = {
    'model': 'gpt2',
    'pre': 'gpt-2',
    'tokens': tokens + ['12', 'ab'],
    'token_type': [1] * 256 + [3, 3, 3, 4, 1, 1],
    'merges': ['1 2', 'a b'],
    'bos_token_id': 256,
    'eos_token_id': 257,
  } | changes
  return {f'tokenizer.ggml.{k}': v for k, v in fields.items()}


def test_gguf_special_tokens():
  from_gguf = tokenizer_lib.Tokenizer.from_gguf
  plain = from_gguf(byte_level_fields())
  assert plain.end_ids == (257, 258)
  assert plain.encode('<s>ab<u>') == [256, 261, 259]
  assert plain.decode([256, 261, 259, 258]) == 'ab<u>'  # not special: kept
  assert plain.encode('1212') == [260, 260]
  with_bos = from_gguf(byte_level_fields(add_bos_token=True))
  assert with_bos.encode('ab') == [256, 261]
  smollm = from_gguf(byte_level_fields(pre='smollm'))
  assert smollm.encode('12') == [49, 50]
  llama3 = from_gguf(byte_level_fields(pre='llama-bpe'))
  assert llama3.encode('1212') == [256, 260, *b'1', *b'2']  # 121, then 2
  other = from_gguf(byte_level_fields(eom_token_id=256))
  assert other.end_ids == (256, 257, 258)


@pytest.mark.parametrize('text', _TEXTS + ('1234 e\u0301',))
def test_gguf_qwen2_against_transformers(text):
  """Its class of that name splits and composes text as Qwen's file says."""
  transformers = pytest.importorskip('transformers')
  merges = ['1 2', 'a b', '\u0120 a', '\u0120a b']
  letters = tokenizer_bpe.byte_letters()
  tokens = letters + ['<|endoftext|>'] + [m.replace(' ', '') for m in merges]
  reference = transformers.Qwen2Tokenizer(
    vocab={t: i for i, t in enumerate(tokens)},
    merges=[tuple(m.split()) for m in merges],
  )
  fields = byte_level_fields(
    pre='qwen2',
    tokens=tokens,
    token_type=[1] * 256 + [3] + [1] * 4,
    merges=merges,
    bos_token_id=256,
    eos_token_id=256,
    add_bos_token=False,
  )
  tokenizer = tokenizer_lib.Tokenizer.from_gguf(fields)
  text += ' ab abc 1212'
  assert tokenizer.encode(text) == reference.encode(text)
  fields['tokenizer.ggml.pre'] = 'llama-bpe'
  other = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert other.encode(text) != tokenizer.encode(text)  # the control: digits


def test_gguf_tokens_of_the_user():
  """Runs of spaces and newlines go before merges, the longest first."""
  fields, _ = sentencepiece_fields(np.random.default_rng(2))
  added = ['\n', '\n\n', '\n\n\n', _SPACE * 2, '   ', '<mask>']
  first = len(fields['tokenizer.ggml.tokens'])
  fields['tokenizer.ggml.tokens'] += added
  fields['tokenizer.ggml.scores'] += [-1000.0] * 6
  fields['tokenizer.ggml.token_type'] += [4] * 5 + [3]
  fields['tokenizer.ggml.add_space_prefix'] = False
  tokenizer = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert tokenizer.mask_id == first + 5
  text = 'a\n\n\n\nb   c  a'
  got = tokenizer.encode(text)
  a, b, c = (tokenizer.encode(letter)[1:] for letter in 'abc')
  newlines = [first + 2, first]
  assert got == [1, *a, *newlines, *b, first + 4, *c, first + 3, *a]
  assert tokenizer.decode(got) == text
  fields['tokenizer.ggml.token_type'][first : first + 5] = [1] * 5
  plain = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert plain.encode(text) != got  # the control: merged like other tokens


def test_many_tokens_with_scores_load_fast():
  """262,144 as in Gemma 3."""
  letters = [chr(0x4E00 + i) for i in range(512)]
  pieces = letters + [a + b for a in letters for b in letters[:511]]
  fields = {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': pieces,
    'tokenizer.ggml.scores': [float(-i) for i in range(len(pieces))],
    'tokenizer.ggml.token_type': [1] * len(pieces),
    'tokenizer.ggml.add_bos_token': False,
  }
  start = time.monotonic()
  tokenizer = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert time.monotonic() - start < 15  # takes 1 on a machine that is not busy
  assert len(tokenizer.encode(''.join(letters[:8]))) == 5  # with the prefix


def test_gguf_defaults_of_llama():
  """Without a key, as llama.cpp: bos 1 is added, eos 2 ends, a space first."""
  fields, _ = sentencepiece_fields(np.random.default_rng(3))
  stated = tokenizer_lib.Tokenizer.from_gguf(dict(fields))
  for role in ('bos', 'eos', 'unknown'):
    del fields[f'tokenizer.ggml.{role}_token_id']
  usual = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert usual.special == stated.special and usual.end_ids == (2,)
  assert usual.encode('abc?') == stated.encode('abc?')
  assert usual.encode('abc?')[0] == 1
  fields['tokenizer.ggml.add_bos_token'] = False
  fields['tokenizer.ggml.add_eos_token'] = True
  other = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert other.encode('abc?') == stated.encode('abc?')[1:] + [2]


def test_gguf_roles_for_templates():
  fields = byte_level_fields(
    cls_token_id=260, seperator_token_id=261, mask_token_id=259
  )
  fields['tokenizer.chat_template'] = '{{ cls_token ~ sep_token ~ mask_token }}'
  tokenizer = tokenizer_lib.Tokenizer.from_gguf(fields)
  assert tokenizer.render_chat('') == '12ab<u>'


def test_gguf_without_a_pre_tokenizer():
  """GPT-2's split is one of several: 1234 is 12|34 or 123|4."""
  fields = byte_level_fields()
  del fields['tokenizer.ggml.pre']
  with pytest.raises(errors.InputError, match='lack tokenizer.ggml.pre'):
    tokenizer_lib.Tokenizer.from_gguf(fields)


def test_gguf_tokens_listed_twice():
  fields = byte_level_fields()
  fields['tokenizer.ggml.tokens'][0] = 'ab'
  with pytest.raises(errors.InputError, match='listed twice'):
    tokenizer_lib.Tokenizer.from_gguf(fields)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': 'llama'}, 'lack tokenizer.ggml.scores'),
    ({'model': 'llama', 'scores': ['x'] * 262}, 'other things than float'),
    ({'merges': [1]}, 'merges holds other things than str'),
    ({'bos_token_id': 'x'}, "id of the bos token is 'x'"),
    ({'unknown_token_id': -1}, 'id of the unknown token is -1'),
    ({'eos_token_id': True}, 'id of the eos token is True'),
    ({'pre': 'default'}, "pre is 'default', which is not known"),
    ({'pre': ['gpt-2']}, 'which is not known'),
    ({'token_type': [1] * 261 + [7]}, 'token_type holds 7'),
    ({'token_type': [0] * 262}, 'token_type holds 0'),
    ({'add_bos_token': 1}, 'add_bos_token is 1, neither'),
    ({'bos_token_id': None, 'add_bos_token': True}, 'no .*bos_token_id'),
    (
      {
        'model': 'llama',
        'scores': [0.0] * 262,
        'remove_extra_whitespaces': True,
      },
      'remove_extra_whitespaces asks for a change',
    ),
    (
      {'model': 'llama', 'scores': [0.0] * 262, 'precompiled_charsmap': [1, 2]},
      'precompiled_charsmap asks for a change',
    ),
    (
      {'model': 'llama', 'scores': [float('nan')] * 262},
      'not finite',
    ),
    (
      {
        'model': 'llama',
        'scores': [0.0],
        'tokens': ['a' * 20000],
        'token_type': [1],
        'bos_token_id': 0,
        'eos_token_id': 0,
      },
      'longest has 20000 letters',
    ),
  ],
)
def test_damaged_gguf_metadata(changes, message):
  with pytest.raises(errors.InputError, match=f'some.gguf.*{message}'):
    tokenizer_lib.Tokenizer.from_gguf(byte_level_fields(**changes), 'some.gguf')


def merge_by_score(text, scores):
  """SentencePiece's rule: the pair with the best score merges first."""
  parts = list(text)
  while True:
    pairs = [
      (-scores.get(a + b, -np.inf), i)
      for i, (a, b) in enumerate(zip(parts, parts[1:]))
    ]
    score, i = min(pairs, default=(np.inf, 0))
    if score == np.inf:
      return parts
    parts[i : i + 2] = [parts[i] + parts[i + 1]]


def sentencepiece_fields(generator):
  """Returns metadata of a random vocabulary over 'abc', and its scores."""
  pieces = set(_SPACE + 'abc')
  while len(pieces) < 40:  # each piece joins two others, as in training
    left, right = generator.choice(sorted(pieces), 2)
    if len(left + right) <= 6 and _SPACE not in right:
      pieces.add(left + right)
  pieces = sorted(pieces)
  scores = -generator.permutation(len(pieces)).astype(float)
  tokens = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
  types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
  table = {
    'model': 'llama',
    'tokens': tokens + pieces,
    'scores': [0.0] * 259 + scores.tolist(),
    'token_type': types,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'unknown_token_id': 0,
  }
  fields = {f'tokenizer.ggml.{k}': v for k, v in table.items()}
  return fields, dict(zip(pieces, scores))


def test_sentencepiece_against_its_rule():
  generator = np.random.default_rng(0)
  differing = 0
  for _ in range(20):
    fields, scores = sentencepiece_fields(generator)
    tokenizer = tokenizer_lib.Tokenizer.from_gguf(fields)
    tokens = fields['tokenizer.ggml.tokens']
    for _ in range(20):
      text = ''.join(generator.choice(list('aabbcc '), 15)).strip() or 'a'
      expected = merge_by_score((' ' + text).replace(' ', _SPACE), scores)
      got = tokenizer.encode(text)
      assert [tokens[i] for i in got] == ['<s>', *expected]
      assert tokenizer.decode(got) == text
      wrong = merge_by_score(
        (' ' + text).replace(' ', _SPACE), {k: -v for k, v in scores.items()}
      )
      differing += wrong != expected
  assert differing > 100  # the negative control: the order of scores matters


def test_sentencepiece_falls_back_to_bytes():
  fields, _ = sentencepiece_fields(np.random.default_rng(1))
  tokenizer = tokenizer_lib.Tokenizer.from_gguf(fields)
  ids = tokenizer.encode('aé')
  assert ids[-2:] == [3 + 0xC3, 3 + 0xA9]
  assert tokenizer.decode(ids) == 'aé'
  assert tokenizer.end_ids == (2,)


@pytest.fixture
def directory(tmp_path):
  """Returns a directory with a tokenizer that adds a bos token."""
  letters = tokenizer_bpe.byte_letters()
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.add_special_tokens(['<s>', '</s>', '<|im_end|>', '<mask>', '<x>'])
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 256)]
  )
  backend.save(str(tmp_path / 'tokenizer.json'))
  settings = {'bos_token': '<s>', 'eos_token': {'content': '</s>'}}
  settings['chat_template'] = '{{ bos_token }}{{ messages[0].content }}'
  hf_reference.write_json(tmp_path, 'tokenizer_config.json', settings)
  return str(tmp_path)


def test_directory(directory):
  tokenizer = tokenizer_lib.Tokenizer.from_directory(directory)
  assert tokenizer.end_ids == (257, 258)
  assert tokenizer.mask_id == 259
  assert tokenizer.vocab_size == 261
  assert tokenizer.encode('a') == [256, 97]
  # The template writes the bos token, so the processor must not add another.
  assert tokenizer.encode_prompt('a', chat=True) == [256, 97]


def test_ids_behind_the_rows_of_the_weights(directory):
  """Gemma 3's own shape: the last added token has no row."""
  whole = tokenizer_lib.Tokenizer.from_directory(directory)
  assert whole.within(261, 'm') is whole and not whole.barred
  one = whole.within(260, 'm')
  assert one.barred == {260: '<x>'}
  assert one.vocab_size == 260 and one.barred
  assert one.end_ids == (257, 258) and one.mask_id == 259
  assert '<x>' not in one.tokens() and '<x>' in whole.tokens()
  assert one.encode('a') == [256, 97] and one.decode([256, 97]) == 'a'
  for chat in (False, True):
    with pytest.raises(errors.InputError, match="is <x>.' holds '<x>'.*260"):
      one.encode_prompt('is <x>?', chat)
  most = whole.within(257, 'm')
  assert most.end_ids == () and most.mask_id is None and len(most.barred) == 4
  assert whole.vocab_size == 261 and not whole.barred  # is not changed


def test_a_tokenizer_of_another_model_is_refused(directory):
  whole = tokenizer_lib.Tokenizer.from_directory(directory)
  with pytest.raises(
    errors.InputError, match='m: .* up to 260, .* know 255 .* 1 of them'
  ):
    whole.within(255, 'm')  # the last byte has no row
  with pytest.raises(errors.InputError, match='65 ids .*, 0 of them of ord'):
    tokenizer_lib.Tokenizer.bytes(325).within(260, 'm')
  assert len(tokenizer_lib.Tokenizer.bytes(324).within(260, 'm').barred) == 64


def test_truncation_and_padding_of_the_file_are_switched_off(directory):
  backend = tokenizers.Tokenizer.from_file(f'{directory}/tokenizer.json')
  backend.enable_truncation(3)
  backend.enable_padding(length=50)
  assert len(backend.encode('abcdef').ids) == 50
  backend.save(f'{directory}/tokenizer.json')
  tokenizer = tokenizer_lib.Tokenizer.from_directory(directory)
  assert tokenizer.encode('abcdef') == [256, *b'abcdef']


def test_end_ids_of_the_generation_config(directory):
  hf_reference.write_json(
    directory, 'generation_config.json', {'eos_token_id': [257, 260]}
  )
  hf_reference.write_json(directory, 'config.json', {'eos_token_id': 257})
  tokenizer = tokenizer_lib.Tokenizer.from_directory(directory)
  assert tokenizer.end_ids == (257, 258, 260)


def test_chat_template_files(directory):
  """chat_template.jinja wins; a list of templates gives its default."""
  named = [
    {'name': 'tools', 'template': 'no'},
    {'name': 'default', 'template': '[{{ messages[0]["role"] }}]'},
  ]
  file = os.path.join(directory, 'tokenizer_config.json')
  with open(file, encoding='utf-8') as text:
    settings = json.load(text) | {'chat_template': named}
  hf_reference.write_json(directory, 'tokenizer_config.json', settings)
  read = tokenizer_lib.Tokenizer.from_directory
  assert read(directory).render_chat('a') == '[user]'
  with open(f'{directory}/chat_template.jinja', 'w', encoding='utf-8') as text:
    text.write(
      '{% for m in messages %}\n{% if m.role == "user" %}\n{{ m.content }}!\n'
      '{% continue %}\n{% endif %}\n{% endfor %}\n{{ m is defined }}'
    )
  assert read(directory).render_chat('a') == 'a!\nFalse'


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('{% if %}', 'chat template fails'),
    ('{{ raise_exception("no system") }}', 'no system'),
    ("{{ ''.__class__.__mro__ }}", 'unsafe'),
    ('{{ messages.append(1) }}', 'unsafe'),
    ('{{ messages + 1 }}', 'chat template fails'),
    ('{{ 1 // 0 }}', 'chat template fails.*zero'),
    ('{% for i in range(10 ** 9) %}{% endfor %}', 'Range too big'),
    (
      '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
      'chat template fails.*recursion',
    ),
  ],
)
def test_bad_templates(directory, template, message):
  with open(f'{directory}/chat_template.jinja', 'w', encoding='utf-8') as text:
    text.write(template)
  tokenizer = tokenizer_lib.Tokenizer.from_directory(directory)
  with pytest.raises(errors.InputError, match=message):
    tokenizer.render_chat('a')


def test_bad_directories(directory):
  read = tokenizer_lib.Tokenizer.from_directory
  file = os.path.join(directory, 'tokenizer.json')
  with open(file, 'r+', encoding='utf-8') as text:
    text.truncate(100)
  with pytest.raises(errors.InputError, match='tokenizer.json: not a token'):
    read(directory)
  os.remove(file)
  with pytest.raises(
    errors.InputError, match='no tokenizer.json, and no tokenizer.model'
  ):
    read(directory)


@pytest.mark.parametrize(
  'changes',
  [
    {'model': 'x' * 10**6},
    {'model': ['x' * 10**6]},
    {'pre': 'x' * 10**6},
    {'bos_token_id': 'x' * 10**6},
    {'add_bos_token': [1] * 10**6},
    {'merges': ['ab ' * 10**6]},
  ],
)
def test_gguf_errors_are_short(changes):
  tracemalloc.start()
  with pytest.raises(errors.InputError) as caught:
    tokenizer_lib.Tokenizer.from_gguf(byte_level_fields(**changes))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(str(caught.value)) < 600
  assert peak < 20e6  # more than 50 where the merges are split


def test_gguf_with_too_many_tokens(monkeypatch):
  from_gguf = tokenizer_lib.Tokenizer.from_gguf
  assert from_gguf(byte_level_fields()).vocab_size == 262
  monkeypatch.setattr(tokenizer_bpe, 'MOST_TOKENS', 261)
  with pytest.raises(errors.InputError, match='holds 262 tokens'):
    from_gguf(byte_level_fields())


def test_gguf_with_tokens_that_take_too_long():
  tokens = ['<u>', '<s>', '</s>', *(f'{i:016}' for i in range(1 << 17))]
  fields = {
    'model': 'llama',
    'tokens': tokens,
    'scores': [0.0] * len(tokens),
    'token_type': [2, 3, 3] + [1] * (1 << 17),
  }
  with pytest.raises(errors.InputError, match='merges cannot be found'):
    tokenizer_lib.Tokenizer.from_gguf(
      {f'tokenizer.ggml.{key}': value for key, value in fields.items()}
    )


def test_a_role_makes_a_token_special(directory):
  """Fine-tunings add tokens that are not, and name them in the settings."""
  file = os.path.join(directory, 'tokenizer.json')
  with open(file, encoding='utf-8') as opened:
    content = json.load(opened)
  for token in content['added_tokens']:
    token['special'] = False
  hf_reference.write_json(directory, 'tokenizer.json', content)
  ours = tokenizer_lib.Tokenizer.from_directory(directory)
  ids = ours.encode('</s>b<x>')
  assert ids == [256, 257, 98, 260]
  assert ours.decode(ids) == 'b <x>'  # <x> has no role; there is no decoder
