"""`verify`: a certificate, and what it must not certify."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from specdiff_jax.decoding.rules import accept
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems as build_systems
from specdiff_jax.tools.exactness import divergence
from specdiff_jax.tools.exactness import verification

SMALL = (
    '--config.max_new_tokens=8', '--config.prompt_buckets=(64,)',
    '--config.gamma=3', '--limit=2',
)  # fmt: skip
PROOF = 'tests/decoding/test_rules_enumeration.py'


@dataclasses.dataclass(frozen=True)
class AcceptFirst(accept.SampleAndMatch):
  """A lossy rule: the first draft token always passes."""

  def __call__(self, tree, logits, length, sampling, noise, max_depth):
    forced = 1e4 * jax.nn.one_hot(tree.token[:, 1], logits.shape[-1])
    forced = jax.numpy.where(tree.valid[:, 1:2], forced, logits[:, 0])
    logits = logits.at[:, 0].set(forced)
    return super().__call__(tree, logits, length, sampling, noise, max_depth)


@pytest.mark.parametrize(
  'fast, systems, batch',
  [
    (False, ('lookup', 'specdiff'), 2),
    (True, ('specdiff',), 1),
  ],
)
def test_certificate(specdiff, tiny, fast, systems, batch):
  more = ['--fast'] if fast else []
  run = specdiff(
      'verify', tiny, *SMALL, '--config.dtype=bfloat16',
      f'--config.batch={batch}', f'--systems={",".join(systems)}', *more,
  )  # fmt: skip
  assert run.code == 0, (run.out, run.err)
  line = run.json
  assert line['dtype'] == ('bfloat16' if fast else 'float32')
  assert line['mode'] == ('fast' if fast else 'exact')
  assert line['fingerprint'] in run.out.split('{')[0]  # said to people too
  for name in ('device', 'jax', 'rule', 'drafter', 'verifier'):
    assert f'{name} ' in run.out and line[name]
  rows = line['systems']
  assert [(r['system'], r['temperature'], r['batch']) for r in rows] == [
    (system, temperature, size)
    for size in range(1, batch + 1)
    for temperature in (0.0, 1.0)
    for system in systems
  ]
  assert all(r['passed'] and r['prompts'] == 2 for r in rows)
  assert line['prompts'] == 2
  assert line['tokens'] == sum(r['tokens'] for r in rows) > 0
  if not fast:
    assert line['mismatches'] == 0 and line['worst_margin'] is None
    assert 'token for token' in run.out


@pytest.mark.parametrize('more', [[], ['--fast', '--config.dtype=bfloat16']])
def test_a_lossy_rule_is_caught(specdiff, tiny, monkeypatch, more):
  """The control, in both modes."""
  monkeypatch.setitem(build_systems.RULES, 'match', AcceptFirst())
  run = specdiff(
    'verify', tiny, *SMALL, '--config.batch=1', '--systems=specdiff', *more
  )
  assert run.code == 1
  line = run.json
  assert line['mismatches'] > 0 and not line['passed']
  assert 'NO' in run.out and 'NOT equal' in run.out
  found = [d for row in line['systems'] for d in row['divergences']]
  assert any(d['margin'] > d['allowed'] for d in found)
  for d in found:
    assert d['prompt'] and d['expected'] != d['got']
    assert d['prompt'] in run.out
    assert d['margin'] >= d['top2_margin'] - 1e-4
    if not more:
      assert not d['excused']


def row(margin, exact, allowed=0.1):
  found = divergence.Divergence(3, 1, 5, 6, 0.01, margin, allowed)
  report = divergence.Report(20, (found,), allowed / 2)
  return verification.Row('tree', 0.0, 1, 2, report, exact)


def test_the_margin_decides_in_fast_mode_only():
  assert row(0.05, exact=False).passed
  assert not row(0.15, exact=False).passed
  assert not row(0.05, exact=True).passed
  assert not row(math.nan, exact=False).passed
  assert not row(0.05, exact=False, allowed=math.nan).passed


def test_the_last_line_is_json_whatever_the_margins():
  good = verification.Row('ok', 0.0, 1, 2, divergence.Report(9, (), None), True)
  for worst in (math.inf, math.nan):
    line = verification.summary([good, row(0.05, False), row(worst, False)])
    text = json.dumps(line, allow_nan=False)
    assert json.loads(text)['worst_margin'] == str(worst)
    assert line['mismatches'] == 2 and line['tokens'] == 49
    assert not line['passed']
  assert verification.summary([good])['worst_margin'] is None


def refused(run, *words):
  assert run.code == 2 and run.out == '', run
  assert 'Traceback' not in run.err
  assert len(run.err.strip().splitlines()) == 1
  for word in words:
    assert word in run.err, (word, run.err)


@pytest.mark.parametrize('rule', ['greedy', 'rejection', 'block'])
def test_rules_that_are_equal_in_distribution_are_refused(
  specdiff, tiny, root, rule
):
  run = specdiff('verify', tiny, f'--config.rule={rule}')
  refused(run, rule, 'distribution', PROOF, '--config.rule=match')
  assert (root / PROOF).exists()


def test_bad_input(specdiff, tiny):
  refused(
    specdiff('verify', tiny, "--config.stop=('a',)"), 'config.stop', 'empty'
  )
  refused(specdiff('verify', tiny, '--systems=ar'), 'nothing to verify', 'tree')
  refused(specdiff('verify', tiny, '--systems=fast'), 'systems', 'fast', 'tree')
  own = specdiff('verify', tiny, '--systems=deer')
  refused(own, "system 'deer'", 'distribution', PROOF)
  refused(specdiff('verify', tiny, '--config.prompts='), 'no prompts')
  refused(specdiff('verify', tiny, '--config.gamma=0'), 'gamma', '0')


def test_drafters_are_checked_on_recorded_texts(specdiff, tiny, data):
  more = ('verify', '--drafter', tiny, '--systems=specdiff', '--limit=2')
  run = specdiff(*more, f'--config.data={data}')
  assert run.code == 0, (run.out, run.err)
  (line,) = run.json['drafters']
  assert run.json['passed'] and run.json['texts'] == 2
  assert line['windows'] > 2 and len(line['by_slot']) == 4
  assert 'is what was trained' in run.out
  run = specdiff(*more, '--tolerance=0')  # of prompts
  assert run.code == 1 and not run.json['passed']
  assert 'NOT what was trained' in run.out
  refused(specdiff('verify', tiny, '--against=a'), '--against', '--drafter')
  refused(specdiff(*more[:3], '--systems=ar'), 'No system of ar')
  refused(specdiff(*more[:3], '--fast'), '--fast', 'float32')
  refused(specdiff(*more, '--against=gs://a'), '--against', 'gs://a')


# --- a verifier with NaN in its weights ---------------------------------------


@pytest.fixture
def poisoned(monkeypatch, tmp_path):
  """The byte 'z' is NaN; returns a file of prompts without and with it."""
  real = decoding.verifier

  def verifier(config, dtype='', progress=None, split=None):
    checkpoint = real(config, dtype, progress, split)
    (z,) = checkpoint.tokenizer.encode('z')
    embed = np.array(checkpoint.params['embed'])
    embed[z] = np.nan
    params = checkpoint.params | {'embed': jax.numpy.asarray(embed)}
    return dataclasses.replace(checkpoint, params=params)

  monkeypatch.setattr(decoding, 'verifier', verifier)
  path = tmp_path / 'prompts.jsonl'
  prompts = {'fine': 'abc', 'broken': 'abz', 'late': 'abd'}
  path.write_text(
    ''.join(
      json.dumps({'id': i, 'prompt': p}) + '\n' for i, p in prompts.items()
    )
  )
  return f'--prompts={path}'


def test_nan_stops_the_run_and_keeps_what_is_done(
  specdiff, tiny, poisoned, tmp_path
):
  out = tmp_path / 'out.jsonl'
  run = specdiff(
      'decode', tiny, poisoned, f'--out={out}', '--config.system=ar',
      '--config.batch=1', *SMALL[:3],
  )  # fmt: skip
  refused(run, 'verifier', 'NaN', "'broken' in cycle 0", 'float32')
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  assert [line['id'] for line in lines] == ['fine']
  assert lines[0]['tokens']


def test_nan_is_no_certificate(specdiff, tiny, poisoned):
  run = specdiff('verify', tiny, poisoned, *SMALL[:3], '--systems=lookup')
  refused(run, 'verifier', 'NaN', "'broken' in cycle 0")
