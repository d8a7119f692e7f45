"""Reads damaged files in little memory; prints what came of them, as JSON.

  python tests/programs/fuzz_weights_program.py KIND FILE CASES

KIND is 'safetensors', 'gguf', or 'trusting': a reader of safetensors that
believes the header, to show that this program would notice. Each case cuts FILE
or flips bits of its header, with seed 0, 1, ...; the reader has to succeed or
raise InputError, within 5 seconds and the file's size of memory (and 64 MiB).
"""

import json
import os
import random
import resource
import signal
import sys

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.gguf import header as gguf_io
from specdiff_jax.checkpoints.gguf import models
from specdiff_jax.checkpoints.gguf import tensors as gguf_tensors
from specdiff_jax.core import errors

ROOM = 64 << 20


def damaged(whole, header, seed):
  """Returns the bytes of a file, cut or with flipped bits in its header."""
  chance = random.Random(seed)
  if seed % 4 == 0:
    return whole[: chance.randrange(len(whole))]
  data = bytearray(whole)
  for _ in range(chance.choice((1, 1, 2, 8))):
    # The first bytes hold counts and lengths, where lies do the most harm.
    at = chance.randrange(chance.choice((32, header)))
    data[at] ^= 1 << chance.randrange(8)
  return bytes(data)


def read_safetensors(path):
  for tensor in safetensors_io.tensors(path).values():
    if tensor.dtype is not None:
      stored.read(tensor)
  safetensors_io.load(path)


def read_gguf(path):
  header = gguf_io.read_header(path)
  config = models.read_config(header)
  tensors = gguf_tensors.iterate_tensors(header, config)
  for _, _, tensor in params_lib.checked(config, tensors, path):
    stored.read(tensor)


def read_trusting(path):
  with open(path, 'rb') as file:
    table = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
    table.pop('__metadata__', None)
    for entry in table.values():
      first, last = entry['data_offsets']
      file.readinto(bytearray(last - first))


READERS = {
  'safetensors': read_safetensors,
  'gguf': read_gguf,
  'trusting': read_trusting,
}


def main(kind, path, cases):
  read = READERS[kind]
  read(path)  # whole; and everything is imported
  with open(path, 'rb') as file:
    whole = file.read()
  header = int(os.environ['HEADER'])
  with open('/proc/self/statm', encoding='utf-8') as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
  limit = used + ROOM + len(whole)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

  def late(*_):
    raise TimeoutError

  signal.signal(signal.SIGALRM, late)
  outcomes = {'read': 0, 'refused': 0, 'wrong': []}
  for seed in range(int(cases)):
    other = f'{path}.damaged'
    with open(other, 'wb') as file:
      file.write(damaged(whole, header, seed))
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
      read(other)
      outcomes['read'] += 1
    except errors.InputError:
      outcomes['refused'] += 1
    except BaseException as e:  # whatever it is, it is wrong
      outcomes['wrong'].append(f'{seed}: {type(e).__name__}: {e}'[:200])
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
  print(json.dumps(outcomes))


if __name__ == '__main__':
  main(*sys.argv[1:])
