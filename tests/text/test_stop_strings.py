"""Stop strings cut a text at one place, whenever the host looks at it.

CASES=20000 in the environment tries as many random cases, and RUNS=50 decodes
as many batches of four prompts; few by default.
"""

import dataclasses
import os
import random

import pytest

from specdiff_jax.core import errors
from specdiff_jax.recipes import recipe_file
from specdiff_jax.text import stop_strings
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe

CASES = int(os.environ.get('CASES', 2000))
RUNS = int(os.environ.get('RUNS', 6))
LOOKS = (1, 3, 8, 64)
LETTERS = (
    'a', 'b', 'ab', '\n', ' ', ' ', '.', "'", "'s", " n't", 'é', '→',
    '\U0001f600', '\ufffd',
)  # fmt: skip
BYTES = (0x80, 0xBF, 0xC3, 0xE2, 0xF0, 0xFF, 0x61)  # most make no character


def byte_level():
  """A token is a byte."""
  tokenizer = tokenizer_lib.Tokenizer.bytes(260)
  return tokenizer, lambda byte: byte


def with_fallback():
  """Letters are tokens, and where they are not, bytes are."""
  tokens = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
  tokens += ['\u2581', 'a', 'b', '\n', '\u2581a']
  byte, normal = tokenizer_bpe.BYTE, tokenizer_bpe.NORMAL
  types = [2, 3, 3] + [byte] * 256 + [normal] * 5
  backend = tokenizer_bpe.from_scores(
    'test', tokens, [0.0] * len(tokens), types, '<unk>', True
  )
  special = {'eos_token': '</s>'}
  tokenizer = tokenizer_lib.Tokenizer(backend, special, [2])
  return tokenizer, lambda byte: 3 + byte


def tidied():
  """Decoding takes spaces before punctuation away."""
  backend = byte_level()[0].backend
  tokenizer = tokenizer_lib.Tokenizer(backend, {}, [256], tidies=True)
  return tokenizer, lambda byte: byte


TOKENIZERS = {one.__name__: one for one in (byte_level, with_fallback, tidied)}


def draw(rng, tokenizer, byte):
  """Returns (ids, stops): of letters, bytes and special tokens."""
  ids = []
  while len(ids) < rng.randint(1, 40):
    kind = rng.random()
    if kind < 0.75:
      letter = rng.choice(LETTERS)
      whole = tokenizer.backend.token_to_id(letter)
      by_token = whole is not None and rng.random() < 0.7
      ids += [whole] if by_token else map(byte, letter.encode())
    elif kind < 0.95:
      ids.append(byte(rng.choice(BYTES)))
    else:  # no text: a special token, or one beyond the vocabulary
      ids += [rng.choice([tokenizer.end_ids[0], 300])] * rng.choice([1, 1, 20])
  text, stops = tokenizer.decode(ids), []
  for _ in range(rng.randint(1, 4)):  # pieces of the text, or of each other
    of = rng.choice([text, text, *stops, ''.join(rng.choices(LETTERS, k=3))])
    first = rng.randrange(len(of) + 1)
    stops.append(of[first : first + rng.randint(1, 5)])
  return ids, stops


def reference(tokenizer, ids, stops):
  """Looks after every token, and takes the stop that the text then has."""
  for count in range(1, len(ids) + 1):
    last = count == len(ids)
    text = (tokenizer.decode if last else tokenizer.settled)(ids[:count])
    for end in range(len(text) + 1):
      ending = [s for s in stops if s and text[:end].endswith(s)]
      if ending:
        return text[: end - max(map(len, ending))], ids[:count]
  return tokenizer.decode(ids), ids


def looked_at(tokenizer, ids, stops, look):
  """Returns what a host that looks after so many tokens shows, and keeps."""
  names = tokenizer.decode, stops, tokenizer.settled
  stream, watch = stop_strings.Stream(*names), stop_strings.watch(*names[1:])
  pieces, seen = [], []
  for end in range(look, len(ids) + look, look):
    seen = ids[:end]
    pieces.append(stream.show(seen))
    stops_here = watch is not None and watch(0, seen)
    assert stops_here == stream.stopped
    if stops_here:
      break
  pieces.append(stream.finish())
  return ''.join(pieces), stop_strings.cut(
    tokenizer.decode, seen, stops, tokenizer.settled
  )


def faults(name, cases):
  """Returns how many random cases come to another text or other tokens."""
  tokenizer, byte = TOKENIZERS[name]()
  rng, wrong = random.Random(name), 0
  for _ in range(cases):
    ids, stops = draw(rng, tokenizer, byte)
    want = reference(tokenizer, ids, stops)
    found = [looked_at(tokenizer, ids, stops, look) for look in LOOKS]
    wrong += any(pair != (want[0], want) for pair in found)
  return wrong


@pytest.mark.parametrize('name', TOKENIZERS)
def test_a_text_is_a_function_of_its_tokens(name):
  assert not faults(name, CASES)


@pytest.mark.parametrize('name', TOKENIZERS)
def test_the_stop_that_begins_first_is_noticed(name, monkeypatch):
  """The control: who takes that one shows other texts at other looks."""

  def begins_first(text, stop):
    found = [(text.find(s), text.find(s) + len(s)) for s in stop if s in text]
    return min((pair for pair in found if pair[0] < pair[1]), default=None)

  monkeypatch.setattr(stop_strings, 'find', begins_first)
  assert faults(name, 1000) > 10


@pytest.mark.parametrize('name', TOKENIZERS)
def test_settled_text_never_changes(name):
  tokenizer, byte = TOKENIZERS[name]()
  rng = random.Random(1)
  for _ in range(300):
    ids, _ = draw(rng, tokenizer, byte)
    before = ''
    for count in range(1, len(ids) + 1):
      text = tokenizer.settled(ids[:count])
      assert text.startswith(before)
      assert tokenizer.decode(ids).startswith(text)
      before = text


def test_the_first_completed_stop_cuts():
  tokenizer, _ = byte_level()

  def cut(text, *stops):
    names = tokenizer.decode, list(text.encode()), stops, tokenizer.settled
    text, tokens = stop_strings.cut(*names)
    return text, len(tokens)

  # One begins first, the other lies in it and is there first.
  assert cut('_=v\t=V', '=v\t=V', 'v\t') == ('_=', 4)
  assert cut('abcd', 'abcd', 'bc') == ('a', 3)
  assert cut('abcd', 'bcd', 'cd') == ('a', 4)  # both end there
  assert cut('a→b', '→') == ('a', 4)  # of three bytes


def test_a_replacement_character_is_a_character():
  tokenizer, _ = byte_level()
  ids = [97, 0xE2, 0x86, 0x92, *'\ufffd'.encode(), 0xE2, 98]

  def cut(ids):
    return stop_strings.cut(
      tokenizer.decode, ids, ['\ufffd'], tokenizer.settled
    )

  assert cut(ids[:3]) == ('a', ids[:3])  # that is all: the text ends so
  assert cut(ids) == ('a→', ids[:7])  # the whole one, not the unfinished
  assert cut(ids[:4] + ids[7:]) == ('a→', ids[:4] + ids[7:])
  watch = stop_strings.watch(['\ufffd'], tokenizer.settled)
  assert not watch(0, ids[:3]) and watch(0, ids[:7])


def test_a_run_of_bytes_is_decided_at_its_end():
  tokenizer, byte = with_fallback()
  ids = [byte(0x61), byte(0x62)]
  a = tokenizer.backend.token_to_id('a')
  assert tokenizer.settled(ids) == ''
  assert tokenizer.settled([*ids, a]) == 'aba'
  spoilt = [*ids, byte(0xFF)]
  assert tokenizer.decode(spoilt) == '\ufffd' * 3
  stream = stop_strings.Stream(tokenizer.decode, (), tokenizer.settled)
  assert stream.show(ids) == ''
  assert stream.show(spoilt) == ''
  assert stream.finish() == '\ufffd' * 3


def test_a_special_token_ends_a_text_as_a_token():
  tokenizer, _ = byte_level()
  assert tokenizer.stop_ids(['x', '<|spare_257|>']) == [257]
  with pytest.raises(errors.InputError, match='spare_257.* alone'):
    tokenizer.stop_ids(['\n<|spare_257|>'])


@pytest.fixture(scope='module')
def engines(root):
  """(systems by name, requests) of the tiny random verifier."""
  from specdiff_jax.data import prompts
  from specdiff_jax.recipes import decoding

  config = recipe_file.load_recipe(
    f'{root}/configs/tiny.py',
    max_new_tokens=40,
    temperature=1.0,
    prompt_buckets=(64,),
  )
  checkpoint = decoding.verifier(config)
  texts = prompts.read(config.bench.prompts, 4)
  systems = {
    name: decoding.system(config, checkpoint, name)
    for name in ('ar', 'lookup', 'tree')
  }
  return systems, decoding.requests(config, checkpoint, texts)


@pytest.mark.slow
def test_engines_cut_at_one_place(engines):
  systems, requests = engines
  rng, stopped = random.Random(0), 0

  def decode(system, **changes):
    settings = dataclasses.replace(system.settings, seed=changes.pop('seed'))
    system = dataclasses.replace(system, settings=settings, **changes)
    names = system.decode_text, system.stop, system.settled_text
    found = system.decode(requests, on_tokens=stop_strings.watch(*names[1:]))
    return [stop_strings.cut(names[0], one.tokens, *names[1:]) for one in found]

  for seed in range(RUNS):
    whole = decode(systems['ar'], seed=seed, stop=())
    stops = []
    for _ in range(rng.randint(1, 4)):
      of = rng.choice([*(text for text, _ in whole), *stops])
      first = rng.randrange(len(of))
      stops.append(of[first : first + rng.randint(1, 6)])
    stops = tuple(stops)
    plain = systems['ar']
    want = [
      stop_strings.cut(plain.decode_text, tokens, stops, plain.settled_text)
      for _, tokens in whole
    ]
    stopped += sum(pair != other for pair, other in zip(want, whole))
    for system in systems.values():
      look = rng.choice(LOOKS)
      found = decode(system, seed=seed, stop=stops, cycles_per_call=look)
      assert found == want, (system.name, look, stops)
  assert stopped > RUNS  # most runs meet a stop
