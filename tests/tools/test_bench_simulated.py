"""Simulated acceptance: tau is that of the rate, texts are plain decoding's."""

import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import types as core_types
from specdiff_jax.tools.bench import simulated


def told(specdiff, tiny, rate):
  run = specdiff(
    'bench', tiny, f'--simulate={rate}', '--config.max_new_tokens=48',
    '--systems=ar,lookup,specdiff,tree', '--config.gamma=4', '--rounds=1',
  )  # fmt: skip
  assert run.code == 0, run.err
  assert run.json['simulated_acceptance'] == rate
  assert 'SIMULATED' in run.out
  return {row['system']: row for row in run.json['systems']}


def test_tau_is_made_up_and_texts_are_not(specdiff, tiny):
  found = {rate: told(specdiff, tiny, rate) for rate in (0.0, 0.6, 1.0)}
  for rows in found.values():
    assert all(row['exact'] and not row['recompiles'] for row in rows.values())
  for name in 'specdiff', 'tree':
    never, some, always = (found[rate][name] for rate in (0.0, 0.6, 1.0))
    assert never['tau'] == 1 and never['accepted'] == 0
    assert always['surv'][0] == 1 and always['tau'] > 4
    # 5 standard errors of the coins about the mean of a geometric law.
    mean = sum(0.6**k for k in range(5))
    assert abs(some['tau'] - mean) < 5 * 1.5 / some['cycles'] ** 0.5
  # There is nothing to simulate: lookup drafts as ever.
  assert len({rows['lookup']['tau'] for rows in found.values()}) == 1


def test_the_first_chain_of_a_tree():
  parent = jnp.array([[0, 0, 0, 1, 2, 1, 3], [0, 0, 0, 1, 2, 1, 3]])
  valid = jnp.ones(parent.shape, bool).at[1, 1].set(False)
  tree = core_types.DraftTree(parent, parent, parent, valid)
  found = simulated._first_chain(tree)
  np.testing.assert_array_equal(
    found, [[1, 1, 0, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0, 0]]
  )


def test_what_cannot_be_simulated(specdiff, tiny, tmp_path):
  twice = tmp_path / 'twice.jsonl'
  twice.write_text(
    '{"id": "a", "prompt": "one"}\n{"id": "b", "prompt": "one"}\n'
  )
  for words, *flags in (
    ('give 0 to 1', '--simulate=1.5'),
    ('none of the systems', '--systems=ar,lookup'),
    ('chooses among sizes', '--systems=ar,adaptive'),
    (
      'in distribution alone',
      '--systems=ar,specdiff',
      '--config.rule=greedy',
      '--config.temperature=1.0',
    ),
    (
      'stands there twice',
      '--systems=ar,specdiff',
      '--config.temperature=1.0',
      f'--prompts={twice}',
    ),
  ):
    run = specdiff('bench', tiny, '--simulate=0.5', *flags)
    assert run.code == 2 and words in run.err, run.err


def test_a_network_of_the_verifiers_own_layers_is_simulated_too(specdiff, tiny):
  run = specdiff(
    'bench', tiny, '--simulate=1.0', '--systems=ar,early_exit,sps',
    '--config.max_new_tokens=24', '--rounds=1',
  )  # fmt: skip
  assert run.code == 0, run.err
  plain, *drafted = run.json['systems']
  assert 'simulated' not in plain
  assert all(row['simulated'] and row['tau'] > 3 for row in drafted)
  assert all(row['surv'][0] == 1 for row in drafted)
