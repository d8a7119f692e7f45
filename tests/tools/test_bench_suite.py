"""Benches of standard sets: turns, answers, intervals."""

import dataclasses
import errno
import json
import types

import numpy as np
import pytest

from specdiff_jax.core import files
from specdiff_jax.core import locks
from specdiff_jax.data import prompts
from specdiff_jax.recipes import decoding
from specdiff_jax.tools.bench import costs
from specdiff_jax.tools.bench import metrics
from specdiff_jax.tools.bench import points
from specdiff_jax.tools.bench import timing
from specdiff_jax.tools.bench import turns


class Plain:
  """Replies by counting the turns of a chat, and notes what it was asked."""

  def __init__(self):
    self.asked = []

  def warm_up(self, requests):
    self.asked.append([one.prompt for one in requests])

  def decode(self, requests):
    return [len(one.prompt) for one in requests]

  def cut(self, completion):
    return f'reply to {completion} messages', []


def test_each_turn_follows_plain_decodings_replies(monkeypatch):
  monkeypatch.setattr(
    turns.decoding,
    'requests',
    lambda recipe, checkpoint, texts: [
      types.SimpleNamespace(prompt=one.text) for one in texts
    ],
  )
  given = [
    prompts.Prompt('a', 'one', about={'turns': ['one', 'two', 'three']}),
    prompts.Prompt('b', 'alone', about={'reference': '#### 1'}),
    prompts.Prompt('c', 'eins', {'x': 1}, about={'turns': ['eins', 'zwei']}),
  ]
  chat = types.SimpleNamespace(sampling=types.SimpleNamespace(chat=True))
  plain = Plain()
  found = turns.expanded(chat, None, given, plain)
  assert [one.id for one in found] == [
    *'abc', 'a/turn-2', 'c/turn-2', 'a/turn-3'
  ]  # fmt: skip
  assert found[:3] == given and found[1].about['reference'] == '#### 1'
  assert [one['content'] for one in found[5].text] == [
    'one', 'reply to 3 messages', 'two', 'reply to 3 messages', 'three'
  ]  # fmt: skip
  assert [one['role'] for one in found[4].text] == ['user', 'assistant', 'user']
  assert found[4].template == {'x': 1}
  assert 'reference' not in found[3].about
  assert len(plain.asked) == 2
  # Without a template there is no second turn.
  bare = types.SimpleNamespace(sampling=types.SimpleNamespace(chat=False))
  assert turns.expanded(bare, None, given, plain) == given


def test_answers_are_graded(specdiff, tiny, tmp_path):
  path = tmp_path / 'set.jsonl'
  rows = [
    {'id': str(i), 'prompt': f'a {i}', 'reference': '#### 7'} for i in range(3)
  ]
  path.write_text(''.join(json.dumps(one) + '\n' for one in rows))
  out = tmp_path / 'out.json'
  flags = '--suite=gsm8k', f'--path={path}', '--systems=ar,lookup'
  run = specdiff('bench', tiny, *flags, f'--out={out}', '--rounds=1')
  assert run.code == 0, run.err
  assert 'correct' in run.out
  ar, lookup = json.loads(out.read_text())['systems']
  assert [one['id'] for one in ar['graded']] == ['0', '1', '2']
  for one, other in zip(ar['graded'], lookup['graded'], strict=True):
    assert one['correct'] is other['correct']  # lossless
    assert one['tokens'] == other['tokens'] > 0
  for flags, said in (
    (['--path=x'], '--suite'),
    (['--suite=gsm8k', '--prompts=x'], '--path'),
    (['--suite=gsm9k'], 'no suite'),
    (['--suite=math500'], 'MATH-500'),
    (['--suite=gsm8k', f'--path={path}x'], 'not there'),
  ):
    run = specdiff('bench', tiny, *flags)
    assert run.code == 2 and said in run.err, run.err


def made(seconds):
  """Returns a measurement of a batch a number, 10 tokens each."""
  calls = tuple((timing.Round(10, 11, s, s),) for s in seconds)
  whole = timing.Round(10 * len(seconds), 0, sum(seconds), 0)
  return timing.Measurement((whole,), (), True, 0, calls)


def test_the_interval_of_a_ratio():
  random = np.random.default_rng(1)
  base = made(random.uniform(0.9, 1.1, 50))
  same = metrics.interval(made(random.uniform(0.9, 1.1, 50)), base)
  assert same[0] < 1 < same[1] and same[1] - same[0] < 0.1
  low, high = metrics.interval(made([0.5] * 50), base)
  assert 1.9 < low < high < 2.1
  # Texts that differ more widen it.
  wide = metrics.interval(made(random.uniform(0.1, 0.9, 50)), base)
  assert wide[1] - wide[0] > 2 * (high - low)
  # Paired: a slow text is slow for both.
  slow = random.uniform(0.1, 9, 50)
  low, high = metrics.interval(made(slow / 2), made(slow))
  assert low == pytest.approx(2) == high
  assert metrics.interval(base, base) is None
  assert metrics.interval(made([1] * 3), made([1] * 3)) is None


def test_a_grid_of_benches_goes_on(specdiff, tiny, tmp_path):
  out = tmp_path / 'grid'
  flags = 'bench', tiny, '--systems=ar,lookup', '--rounds=1', '--limit=1'
  flags += f'--out={out}', '--control'
  run = specdiff(*flags, '--grid=temperature=0,1')
  assert run.code == 0, run.err
  assert run.json == {'points': 2, 'out': str(out), 'passed': True}
  made = {p.name: json.loads(p.read_text()) for p in out.glob('*.json')}
  assert set(made) == {'temperature-0.json', 'temperature-1.json'}
  names = [row['system'] for row in made['temperature-0.json']['systems']]
  assert names == ['ar', 'lookup', 'ar again']
  assert all(row['exact'] for one in made.values() for row in one['systems'])
  for name, one in made.items():
    assert name == f'temperature-{one["temperature"]:g}.json'
    assert [row['gamma'] for row in one['systems']] == [0, 4, 0]
  # What is done stays; a larger grid adds to it.
  run = specdiff(*flags, '--grid=temperature=0,2')
  assert run.code == 0 and run.err.count('done before') == 1
  assert (
    json.loads((out / 'temperature-0.json').read_text())
    == made['temperature-0.json']
  )
  # Another bench does not take its place.
  run = specdiff(*flags, '--grid=temperature=0', '--config.seed=5')
  assert run.code == 2 and 'temperature-0.json holds another bench' in run.err
  run = specdiff(*flags, '--grid=temperature=0', '--plot=x.png')
  assert run.code == 2 and '--plot' in run.err
  # Prompts may be an axis, and are known by what their file holds.
  asked = tmp_path / 'asked.jsonl'
  asked.write_text('{"id": "a", "prompt": "p"}\n')
  run = specdiff(*flags, f'--grid=prompts={asked}')
  assert run.code == 0, run.err
  asked.write_text('{"id": "a", "prompt": "q"}\n')
  run = specdiff(*flags, f'--grid=prompts={asked}')
  assert run.code == 2 and 'holds another bench' in run.err
  there = f'--out={out / "temperature-0.json"}'
  run = specdiff(*flags, '--grid=temperature=0', there)
  assert run.code == 2 and 'grid.lock: cannot be written' in run.err
  with locks.held(str(out / 'grid.lock')):
    run = specdiff(*flags, '--grid=temperature=0')
  assert run.code == 2 and 'Another process is writing' in run.err


def test_a_grid_that_cannot_be_written_is_told_before(
  specdiff, tiny, tmp_path, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files, 'open_own', full)
  flags = '--systems=lookup', '--grid=temperature=0', f'--out={tmp_path}'
  run = specdiff('bench', tiny, *flags)
  assert run.code == 2 and 'No space left' in run.err
  assert 'temperature-0' not in run.err  # nothing was begun


def test_a_bench_is_known_by_all_that_decides_it(tmp_path):
  def known(recipe, *asked):
    return points.identity(recipe, asked, points.sources(recipe))

  head, words = tmp_path / 'head.safetensors', tmp_path / 'ngram.safetensors'
  head.write_bytes(b'a'), words.write_bytes(b'a')
  recipe = decoding.told(
    ['lattice', 'diffuspec'],
    {'head': str(head), 'diffuspec': {'ngram': str(words)}},
  )
  plain = prompts.Prompt('1', 'a')
  found = [known(recipe, plain)]
  assert known(recipe, plain) == found[0]
  for more in ({'template': {'think': True}}, {'about': {'turns': ['b']}}):
    found.append(known(recipe, dataclasses.replace(plain, **more)))
  for path in (head, words):
    path.write_bytes(b'b')
    found.append(known(recipe, plain))
  weights = tmp_path / 'weights.gguf'
  for content in (b'a', b'b'):
    weights.write_bytes(content)
    found.append(known(recipe.change(verifier=str(weights)), plain))
  published = tmp_path / 'published'  # of weights too large to be read for it
  published.mkdir()
  recipe = decoding.told(['dflash'], {'drafter': str(published)})
  for size in (1, 2):
    (published / 'model.safetensors').write_bytes(b'a' * size)
    found.append(known(recipe, plain))
  assert known(recipe, plain) == found[-1]
  assert len(set(found)) == 9


def test_bytes_of_a_step():
  params = {
    'embed': np.zeros((4, 2), np.float32),
    'layer_0': {'gate': np.zeros((3, 2), np.float32)},
  }
  assert costs.weight_bytes(params) == 4 * (8 + 6)
  # An embedding that is no head is looked up, not read.
  own = params | {'head': np.zeros((4, 2), np.float32)}
  assert costs.weight_bytes(own) == 4 * (8 + 6)
  assert costs.read_bandwidth(megabytes=1, rounds=1) > 0
  assert costs.peak_memory() > 1 << 20
