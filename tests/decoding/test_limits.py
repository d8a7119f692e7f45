"""Ends, limits, streaming, padding rows and counters of the decode loop."""

import dataclasses

import contract_systems as systems
import jax
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib

Row = systems.Row
GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
RIGHT = np.zeros((7, systems.GAMMA + 1), int)  # drafts without an error
KINDS = ('ar', 'lookup', 'shared_noise', 'scripted', 'tree', 'garbage')

every_kind = pytest.mark.parametrize('kind', KINDS)


def cut(completion, end_ids):
  """Returns a completion up to its first end token, which belongs to it."""
  for i, token in enumerate(completion):
    if token in end_ids:
      return completion[: i + 1]
  return completion


def test_an_end_token_is_respected_at_every_offset():
  """Cycles of gamma + 1 right tokens: an end as any of them, or as bonus."""
  row, width = Row('scripted'), systems.GAMMA + 1
  completion = systems.plain(SAMPLED)[0]
  offsets = set()
  for end in dict.fromkeys(completion):
    settings = dataclasses.replace(SAMPLED, end_ids=(end,))
    got = systems.run(row, settings, systems.REQUESTS[:1], error=RIGHT)[0]
    wanted = cut(completion, (end,))
    assert got.tokens.tolist() == wanted
    assert got.emitted == len(wanted) - 1
    if len(wanted) == 1:
      assert got.cycles == 0  # prefill gave the end
    else:
      assert got.cycles == -(-got.emitted // width)
      offsets.add((got.emitted - 1) % width)
  assert offsets == set(range(width))


@every_kind
def test_every_system_ends_where_plain_decoding_does(kind):
  plain = systems.plain(SAMPLED)
  for place in (0, 1, 4, 7, 11):
    ends = (plain[1][place],)
    settings = dataclasses.replace(SAMPLED, end_ids=ends)
    got = systems.tokens(systems.run(Row(kind), settings))
    assert got == [cut(completion, ends) for completion in plain]
    assert got[1] != plain[1]


def test_any_of_several_end_tokens_ends_a_row():
  plain = systems.plain(SAMPLED)
  ends = (plain[0][9], plain[1][5], plain[2][2])
  settings = dataclasses.replace(SAMPLED, end_ids=ends)
  got = systems.run(Row('scripted'), settings)
  assert systems.tokens(got) == [cut(tokens, ends) for tokens in plain]


@pytest.mark.parametrize('kind', ['ar', 'scripted', 'tree'])
def test_every_limit_is_respected(kind):
  plain = systems.plain(SAMPLED)
  for limit in range(1, 2 * systems.GAMMA + 3):
    settings = dataclasses.replace(SAMPLED, max_new_tokens=limit)
    error = RIGHT if kind == 'scripted' else None
    got = systems.run(Row(kind), settings, error=error)
    assert systems.tokens(got) == [tokens[:limit] for tokens in plain]


@every_kind
@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['T0', 'T1'])
def test_counters_add_up(kind, settings):
  row = Row(kind)
  depth = row.drafter().max_depth
  for completion in systems.run(row, settings):
    assert completion.accepted.shape == (depth + 1,)
    assert completion.accepted.sum() == completion.cycles
    assert completion.emitted == len(completion.tokens) - 1
    assert completion.tau == completion.emitted / completion.cycles
    # Each cycle offers what it accepts and a bonus; the limit may cut the last.
    offered = (completion.accepted * np.arange(1, depth + 2)).sum()
    assert completion.emitted <= offered <= completion.emitted + depth
    if kind == 'ar':
      assert completion.tau == 1


@pytest.mark.parametrize('cycles', [1, 2, 5])
@pytest.mark.parametrize('kind', ['ar', 'shared_noise', 'tree'])
def test_bounded_calls_stream_what_one_call_gives(kind, cycles):
  row, seen = Row(kind), {}

  def on_tokens(number, tokens):
    before = seen.get(number, [])
    assert len(tokens) > len(before)
    assert tokens[: len(before)].tolist() == before
    most = cycles * (row.drafter().max_depth + 1) + (not before)
    assert len(tokens) - len(before) <= most
    seen[number] = tokens.tolist()

  got = systems.run(row, SAMPLED, cycles_per_call=cycles, on_tokens=on_tokens)
  whole = systems.run(row, SAMPLED)
  silent = systems.run(
    row, SAMPLED, cycles_per_call=cycles, on_tokens=lambda *_: False
  )
  assert systems.tokens(got) == systems.tokens(whole) == systems.plain(SAMPLED)
  assert systems.tokens(silent) == systems.tokens(whole)
  assert seen == {c.number: c.tokens.tolist() for c in whole}
  for first, second in zip(got, whole):
    assert (first.cycles, first.emitted) == (second.cycles, second.emitted)


def test_a_caller_stops_a_row_and_no_other():
  got = systems.run(
    Row('scripted'),
    SAMPLED,
    cycles_per_call=1,
    on_tokens=lambda number, tokens: number == 2 and len(tokens) >= 5,
  )
  plain = systems.plain(SAMPLED)
  for completion, wanted in zip(got, plain):
    tokens = completion.tokens.tolist()
    if completion.number == 2:
      assert 5 <= len(tokens) <= 5 + systems.GAMMA
      assert tokens == wanted[: len(tokens)]
    else:
      assert tokens == wanted


def start(row, settings, requests):
  return systems.session(row, settings).start(requests)


def decode(row, settings, state, cycles=1000):
  one = systems.session(row, settings)  # the program that `run` compiled
  return one.engine.decode(
    one.params, one.drafter_params, state, np.int32(cycles), np.int32(4)
  )


def outcome(state):
  return jax.device_get((state.tokens, state.length, state.done, state.stats))


@pytest.mark.parametrize('kind', ['lookup', 'shared_noise', 'tree'])
def test_padding_rows_stay_as_they_are(kind):
  row = Row(kind)
  state = start(row, SAMPLED, systems.REQUESTS[3:4])
  np.testing.assert_array_equal(state.done, [False, True, True, True])
  before = outcome(state)
  after = outcome(decode(row, SAMPLED, state))
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
    np.testing.assert_array_equal(old[1:], new[1:])
  tokens, length, done, _ = after
  assert done.all() and (length[1:] == 2).all()
  first = len(systems.REQUESTS[3].prompt)
  assert tokens[0, first : length[0]].tolist() == systems.plain(SAMPLED)[3]


@pytest.mark.parametrize('kind', ['lookup', 'shared_noise', 'tree'])
def test_a_row_that_is_done_changes_nothing(kind):
  """Rows of other limits: each stops at its own and is left alone."""
  row, limits = Row(kind), np.array([3, 24, 1, 9])
  state = start(row, SAMPLED, systems.REQUESTS[:4])
  prompts = np.array([len(r.prompt) for r in systems.REQUESTS[:4]])
  state = state.replace(
    limit=jax.numpy.asarray(prompts + limits, 'int32'),
    done=jax.numpy.asarray(limits == 1),
  )
  state = decode(row, SAMPLED, state)
  final = outcome(state)
  tokens, length, done, stats = final
  assert done.all()
  np.testing.assert_array_equal(length, prompts + limits)
  np.testing.assert_array_equal(stats.emitted, limits - 1)
  assert stats.cycles[2] == 0
  for i, wanted in enumerate(systems.plain(SAMPLED)[:4]):
    assert tokens[i, prompts[i] : length[i]].tolist() == wanted[: limits[i]]
    assert not tokens[i, length[i] :].any()  # nothing past the end
  again = outcome(decode(row, SAMPLED, state))
  jax.tree.map(np.testing.assert_array_equal, final, again)


@pytest.mark.parametrize(
  'settings, prompt, message',
  [
    (dataclasses.replace(GREEDY, max_new_tokens=25), [1], '25'),
    (GREEDY, [1] * (systems.BUCKET + 1), '17 tokens'),
    (GREEDY, [], 'request 8'),
  ],
)
def test_what_does_not_fit_is_an_input_error(settings, prompt, message):
  request = request_lib.Request(8, prompt)
  with pytest.raises(errors.InputError, match=message):
    systems.run(Row('ar'), settings, [request])


@pytest.mark.parametrize(
  'field, value',
  [
    ('temperature', -0.1),
    ('temperature', float('nan')),
    ('temperature', float('inf')),
    ('top_k', -1),
    ('top_p', 0.0),
    ('top_p', 1.1),
    ('max_new_tokens', 0),
  ],
)
def test_settings_out_of_range_are_input_errors(field, value):
  with pytest.raises(errors.InputError, match=field):
    request_lib.Settings(**{field: value})
