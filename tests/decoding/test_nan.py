"""A verifier that says NaN stops the run; what was done before is kept."""

import dataclasses

import contract_systems as systems
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.decoding import commit
from specdiff_jax.decoding import request as request_lib

GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
KINDS = ('ar', 'lookup', 'shared_noise')


def poisoned(token: int):
  """Returns the verifier's params; whoever reads `token` gets NaN."""
  params = dict(systems.verifier()[1])
  params['embed'] = np.array(params['embed'])
  params['embed'][token] = np.nan
  return params


def run(kind, params, requests, batch, settings=SAMPLED):
  """Returns the error's text and the completions that were handed over."""
  row, done = systems.Row(kind), {}
  with pytest.raises(errors.InputError) as error:
    systems.session(row, settings, batch, params=params).decode(
      requests,
      on_done=lambda request, c: done.update({request.number: c.tokens}),
    )
  return str(error.value), done


def text(number):
  return systems.plain(SAMPLED)[number]


def test_the_cycle_of_the_first_nan_is_named_and_earlier_rows_are_kept():
  first, last = systems.REQUESTS[0], systems.REQUESTS[1]
  read = {*first.prompt, *text(0), *last.prompt}
  place = next(i for i, t in enumerate(text(1)) if i and t not in read)
  message, done = run('ar', poisoned(text(1)[place]), [first, last], 1)
  # Prefill gives token 0 and cycle 1 reads it, so cycle place + 1 reads this.
  assert 'verifier' in message and f'1 in cycle {place + 1}' in message
  assert list(done) == [0] and done[0].tolist() == text(0)


@pytest.mark.parametrize('kind', KINDS)
def test_prefill_is_cycle_0(kind):
  good, bad = systems.REQUESTS[0], request_lib.Request(5, [58, 60, 59])
  token = next(t for t in (58, 60, 59) if t not in {*good.prompt, *text(0)})
  for batch in (1, 2):
    message, done = run(kind, poisoned(token), [good, bad], batch)
    assert '5 in cycle 0' in message
    if batch == 1 and kind != 'shared_noise':  # whose drafts may hold the token
      assert done[0].tolist() == text(0)


@pytest.mark.parametrize('kind', KINDS)
def test_weights_that_are_all_nan(kind):
  params = dict(systems.verifier()[1])
  params['final_norm'] = np.full_like(params['final_norm'], np.nan)
  message, done = run(kind, params, systems.REQUESTS[:3], 2, GREEDY)
  assert '0 in cycle 0, 1 in cycle 0' in message and not done


def test_the_stopped_row_keeps_what_it_had_and_gets_nothing_more():
  row = systems.Row('ar')
  params = poisoned(text(1)[6])
  session = systems.session(row, SAMPLED, 2, params=params)
  state = session.start(systems.REQUESTS[:2])
  state = row.engine().decode(params, (), state, np.int32(100))
  bad = state.stats.bad.tolist()
  first = text(1).index(text(1)[6])
  assert bad[1] == first + 1
  length = int(state.length[1]) - len(systems.REQUESTS[1].prompt)
  assert length == first + 1
  got = np.asarray(state.tokens[1])[len(systems.REQUESTS[1].prompt) :][:length]
  assert got.tolist() == text(1)[:length]


@pytest.mark.parametrize(
  'value, is_broken',
  [
    (np.nan, True),
    (np.inf, True),
    (-np.inf, False),
    (3.4e38, False),
  ],
)
def test_what_counts_as_broken(value, is_broken):
  logits = np.zeros((2, 3, 5), np.float32)
  logits[1, 2, 4] = value
  got = commit.broken(jnp.asarray(logits))
  assert got.tolist() == [False, is_broken]
