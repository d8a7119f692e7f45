"""tokenizer.model against sentencepiece itself; damage is told as damage."""

import json
import random

import hf_reference
import pytest

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_sentencepiece

_TEXTS = (
  'Natalia sold 48 clips in April, and 24 in May.',
  "It's  what we'll\n\n  see;\tdon't\n",
  'naïve café 日本語 🙂',
  ' def f(x):\n    return x**2 - 3*x',
  '',
  '   ',
  'a',
)


def train(folder, **options):
  """Writes a tokenizer.model, by default as Gemma's are made."""
  sentencepiece = pytest.importorskip('sentencepiece')
  words = random.Random(0).choices(
    'the sum of natalia clips april may sold half as many she 48 24 ()*+-'
    ' return def what we see don it is naïve'.split(),
    k=4000,
  )
  lines = [' '.join(words[i : i + 10]) for i in range(0, len(words), 10)]
  (folder / 'text').write_text('\n'.join(lines), encoding='utf-8')
  sentencepiece.SentencePieceTrainer.train(
    input=str(folder / 'text'),
    model_prefix=str(folder / 'tokenizer'),
    minloglevel=2,
    **dict(
      model_type='bpe',
      vocab_size=400,
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      control_symbols=['<start_of_turn>', '<mask>'],
      user_defined_symbols=['\u2581' * 2, '\u2581' * 4, '\n\n'],
    )
    | options,
  )
  return sentencepiece.SentencePieceProcessor(
    model_file=str(folder / 'tokenizer.model')
  )


def test_like_gemma(tmp_path):
  """No space before the text; runs of spaces and newlines are tokens."""
  reference = train(tmp_path)
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  assert tokenizer.vocab_size == reference.vocab_size() == 400
  assert tokenizer.end_ids == (reference.eos_id(),)
  assert tokenizer.mask_id == reference.piece_to_id('<mask>')
  compare(tokenizer, reference, _TEXTS)
  assert reference.piece_to_id('\u2581' * 4) in tokenizer.encode('a     b')


def test_like_llama2(tmp_path):
  """A space before the text, which decoding takes away."""
  reference = train(tmp_path, add_dummy_prefix=True, user_defined_symbols=[])
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  compare(tokenizer, reference, [text for text in _TEXTS if text.strip()])


def compare(tokenizer, reference, texts):
  """Texts are told apart: the negative control is the text before."""
  before = None
  for text in texts:
    got = tokenizer.encode(text)
    assert got == [reference.bos_id(), *reference.encode(text)], text
    assert tokenizer.decode(got) == text
    assert got != before
    before = got


def test_words_at_random(tmp_path):
  """Many short texts, of the letters of the vocabulary and of others."""
  reference = train(tmp_path)
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  generator = random.Random(1)
  for _ in range(300):
    text = ''.join(generator.choices('nataliclpsmy 0248\n\té🙂', k=12))
    got = tokenizer.encode(text)
    assert got[1:] == reference.encode(text), text
    assert tokenizer.decode(got) == text


def test_settings_and_tokens_beside_it(tmp_path):
  train(tmp_path)
  settings = {
    'add_bos_token': False,
    'eos_token': '<extra>',
    'added_tokens_decoder': {
      '400': {'content': '<extra>'},
      '401': {'content': '<pad>'},
    },
    'chat_template': '{{ bos_token }}{{ messages[0].content }}',
  }
  hf_reference.write_json(tmp_path, 'tokenizer_config.json', settings)
  # Where the settings list them, the older file is not read: transformers.
  hf_reference.write_json(tmp_path, 'added_tokens.json', {'<other>': 402})
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  assert tokenizer.encode('a<extra><pad>')[1:] == [400, 401]
  assert 402 not in tokenizer.encode('<other>')
  del settings['added_tokens_decoder']
  hf_reference.write_json(tmp_path, 'tokenizer_config.json', settings)
  hf_reference.write_json(
    tmp_path, 'added_tokens.json', {'<extra>': 400, '<pad>': 401}
  )
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  assert tokenizer.encode('a<extra><pad>')[1:] == [400, 401]
  assert tokenizer.end_ids == (400,)
  assert tokenizer.render_chat('a') == '<s>a'
  assert tokenizer.vocab_size == 402
  for wrong in ({'<pad>': 500}, {'<pad>': 'x'}):
    hf_reference.write_json(tmp_path, 'added_tokens.json', wrong)
    with pytest.raises(errors.InputError, match='next free|not a table'):
      tokenizer_lib.Tokenizer.from_directory(str(tmp_path))


def test_tokenizer_json_goes_first(tmp_path):
  train(tmp_path)
  tokenizer_lib.Tokenizer.bytes(300).backend.save(
    str(tmp_path / 'tokenizer.json')
  )
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  assert tokenizer.encode('a') == [97]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'model_type': 'unigram', 'vocab_size': 330}, "'unigram', not bpe"),
    ({'normalization_rule_name': 'nmt_nfkc'}, 'normalises the text'),
    ({'remove_extra_whitespaces': True}, 'normalises the text'),
    ({'treat_whitespace_as_suffix': True}, 'does not write a space'),
  ],
)
def test_other_kinds(tmp_path, options, message):
  train(tmp_path, **options)
  with pytest.raises(
    errors.InputError, match=f'(?s)tokenizer.model.*{message}.*tokenizer.json'
  ):
    tokenizer_lib.Tokenizer.from_directory(str(tmp_path))


def message(*fields):
  """Returns a protocol buffer of (number, value), written by hand."""
  data = b''
  for number, value in fields:
    if isinstance(value, int):
      data += varint(number << 3) + varint(value)
    else:
      data += varint(number << 3 | 2) + varint(len(value)) + value
  return data


def varint(value):
  data = b''
  while value > 127:
    data += bytes([value & 127 | 128])
    value >>= 7
  return data + bytes([value])


def hand_made(**trainer):
  """Returns a model of five tokens without the package."""
  numbers = {'model_type': 3, 'unk': 40, 'bos': 41, 'eos': 42}
  pieces = [('<unk>', 2), ('<s>', 3), ('</s>', 3), ('a', 1), ('b', 1)]
  parts = [(1, message((1, text.encode()), (3, kind))) for text, kind in pieces]
  values = {'model_type': 2} | trainer
  parts.append((2, message(*((numbers[k], v) for k, v in values.items()))))
  parts.append((3, message((3, 0), (4, 0))))
  return message(*parts)


def test_defaults_of_fields_that_are_not_there(tmp_path):
  path = tmp_path / 'tokenizer.model'
  path.write_bytes(hand_made(bos=(1 << 64) - 1))
  model = tokenizer_sentencepiece.read(str(path))
  assert model.special == {'unk_token': '<unk>', 'eos_token': '</s>'}
  assert model.types == [2, 3, 3, 1, 1] and not model.space_prefix
  tokenizer = tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
  assert tokenizer.encode('ab?') == [3, 4, 0]


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'no tokens'),
    (hand_made(bos=9), 'bos_token is 9, of 5 tokens'),
    (hand_made(unk=(1 << 64) - 1), 'names no unknown token'),
    (b'\x0a\xff\xff\xff\xff\x7f', 'promises 34359738367 bytes'),
    (b'\x80' * 12, 'within a number'),
    (b'\x0b', 'begins no field'),
    (message((1, message((1, b'\xff')))), 'utf-8'),
    (message((1, message((2, 7)))), 'not a complete'),
    (message((1, 7)), 'not a complete'),
    (json.dumps({'a': 1}).encode(), 'not a complete'),
  ],
)
def test_damaged_files(tmp_path, data, message):
  (tmp_path / 'tokenizer.model').write_bytes(data)
  with pytest.raises(errors.InputError, match=f'tokenizer.model.*{message}'):
    tokenizer_lib.Tokenizer.from_directory(str(tmp_path))


def test_every_truncation_and_flip_is_told_or_read(tmp_path):
  whole = hand_made()
  generator = random.Random(0)
  cases = [whole[:cut] for cut in range(len(whole))]
  for _ in range(300):
    flipped = bytearray(whole)
    flipped[generator.randrange(len(whole))] = generator.randrange(256)
    cases.append(bytes(flipped))
  told = 0
  for case in cases:
    (tmp_path / 'tokenizer.model').write_bytes(case)
    try:
      tokenizer_lib.Tokenizer.from_directory(str(tmp_path))
    except errors.InputError:
      told += 1
  assert told > 100


def test_how_many_tokens_there_may_be(tmp_path, monkeypatch):
  file = tmp_path / 'tokenizer.model'
  file.write_bytes(b'\x0a\x00' * 1000)
  with pytest.raises(errors.InputError, match='a token has no text'):
    tokenizer_sentencepiece.read(str(file))
  monkeypatch.setattr(tokenizer_bpe, 'MOST_TOKENS', 9)
  file.write_bytes(b'\x0a\x03\x0a\x01a' * 1000)
  with pytest.raises(errors.InputError, match='holds more than 9 tokens'):
    tokenizer_sentencepiece.read(str(file))
