"""Tries a tokenizer.json out for the process that starts it, within limits.

  python -I trial_program.py FOLDER < tokenizer.json

FOLDER is where tokenizers lies. That library is written for files that it has
written itself: others make it panic, abort, or take any time and memory, which
no exception handler of Python stops. So whatever is to be done with a file is
done here first. On stdout comes 'ok', or what is wrong.
"""

import json
import os
import resource
import signal
import sys

sys.path.append(sys.argv[1])

import tokenizers

_SECONDS = 1.5  # of the processor, and one more for each
_BYTES = 4 << 20  # of the file, four times what 262,144 tokens take
_MEMORY = 1 << 30
_MOST_TOKENS = 1 << 19  # as in tokenizer_bpe.py
_MOST_KEYS = 1 << 20  # of JSON: an added token has eight, 65,536 are known
_MOST_GROWTH = 16  # letters that a letter may become, by what is replaced
_TEXTS = (
  '',
  'The 3 quick\n\n  brown foxes, "jumped" over 42,000 lazy dogs\u2019 backs;'
  "\tit's <|x|> [MASK] d\u00e9j\u00e0 \u65e5\u672c \U0001f642e\u0301 "
  '\x00\x7f#!',
  ' ' * 40 + 'a' * 40 + 'A' * 40 + '1' * 40 + '!' * 40 + '\n' * 40 + '-',
  'a a ' * 20 + 'a1' * 20 + 'aA' * 20 + '!',
)


def growth(part):
  """Returns how many letters one may become in the steps of a part."""
  result = 1
  inner = part.values() if isinstance(part, dict) else part
  for value in inner:
    if isinstance(value, (dict, list)):
      result *= growth(value)
  for name in ('content', 'prepend'):
    text = part.get(name) if isinstance(part, dict) else None
    if isinstance(text, str):
      result *= max(len(text), 1)
  return result


def main():
  for name, most in (('RLIMIT_DATA', _MEMORY), ('RLIMIT_CORE', 0)):
    try:  # not every system has, and lets set, each of them
      resource.setrlimit(getattr(resource, name), (most, most))
    except (AttributeError, OSError, ValueError):
      pass
  data = sys.stdin.buffer.read()
  if data.count(b'":') > _MOST_KEYS:  # before the time that reading takes
    return say(f'it holds more than {_MOST_TOKENS} tokens')
  signal.setitimer(signal.ITIMER_PROF, _SECONDS + len(data) / _BYTES)
  try:
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.get_vocab_size(with_added_tokens=True) > _MOST_TOKENS:
      raise ValueError(f'it holds more than {_MOST_TOKENS} tokens')
    for part in (tokenizer.normalizer, tokenizer.decoder):
      if part and growth(json.loads(part.__getstate__())) > _MOST_GROWTH:
        raise ValueError('a replacement in it makes a text too long')
    ids = list(tokenizer.get_vocab(with_added_tokens=True).values())
    tokenizer.get_added_tokens_decoder()
    for text in _TEXTS:
      for special in (True, False):
        made = tokenizer.encode(text, add_special_tokens=special).ids
      tokenizer.decode(made)
    tokenizer.decode(ids, skip_special_tokens=False)
    for i in ids[:1000]:
      tokenizer.decode([i])
  except BaseException as error:  # a panic is no Exception
    said = ' '.join(str(error).split())[:300] or type(error).__name__
  else:
    said = 'ok'
  say(said)


def say(text):
  os.write(1, text.encode('utf-8', 'replace'))


if __name__ == '__main__':
  main()
