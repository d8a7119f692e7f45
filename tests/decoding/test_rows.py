"""Rows that are refilled, caches that grow, and what the host costs."""

import dataclasses

import contract_systems as systems
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest

from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import rows as rows_lib
from specdiff_jax.decoding import session as session_lib

Row = systems.Row
GREEDY = request_lib.Settings(max_new_tokens=systems.NEW)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, seed=3)
BUCKETS = (4, systems.BUCKET)
STEP = 12  # of caches that grow: from 28 slots to 40 and 47


def uneven():
  """Returns settings under which the requests' texts end here and there."""
  plain = systems.plain(SAMPLED)
  ends = (plain[0][9], plain[1][5], plain[2][2], plain[4][14])
  return dataclasses.replace(SAMPLED, end_ids=ends)


def session(row, settings=SAMPLED, batch=3, step=0, **options):
  engine = dataclasses.replace(row.engine(), cache_step=step)
  return systems.session(row, settings, batch, engine=engine, **options)


def run(row, settings, requests=systems.REQUESTS, batch=3, step=0, **options):
  fields = {
    name: options.pop(name)
    for name in ('buckets', 'cycles_per_call')
    if name in options
  }
  one = session(row, settings, batch, step, **fields)
  return one.decode(requests, **options)


def prefilled(row, requests, batch):
  return session(row, batch=batch).start(requests)


@pytest.fixture
def refills(monkeypatch):
  """Returns the rows that were filled, one after the other."""
  filled, real = [], rows_lib.insert

  def insert(state, some, rows):
    filled.extend(int(row) for row in rows)
    return real(state, some, rows)

  monkeypatch.setattr(rows_lib, 'insert', insert)
  return filled


@pytest.mark.parametrize('kind', ['ar', 'shared_noise', 'sps_shared_noise'])
def test_a_refilled_row_decodes_as_if_alone(kind, refills):
  row, settings = Row(kind), uneven()
  refills.clear()
  alone = systems.tokens(run(row, settings, batch=1))
  assert not refills
  assert len({len(tokens) for tokens in alone}) > 3
  assert systems.tokens(run(row, settings)) == alone
  assert len(refills) == 6 and refills[:3] == [0, 1, 2]
  backwards = run(row, settings, systems.REQUESTS[::-1])
  assert systems.tokens(backwards) == alone[::-1]


@pytest.mark.parametrize('kind', ['ar', 'shared_noise'])
@pytest.mark.parametrize('group', [2, 3])
def test_rows_that_are_filled_together_decode_as_if_alone(
  kind, group, refills, monkeypatch
):
  """The last group is not full, and texts end here and there."""
  row, settings = Row(kind), uneven()
  wanted = systems.tokens(run(row, settings))
  refills.clear()
  monkeypatch.setattr(rows_lib, 'group_of', lambda batch: group)
  many = systems.REQUESTS[:5]
  assert systems.tokens(run(row, settings, many)) == wanted[:5]
  assert len(refills) % group == 0 and refills.count(3) == len(refills) - 5


def test_large_batches_are_filled_in_groups():
  assert [rows_lib.group_of(n) for n in (1, 8, 31, 32, 128)] == [1, 1, 1, 2, 8]


def test_a_refill_that_keeps_the_old_cache_is_noticed(monkeypatch):
  """Negative control: the new tokens beside the old keys and values."""
  row, settings, real = Row('ar'), uneven(), rows_lib.insert

  def insert(state, one, rows):
    at = jnp.arange(3) == rows
    cache = jax.tree.map(
      lambda old: jnp.sum(old * at[:, None, None, None], 0, keepdims=True),
      state.cache,
    )
    return real(state, one.replace(cache=cache), rows)

  wanted = systems.tokens(run(row, settings))
  monkeypatch.setattr(rows_lib, 'insert', insert)
  assert systems.tokens(run(row, settings)) != wanted


@pytest.mark.parametrize(
  'row', [Row('shared_noise'), Row('tree', scan_layers=True)]
)
def test_inserting_changes_its_rows_and_all_of_them(row):
  """Leaf by leaf, in bf16 too: as if these had been prefilled there."""
  first, others = systems.REQUESTS[1:4], systems.REQUESTS[4:]
  wanted = prefilled(row, others[1:] + first[1:2] + others[:1], 3)
  before = prefilled(row, first, 3)
  some = prefilled(row, others, 3)  # and a spare one, which is dropped
  half = lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x
  for cast in (lambda x: x, half):
    got = rows_lib.insert(
      jax.tree.map(jnp.copy, jax.tree.map(cast, before)),
      jax.tree.map(cast, some),
      np.array([2, 0, 3], np.int32),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
      name = jax.tree_util.keystr(path)
      same = jax.tree.map(cast, wanted)
      for key in path:
        named = hasattr(key, 'name')
        same = getattr(same, key.name) if named else same[key.idx]
      assert leaf.dtype == same.dtype, name
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf, same = jax.random.key_data(leaf), jax.random.key_data(same)
      np.testing.assert_allclose(
          np.asarray(leaf, np.float32), np.asarray(same, np.float32),
          rtol=1e-2, atol=1e-5, err_msg=name,
      )  # fmt: skip


def test_rows_without_a_request_are_done():
  state = rows_lib.spread(prefilled(Row('tree'), systems.REQUESTS[2:4], 2), 4)
  np.testing.assert_array_equal(state.done, [True] * 4)
  assert jax.tree.leaves(state.cache)[0].shape[0] == 4


def test_a_bucket_is_of_the_requests_own_length(monkeypatch):
  """Whatever the neighbours; and results come in the order of requests."""
  rooms, real = {}, session_lib.Session.start

  def start(self, requests, rows):
    state = real(self, requests, rows)
    [request] = requests
    rooms[request.number] = state.tokens.shape[1] - systems.NEW
    return state

  monkeypatch.setattr(session_lib.Session, 'start', start)
  mixed = [systems.REQUESTS[i] for i in (4, 0, 5, 1, 3, 2)]
  got = run(Row('ar'), SAMPLED, mixed, buckets=BUCKETS)
  assert [c.number for c in got] == [4, 0, 5, 1, 3, 2]
  assert rooms == {0: 4, 1: 4, 2: 16, 3: 16, 4: 16, 5: 16}
  plain = systems.plain(SAMPLED)
  assert systems.tokens(got) == [plain[r.number] for r in mixed]


def test_completions_are_handed_over_once_they_are_done():
  settings, events = uneven(), []
  got = run(
      Row('ar'), settings, batch=2, cycles_per_call=1,
      on_tokens=lambda number, tokens: events.append(number),
      on_done=lambda request, made: events.append((request.number, made)),
  )  # fmt: skip
  done = [event for event in events if isinstance(event, tuple)]
  assert {number for number, _ in done} == set(range(6)) and len(done) == 6
  assert all(made is got[number] for number, made in done)
  first = events.index(done[0])
  assert done[-1][0] in events[first:] and done[-1][0] not in events[:first]


def test_a_row_that_the_caller_stops_is_refilled(refills):
  plain = systems.plain(SAMPLED)
  got = run(
      Row('ar'), SAMPLED, cycles_per_call=2,
      on_tokens=lambda number, tokens: number in (0, 4) and len(tokens) >= 5,
  )  # fmt: skip
  assert len(refills) == 6
  for completion, wanted in zip(got, plain):
    size = len(completion.tokens)
    assert size in ((5, 6) if completion.number in (0, 4) else (systems.NEW,))
    assert completion.tokens.tolist() == wanted[:size]


def test_refills_count_as_prefill(monkeypatch):
  clock, now = request_lib.Clock(), [0.0]
  monkeypatch.setattr(request_lib.time, 'perf_counter', lambda: now[0])

  def slow(method, seconds):
    real = getattr(rows_lib.Rows, method)

    def wrapped(*args, **kwargs):
      now[0] += seconds
      return real(*args, **kwargs)

    monkeypatch.setattr(rows_lib.Rows, method, wrapped)

  slow('fill', 1.0)
  slow('run', 100.0)
  run(Row('ar'), uneven(), clock=clock, on_done=lambda *_: slow)
  assert clock.prefill == 6.0
  assert clock.decode >= 400.0 and clock.decode % 100 == 0


@pytest.mark.parametrize(
  'row',
  [
    Row('shared_noise'),
    Row('tree', scan_layers=True),
    Row('sps_shared_noise'),
  ],
)
def test_growing_caches_change_no_token(row, monkeypatch):
  sizes, real = [], rows_lib.grow

  def grow(*args):
    sizes.append(args[-1])
    return real(*args)

  monkeypatch.setattr(rows_lib, 'grow', grow)
  long = request_lib.Request(6, list(range(systems.BUCKET)))
  for settings in (SAMPLED, GREEDY):
    requests = systems.REQUESTS[2:] + (long,)
    wanted = systems.tokens(run(row, settings, requests))
    assert not sizes  # full-sized at once
    got = systems.tokens(run(row, settings, requests, step=STEP))
    assert got == wanted
    assert sizes == [40, systems.BUCKET + systems.NEW + systems.GAMMA + 1]
    sizes.clear()


def test_caches_grow_beside_rows_that_are_filled_together(monkeypatch):
  wanted = systems.tokens(run(Row('tree'), uneven()))
  monkeypatch.setattr(rows_lib, 'group_of', lambda batch: 2)
  assert systems.tokens(run(Row('tree'), uneven(), step=STEP)) == wanted


def test_a_cache_that_grows_wrongly_is_noticed(monkeypatch):
  """Negative control: what was in it is lost."""
  real = rows_lib.grow

  def grow(*args):
    state = real(*args)
    return state.replace(cache=jax.tree.map(jnp.zeros_like, state.cache))

  wanted = systems.tokens(run(Row('tree'), SAMPLED))
  monkeypatch.setattr(rows_lib, 'grow', grow)
  assert systems.tokens(run(Row('tree'), SAMPLED, step=STEP)) != wanted


def test_no_live_row_writes_past_its_cache():
  """The loop stops before it; the state is as it was a cycle earlier."""
  row = Row('tree')
  one = session(row, step=STEP)
  state = one.start(systems.REQUESTS[2:5])
  room, tree = state.cache.slots, systems.GAMMA + 1
  assert room == 28
  while True:
    before = np.asarray(state.length)
    assert (before - 1 + tree <= room).all()
    state = one.engine.decode(
      one.params, one.drafter_params, state, np.int32(1)
    )
    assert not state.done.any()
    if (state.length - 1 + tree > room).any():
      break
  length = np.asarray(state.length)
  state = one.engine.decode(one.params, one.drafter_params, state, np.int32(9))
  np.testing.assert_array_equal(state.length, length)


MIXED = tuple(
  request_lib.Request(n, [1 + n % 50] * (1 + n * 5 % systems.BUCKET))
  for n in range(24)
)


@pytest.mark.parametrize('group', [1, 2])
def test_nothing_recompiles_after_warming_up(group, compilations, monkeypatch):
  monkeypatch.setattr(rows_lib, 'group_of', lambda batch: group)
  one = session(Row('tree'), GREEDY, step=STEP, buckets=BUCKETS)
  one.warm_up(MIXED[:8])
  before = compilations()
  for temperature, limit, some in ((0.0, 24, 24), (0.9, 9, 11), (1.4, 1, 2)):
    settings = dataclasses.replace(
      GREEDY, temperature=temperature, top_k=5, seed=7, max_new_tokens=limit
    )
    got = dataclasses.replace(one, settings=settings).decode(MIXED[:some])
    assert len(got) == some
  assert compilations() == before


@pytest.mark.parametrize('stream', [False, True])
def test_each_bounded_call_fetches_once(monkeypatch, stream):
  counts = {'fetch': 0, 'call': 0}

  def counting(name, real):
    def wrapped(*args):
      counts[name] += 1
      return real(*args)

    return wrapped

  monkeypatch.setattr(jax, 'device_get', counting('fetch', jax.device_get))
  real = engine_lib.Engine.decode
  monkeypatch.setattr(engine_lib.Engine, 'decode', counting('call', real))
  options = {'cycles_per_call': 2, 'on_tokens': lambda *_: False}
  run(Row('ar'), uneven(), **(options if stream else {}))
  assert counts['fetch'] == counts['call']
  # Without a reader, the host looks when a row is done and at no other time.
  assert counts['call'] > 12 if stream else 2 <= counts['call'] <= 6


def to_the_host(function, *args):
  names = set(jaxprs.primitives(jax.make_jaxpr(function)(*args).jaxpr))
  words = ('callback', 'infeed', 'outfeed', 'debug')
  return {name for name in names if any(word in name for word in words)}, names


@pytest.mark.parametrize('kind', ['shared_noise', 'tree'])
def test_the_loop_never_calls_the_host(kind):
  one = session(Row(kind))
  engine, params, drafter = one.engine, one.params, one.drafter_params
  inputs = one.inputs(systems.REQUESTS[:3])
  state = jax.eval_shape(engine.prefill, params, drafter, *inputs)

  def decode(params, drafter, state):
    return engine.decode(params, drafter, state, np.int32(9), np.int32(1))

  found, names = to_the_host(decode, params, drafter, state)
  assert {'while', 'dot_general'} <= names  # it was looked at
  assert not found

  def talkative(params, drafter, state):  # the control
    def body(state):
      jax.debug.callback(lambda length: None, state.length)
      return decode(params, drafter, state)

    return jax.lax.while_loop(lambda s: ~s.done.all(), body, state)

  assert to_the_host(talkative, params, drafter, state)[0]
