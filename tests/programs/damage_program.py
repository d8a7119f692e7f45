"""Damages what is written and read again, and looks that nobody is misled.

  python tests/programs/damage_program.py FLIPS LINES

FLIPS single bits in each of a journal, a file of completions (with its
settings) and a dataset (with its manifest), and LINES lines of JSON with wrong
types, depths and sizes, half of them under a right checksum. Each case has to
end in one InputError, or in the very records that were written, the last one of
which may be missing as after a kill. The last line is a JSON object: how often
each came, the longest case in seconds of a CPU, and the most memory in MiB.
"""

import collections
import json
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.data import dataset
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import outputs
from specdiff_jax.data import trajectories

HEADER = {'verifier': 'abc', 'temperature': 0.7, 'store_top_k': 3}
SETTINGS = {'seed': 0, 'stop': ['a', 'b'], 'verifier': 'abc'}
COUNT = 6


def record(number):
  rng = np.random.default_rng(number)
  shape = (4 + number, 3)
  return trajectories.Trajectory(
      id=f'prompt-{number}', prompt_hash=f'{number:016x}',
      prompt=rng.integers(0, 1000, 5).astype(np.int32),
      completion=rng.integers(0, 1000, shape[0]).astype(np.int32),
      temperature=0.7, top_k=50, top_p=0.95, seed=number,
      top_ids=rng.integers(0, 1000, shape).astype(np.int32),
      top_log_p=-rng.random(shape).astype(np.float16),
  )  # fmt: skip


RECORDS = [record(number) for number in range(COUNT)]
LINES = [
    {'id': f'p{i}', 'text': f'text {i} \n "é"', 'tokens': [i, 7, 9],
     'tau': 1.5, 'prompt_sha256': f'{i:016x}'} for i in range(COUNT)
]  # fmt: skip
PROMPTS = {line['id']: line['prompt_sha256'] for line in LINES}


def plain(item):
  """Returns a trajectory as values that can be compared."""
  return {
      name: (value.dtype.name, value.tolist())
      if isinstance(value, np.ndarray) else (type(value).__name__, value)
      for name, value in vars(item).items()
  }  # fmt: skip


class Journal:
  """Writes one, and tells what is read of it."""

  wanted = [plain(item) for item in RECORDS]
  may_end_early = True

  def write(self, folder):
    with trajectories.Journal(str(folder), HEADER) as journal:
      journal.append(RECORDS)

  def read(self, folder):
    with trajectories.Journal(str(folder), HEADER):
      own = list(trajectories.every(str(folder)))
    found = trajectories.read_all(str(folder))
    assert found.header == HEADER
    assert [r.id for r in own] == [r.id for r in found.records]
    return [plain(item) for item in found.records]


class Outputs:
  """The same of a file of completions."""

  wanted = LINES
  may_end_early = True

  def write(self, folder):
    with self._open(folder) as file:
      for line in LINES:
        file.append(line)

  def read(self, folder):
    with self._open(folder) as file:
      done = file.done
    found = [
        {name: value for name, value in json.loads(line).items()
         if name != 'sum'}
        for line in (folder / 'out.jsonl').read_bytes().splitlines()
    ]  # fmt: skip
    assert done == {line['id'] for line in found}
    return found

  def _open(self, folder):
    return outputs.Outputs(str(folder / 'out.jsonl'), SETTINGS, PROMPTS)


class Dataset:
  """The same of a dataset, whose journal is there or not."""

  wanted = [plain(item) for item in RECORDS]
  may_end_early = False

  def __init__(self, journal):
    self._journal = journal

  def write(self, folder):
    Journal().write(folder)
    dataset.build(str(folder))
    (folder / 'journal.jsonl').rename(folder / 'aside')

  def read(self, folder):
    if self._journal:
      (folder / 'aside').rename(folder / 'journal.jsonl')
    dataset.build(str(folder))
    header, source = dataset.read(str(folder))
    assert header == HEADER
    dataset.check_ids(str(folder), source, 1000)
    return [plain(source[index]) for index in range(len(source))]


def outcome(kind, folder):
  """Returns what reading comes to: said, right, or shorter."""
  try:
    found = kind.read(folder)
  except errors.InputError as error:
    assert len(str(error)) < 1500 and str(folder) in str(error), error
    return 'said'
  if found == kind.wanted:
    return 'right'
  assert kind.may_end_early and found == kind.wanted[: len(found)], found
  assert len(found) >= COUNT - 2, found  # two: one newline was flipped
  return 'shorter'


def flips(kind, whole, times, chance):
  """Yields outcomes after flips of single bits, each in a fresh copy."""
  names = [
      path.relative_to(whole) for path in sorted(whole.rglob('*'))
      if path.is_file() and path.name != 'aside'
  ]  # fmt: skip
  sizes = [(whole / name).stat().st_size for name in names]
  for _ in range(times):
    [name] = chance.choices(names, sizes)
    with tempfile.TemporaryDirectory() as parent:
      folder = pathlib.Path(parent) / 'copy'
      shutil.copytree(whole, folder)
      data = bytearray((folder / name).read_bytes())
      data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
      (folder / name).write_bytes(data)
      yield outcome(kind, folder)


def strange(chance):
  """Returns JSON of some wrong type, depth or size, as text."""
  return chance.choice([
      'null', 'true', '-1', '1.5', '1e999', 'NaN', '""', '"\\ud800"', '[]',
      '{}', '[[]]', '[1.5]', '[true]', '[null]', '["a"]', '[-1]', '{"a":1}',
      '[99999999999]', '9' * 5000, '"' + 'A' * 100_000 + '"', '"AAAA"',
      '[' * 5000 + ']' * 5000, '[' * 80 + ']' * 80, '[1,[2]]', '4294967296',
      '[' + '1,' * 200_000 + '1]', '{"a":' * 100 + '1' + '}' * 100, '"\\u0000"',
      '[' + '[],' * 500_000 + '1]',
  ])  # fmt: skip


def mutated(fields, chance):
  """Returns the text of an object, one of whose fields is strange."""
  fields = {name: json.dumps(value) for name, value in fields.items()}
  name = chance.choice([*fields, 'more'])
  if chance.random() < 0.15:
    fields.pop(name, None)
  else:
    fields[name] = strange(chance)
  return '{' + ','.join(f'"{n}":{value}' for n, value in fields.items()) + '}'


def sealed(text, whole):
  """Returns it as a line, with a right checksum or with none."""
  body = text[:-1].encode()
  if not whole or body == b'{':
    return text.encode() + b'\n'
  return body + b',"sum":"' + journal_lib._sum(body) + b'"}\n'


def lines(times, chance):
  """Yields outcomes of mutated lines of journals, and of completions."""
  for number in range(times):
    with tempfile.TemporaryDirectory() as folder:
      folder, whole = pathlib.Path(folder), number % 2
      kind = (Journal, Outputs)[number // 2 % 2]()
      kind.write(folder)
      [path] = folder.glob('*.jsonl')
      old = path.read_bytes().splitlines(keepends=True)
      place = chance.randrange(len(old))
      fields = json.loads(old[place])
      del fields['sum']
      old = [sealed(_unsealed(line), whole) for line in old]
      old[place] = sealed(mutated(fields, chance), whole)
      path.write_bytes(b''.join(old))
      try:
        found = kind.read(folder)
        if isinstance(kind, Journal):
          dataset.build(str(folder))
      except errors.InputError as error:
        assert len(str(error)) < 1500, error
        yield 'said'
      except AssertionError:
        yield 'said'  # a header of its own
      else:
        same = sum(one in kind.wanted for one in found)
        assert same >= COUNT - 1, found
        yield 'right' if same == COUNT else 'another record'


def _unsealed(line):
  fields = json.loads(line)
  del fields['sum']
  return json.dumps(fields, separators=(',', ':'))


KINDS = {
  'journal': Journal(),
  'outputs': Outputs(),
  'dataset': Dataset(False),
  'dataset and journal': Dataset(True),
}


def main(flip_count, line_count, seed=0):
  """Returns how often each outcome came, by kind, and the longest case."""
  chance, found, longest = random.Random(seed), {}, 0.0
  cases = {'lines': lambda: lines(line_count, chance)}
  with tempfile.TemporaryDirectory() as parent:
    for name, kind in KINDS.items():
      whole = pathlib.Path(parent) / name
      whole.mkdir()
      kind.write(whole)
      cases[name] = lambda kind=kind, whole=whole: flips(
        kind, whole, flip_count, chance
      )
    for name, case in cases.items():
      found[name], start = collections.Counter(), time.process_time()
      for result in case():
        longest = max(longest, time.process_time() - start)
        found[name][result] += 1
        start = time.process_time()
  return {**{name: dict(counts) for name, counts in found.items()},
          'seconds': round(longest, 2)}  # fmt: skip


if __name__ == '__main__':
  told = main(*map(int, sys.argv[1:]))
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
  print(json.dumps(told | {'mib': used}))
