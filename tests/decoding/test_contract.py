"""The contract of every system: speculation changes nothing but the speed.

The rows of the table differ in what is drafted; each must emit what plain
decoding emits, token for token, at every temperature.
"""

import dataclasses

import contract_systems as systems
import jax
import numpy as np
import pytest

from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding.rules import accept

Row = systems.Row
TABLE = tuple(
  map(
    Row,
    (
      'ar',
      'lookup',
      'argmax',
      'sample',
      'shared_noise',
      'scripted',
      'tree',
      'garbage',
      'chains',
      'distinct',
      'merged',
      'best_first',
      'sps_argmax',
      'sps_sample',
      'sps_shared_noise',
      'exit_argmax',
      'exit_sample',
      'exit_shared_noise',
      'full_best_first',
      'causal_merged',
      'block_shared_noise',
    ),
  )
) + (
  Row('exit_shared_noise', scan_layers=True),
  Row('argmax', scan_layers=True),
  Row('tree', scan_layers=True),
  Row('chains', rule=accept.SelfSelection()),
)

GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
SETTINGS = (
  GREEDY,
  SAMPLED,
  dataclasses.replace(GREEDY, temperature=1.4, top_k=12, seed=4),
  dataclasses.replace(GREEDY, temperature=1.2, top_p=0.8, seed=5),
  dataclasses.replace(GREEDY, temperature=0.8, top_k=20, top_p=0.9, seed=6),
)


def name(row):
  selected = isinstance(row.rule, accept.SelfSelection)
  return (
    row.kind
    + ('_scanned' if row.scan_layers else '')
    + ('_selected' if selected else '')
  )


systems_of_the_table = pytest.mark.parametrize('row', TABLE, ids=name)


def taus(completions):
  return sum(c.emitted for c in completions) / sum(
    c.cycles for c in completions
  )


def test_the_reference_is_worth_comparing_with():
  """Plain texts are varied, and each setting has its own."""
  outputs = [systems.plain(settings) for settings in SETTINGS]
  for output in outputs:
    assert len({tuple(tokens) for tokens in output}) == len(output)
    assert np.mean([len(set(tokens)) for tokens in output]) > 5
  assert len({str(output) for output in outputs}) == len(SETTINGS)


@systems_of_the_table
def test_output_is_that_of_plain_decoding(row):
  for settings in SETTINGS:
    got = systems.tokens(systems.run(row, settings))
    assert got == systems.plain(settings), settings
    assert all(len(tokens) == systems.NEW for tokens in got)


@pytest.mark.parametrize('kind', ['ar', 'shared_noise', 'tree'])
def test_one_row_is_decoded_as_in_an_uneven_batch(kind):
  row = Row(kind)
  for settings in (GREEDY, SETTINGS[-1]):
    batch = systems.run(row, settings)
    alone = systems.run(row, settings, batch=1)
    assert systems.tokens(alone) == systems.tokens(batch)
    for first, second in zip(alone, batch):
      assert (first.cycles, first.emitted) == (second.cycles, second.emitted)
      np.testing.assert_array_equal(first.accepted, second.accepted)


@pytest.mark.parametrize('kind', ['tree', 'garbage'])
@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_a_lossy_rule_is_noticed(kind, settings):
  """Negative control of the comparisons above."""
  row = Row(kind, rule=systems.AcceptFirst())
  got = systems.tokens(systems.run(row, settings))
  assert got != systems.plain(settings)


def test_a_path_that_is_not_gathered_is_noticed():
  """Negative control: the keys of another branch stay in the cache."""
  row = Row('tree_without_gather')
  assert systems.tokens(systems.run(row, SAMPLED)) != systems.plain(SAMPLED)


@pytest.mark.parametrize('kind', ['tree', 'merged'])
@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_the_tree_walk_never_accepts_less_than_self_selection(kind, settings):
  """Asserted for every cycle: one that did would break the text."""
  row = Row(kind, rule=systems.Dominates())
  assert systems.tokens(systems.run(row, settings)) == systems.plain(settings)


def test_a_walk_that_accepts_more_is_noticed():
  """Negative control: the same comparison the other way round."""
  row = Row('tree', rule=systems.Dominates(reverse=True))
  assert systems.tokens(systems.run(row, SAMPLED)) != systems.plain(SAMPLED)


def test_trees_are_exercised():
  """Deep and partial paths are accepted, also off the first branch."""
  accepted = sum(c.accepted for c in systems.run(Row('tree'), SAMPLED))
  assert accepted.size == 4 and (accepted > 0).all()


def test_an_adversary_changes_only_the_speed():
  # Always right, or always wrong.
  right, wrong = (np.full((7, systems.GAMMA + 1), error) for error in (0, 1))
  for settings in (GREEDY, SAMPLED):
    best = systems.run(Row('scripted'), settings, error=right)
    worst = systems.run(Row('scripted'), settings, error=wrong)
    assert systems.tokens(best) == systems.tokens(worst)
    assert all(c.cycles == c.emitted for c in worst)
    for c in worst:
      np.testing.assert_array_equal(c.accepted[1:], 0)
    cycles = -(-(systems.NEW - 1) // (systems.GAMMA + 1))
    assert all(c.cycles == cycles for c in best)


def test_shared_noise_is_accepted_more_often():
  shared = systems.run(Row('shared_noise'), SAMPLED)
  own = systems.run(Row('sample'), SAMPLED)
  assert taus(shared) > taus(own) + 0.1


@systems_of_the_table
def test_nothing_recompiles(row, compilations):
  systems.run(row, SETTINGS[-1], systems.REQUESTS[:4])
  systems.plain(SAMPLED)
  others = [request_lib.Request(n, [n] * (1 + 3 * n)) for n in range(5)]
  calls = (
    (GREEDY, others),
    (SAMPLED, others[::-1]),
    (dataclasses.replace(SAMPLED, max_new_tokens=3, seed=9), others[:3]),
    (dataclasses.replace(GREEDY, end_ids=(7,)), systems.REQUESTS),
    (SETTINGS[2], systems.REQUESTS[:1]),
  )
  for settings, requests in calls:
    session = systems.session(row, settings)
    before = compilations()
    session.decode(requests)
    assert compilations() == before, settings


def test_a_recompilation_is_noticed(compilations):
  """Negative control: a program for another shape."""
  before = compilations()
  jax.jit(lambda x: x + 1)(np.zeros(3))
  assert compilations() == before + 1


@pytest.mark.parametrize('kind', ['ar', 'shared_noise', 'tree'])
def test_noise_is_keyed_by_the_request_not_by_its_row(kind):
  row = Row(kind)
  wanted = dict(zip(range(6), systems.plain(SAMPLED)))
  for order in ([5, 2, 0, 1], [2, 4], [3], [1, 5, 4, 3, 2, 0]):
    got = systems.run(row, SAMPLED, [systems.REQUESTS[i] for i in order])
    assert [c.number for c in got] == order
    assert systems.tokens(got) == [wanted[i] for i in order]
  # Negative controls: another number, another seed.
  prompt = systems.REQUESTS[3].prompt
  other = systems.run(row, SAMPLED, [request_lib.Request(77, prompt)])
  assert systems.tokens(other) != [wanted[3]]
  seed = dataclasses.replace(SAMPLED, seed=99)
  other = systems.run(row, seed, [systems.REQUESTS[3]])
  assert systems.tokens(other) != [wanted[3]]


def test_greedy_decoding_draws_no_noise():
  prompt = systems.REQUESTS[3].prompt
  requests = [request_lib.Request(77, prompt), systems.REQUESTS[3]]
  settings = dataclasses.replace(GREEDY, seed=99, top_k=5, top_p=0.5)
  got = systems.tokens(systems.run(Row('ar'), settings, requests))
  assert got == [systems.plain(GREEDY)[3]] * 2


def test_scanned_layers_are_the_unrolled_ones():
  for settings in (GREEDY, SAMPLED):
    got = systems.run(Row('ar', scan_layers=True), settings)
    assert systems.tokens(got) == systems.plain(settings)


def test_a_state_is_donated():
  row = Row('ar')
  session = systems.session(row, GREEDY)
  state = session.start(systems.REQUESTS[:4])
  cache = jax.tree.leaves(state.cache)
  session.engine.decode(session.params, (), state, np.int32(1))
  assert all(array.is_deleted() for array in cache)
