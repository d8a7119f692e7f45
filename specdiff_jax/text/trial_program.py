"""Tries a tokenizer.json out for the process that starts it, within limits.

  python -I trial_program.py FOLDER < tokenizer.json

FOLDER is where tokenizers lies. That library is written for files that it has
written itself: others make it panic, abort, or take any time and memory, which
no exception handler of Python stops. So whatever is to be done with a file is
done here first. On stdout comes 'ok', or what is wrong.
"""

import os
import resource
import signal
import sys

sys.path.append(sys.argv[1])

import tokenizers

_SECONDS = 1.5  # of the processor, and one more for each
_BYTES = 4 << 20  # of the file, four times what 262,144 tokens take
_MEMORY = 1 << 30
_TEXTS = (
    '',
    'The 3 quick\n\n  brown foxes, "jumped" over 42,000 lazy dogs\u2019 backs;'
    "\tit's <|x|> [MASK] d\u00e9j\u00e0 \u65e5\u672c \U0001f642e\u0301 "
    '\x00\x7f#!',
    ' ' * 40 + 'a' * 40 + 'A' * 40 + '1' * 40 + '!' * 40 + '\n' * 40 + '-',
    'a a ' * 20 + 'a1' * 20 + 'aA' * 20 + '!',
)


def main():
  for name, most in (('RLIMIT_DATA', _MEMORY), ('RLIMIT_CORE', 0)):
    try:  # not every system has, and lets set, each of them
      resource.setrlimit(getattr(resource, name), (most, most))
    except (AttributeError, OSError, ValueError):
      pass
  data = sys.stdin.buffer.read()
  signal.setitimer(signal.ITIMER_PROF, _SECONDS + len(data) / _BYTES)
  try:
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
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
  os.write(1, said.encode('utf-8', 'replace'))


if __name__ == '__main__':
  main()
