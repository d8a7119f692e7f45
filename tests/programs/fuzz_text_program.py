"""Reads damaged files of a tokenizer; prints what came of them, as JSON.

  python tests/programs/fuzz_text_program.py FOLDER NAME FIRST CASES

Each case writes FOLDER anew with one file NAME that is wrong, with seeds FIRST,
FIRST + 1, ...: values of other types, sizes and depths somewhere in it, keys
left out, bytes cut or flipped. Reading the directory, and encoding, decoding
and rendering with it, has to succeed or to raise InputError, within 2 seconds
of this process and its children, and 1 GiB.
"""

import json
import os
import random
import resource
import signal
import sys
import time

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer as tokenizer_lib
from specdiff_jax.text import tokenizer_bpe

_ROOM = 1 << 30
_SECONDS = 2.0  # of the processor
_TEXTS = ('It is 12 <|im_end|> of <x>\n', '', 'é🙂 ab  ab')


def token(text, **flags):
  return (
    dict(
      content=text,
      special=True,
      lstrip=False,
      rstrip=False,
      normalized=False,
      single_word=False,
    )
    | flags
  )


def valid(name):
  """Returns file -> content of a directory that is right."""
  letters = tokenizer_bpe.byte_letters()
  vocabulary = {text: i for i, text in enumerate([*letters, 'ab', '12'])}
  merges = [['a', 'b'], ['1', '2']]
  settings = {
    'tokenizer_class': 'GPT2Tokenizer',
    'bos_token': '<s>',
    'eos_token': token('<|im_end|>'),
    'unk_token': None,
    'add_bos_token': True,
    'add_prefix_space': False,
    'clean_up_tokenization_spaces': False,
    'split_special_tokens': False,
    'additional_special_tokens': ['<x>', token('<y>')],
    'chat_template': [
      {'name': 'default', 'template': '{{ bos_token }}{{ messages }}'}
    ],
  }
  files = {
    'tokenizer_config.json': settings,
    'config.json': {'model_type': 'gpt2', 'eos_token_id': 258},
    'generation_config.json': {'eos_token_id': [258, 259]},
    'vocab.json': vocabulary,
    'merges.txt': '#version: 0.2\na b\n1 2\n',
  }
  added = {'<s>': 258, '<|im_end|>': 259, '<x>': 260, '<y>': 261}
  if name in ('added_tokens.json', 'special_tokens_map.json'):
    files['added_tokens.json'] = added
    files['special_tokens_map.json'] = {
      'eos_token': token('<|im_end|>'),
      'bos_token': '<s>',
      'additional_special_tokens': ['<x>', token('<y>')],
    }
  else:
    settings['added_tokens_decoder'] = {
      str(i): token(text) for text, i in added.items()
    }
  if name == 'chat_template.jinja':
    files[name] = (
      '{% for m in messages %}{{ m.role ~ ": " ~ m.content|trim }}'
      '{% endfor %}'
      '{% if add_generation_prompt %}{{ eos_token }}{% endif %}'
    )
  if name == 'tokenizer.json':
    files[name] = {
      'version': '1.0',
      'truncation': {
        'direction': 'Right',
        'max_length': 9,
        'stride': 0,
        'strategy': 'LongestFirst',
      },
      'padding': {
        'strategy': {'Fixed': 5},
        'direction': 'Right',
        'pad_id': 0,
        'pad_to_multiple_of': None,
        'pad_type_id': 0,
        'pad_token': '!',
      },
      'added_tokens': [token(text) | {'id': i} for text, i in added.items()],
      'normalizer': {
        'type': 'Sequence',
        'normalizers': [
          {'type': 'NFC'},
          {'type': 'Prepend', 'prepend': '_'},
          {'type': 'Replace', 'pattern': {'String': '_'}, 'content': ' '},
          {'type': 'Strip', 'strip_left': True, 'strip_right': False},
        ],
      },
      'pre_tokenizer': {
        'type': 'Sequence',
        'pretokenizers': [
          {'type': 'Digits', 'individual_digits': False},
          {
            'type': 'Split',
            'pattern': {'Regex': r'\s+|\w+'},
            'behavior': 'Isolated',
            'invert': False,
          },
          {
            'type': 'ByteLevel',
            'add_prefix_space': False,
            'trim_offsets': True,
            'use_regex': True,
          },
          {'type': 'FixedLength', 'length': 9},
        ],
      },
      'post_processor': {
        'type': 'TemplateProcessing',
        'single': [
          {'SpecialToken': {'id': '<s>', 'type_id': 0}},
          {'Sequence': {'id': 'A', 'type_id': 0}},
        ],
        'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}],
        'special_tokens': {
          '<s>': {'id': '<s>', 'ids': [258], 'tokens': ['<s>']}
        },
      },
      'decoder': {
        'type': 'Sequence',
        'decoders': [
          {
            'type': 'ByteLevel',
            'add_prefix_space': True,
            'trim_offsets': True,
            'use_regex': True,
          },
          {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
          {'type': 'Replace', 'pattern': {'String': '_'}, 'content': ' '},
          {'type': 'ByteFallback'},
          {'type': 'Fuse'},
        ],
      },
      'model': {
        'type': 'BPE',
        'dropout': None,
        'unk_token': None,
        'continuing_subword_prefix': '',
        'end_of_word_suffix': '',
        'fuse_unk': False,
        'byte_fallback': False,
        'ignore_merges': False,
        'vocab': vocabulary,
        'merges': merges,
      },
    }
  return files


def wrong_value(chance):
  """Returns a value that nobody expects."""
  depth = chance.choice((3, 70, 900))
  deep = chance.choice(([], {}))
  for _ in range(depth):
    deep = {'a': deep} if chance.random() < 0.5 else [deep]
  return chance.choice(
    (
      None,
      True,
      False,
      0,
      1,
      -1,
      2**31,
      2**32 - 1,
      2**63,
      10**40,
      -(10**40),
      0.5,
      -1.5,
      1e308,
      float('nan'),
      float('inf'),
      '',
      'x',
      '\x00',
      '\ud800',
      'a' * 10**6,
      ' ',
      '(',
      '(a+)+$',
      '{{',
      '<s>',
      '258',
      [],
      {},
      [[]],
      [None],
      [1, 2],
      ['x'] * 10**5,
      {'x': 1},
      {'content': 5},
      {'content': 'x'},
      {'': ''},
      {'type': 'BPE'},
      {'Regex': '('},
      {'Regex': '(x+x+)+y'},
      {'type': 'Lowercase'},
      {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'},
      'é',
      '日' * 50,
      {str(i): i for i in range(20000)},
      deep,
      deep,
    )
  )


def damage(value, chance):
  """Puts something wrong somewhere into a value of JSON; returns the value."""
  inner = value
  while True:
    keys = list(inner) if isinstance(inner, dict) else range(len(inner))
    key = chance.choice(keys)
    below = inner[key]
    if isinstance(below, (dict, list)) and below and chance.random() < 0.75:
      inner = below
      continue
    way = chance.randrange(8)
    if way == 0:
      del inner[key]
    elif way == 1 and isinstance(inner, dict):
      inner[chance.choice(('x', '', 'é', '-1', '10' * 20))] = inner.pop(key)
    elif way == 2 and isinstance(inner, dict):
      inner[chance.choice(('more', 'id', '__type'))] = wrong_value(chance)
    else:
      inner[key] = wrong_value(chance)
    return value


def contents(files, name, seed):
  """Returns the bytes of the file that is wrong."""
  chance = random.Random(seed)
  value = files[name]
  if not isinstance(value, str) and seed % 8:
    if seed % 50 == 1:
      value = wrong_value(chance)
    else:
      for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if not value:
          break
        value = damage(value, chance)
    value = json.dumps(value)
    return value.encode('utf-8', 'surrogatepass')
  data = bytearray(
    (value if isinstance(value, str) else json.dumps(value)).encode()
  )
  if seed % 3 == 0:
    return bytes(data[: chance.randrange(len(data))])
  letters = range(32, 127) if isinstance(value, str) else range(256)
  for _ in range(chance.choice((1, 3, 9))):
    data[chance.randrange(len(data))] = chance.choice(letters)
  return bytes(data)


def use(folder):
  tokenizer = tokenizer_lib.Tokenizer.from_directory(folder)
  for text in _TEXTS:
    tokenizer.decode(tokenizer.encode(text))
    tokenizer.encode_prompt(text, chat=True)
  tokenizer.decode(range(min(tokenizer.vocab_size, 300)))


def used():
  """Returns the seconds of the processor so far, with children."""
  both = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
  facts = [resource.getrusage(who) for who in both]
  return sum(fact.ru_utime + fact.ru_stime for fact in facts)


def peak():
  """Returns the KiB of this program; ru_maxrss has its parent's in it."""
  with open('/proc/self/status', encoding='utf-8') as file:
    return int(dict(line.split(':', 1) for line in file)['VmHWM'].split()[0])


def main(folder, name, first, cases):
  def late(*_):
    raise TimeoutError

  signal.signal(signal.SIGALRM, late)
  outcomes = {'read': 0, 'refused': 0, 'wrong': [], 'longest': 0.0}
  for seed in range(int(first), int(first) + int(cases)):
    for old in os.listdir(folder):
      os.remove(os.path.join(folder, old))
    files = valid(name)
    for other, value in files.items():
      data = value if isinstance(value, str) else json.dumps(value)
      data = data.encode('utf-8')
      if other == name:
        data = contents(files, name, seed)
      with open(os.path.join(folder, other), 'wb') as file:
        file.write(data)
    signal.setitimer(signal.ITIMER_REAL, 30)
    begin, clock = used(), time.monotonic()
    try:
      use(folder)
      outcomes['read'] += 1
    except errors.InputError as e:
      outcomes['refused'] += 1
      if '\n' in str(e) or len(str(e)) > 1500:
        outcomes['wrong'].append(f'{seed}: says {str(e)[:200]!r}')
    except BaseException as e:  # whatever it is, it is wrong
      outcomes['wrong'].append(f'{seed}: {type(e).__name__}: {e}'[:200])
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
    took = min(used() - begin, time.monotonic() - clock)
    outcomes['longest'] = max(outcomes['longest'], took)
    if took > _SECONDS:
      outcomes['wrong'].append(f'{seed}: took {took:.1f} s')
  most = max(peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
  outcomes['mebibytes'] = most >> 10
  if most << 10 > _ROOM:
    outcomes['wrong'].append(f'{most >> 10} MiB')
  print(json.dumps(outcomes))


if __name__ == '__main__':
  main(*sys.argv[1:])
