"""Windows of simulated serving: the walk, and training on these alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import training_types
from specdiff_jax.drafters import scores
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import losses as build_losses
from specdiff_jax.training import evaluate
from specdiff_jax.training import objective
from specdiff_jax.training import serving_anchors

ROWS, WINDOWS, GAMMA, VOCAB, WIDTH = 4, 20, 3, 6, 40
KEY = jax.random.key(0)


def settings(**values):
  return fields.typed(values)


def walk(anchors, accepted):
  """The walk of one row in numpy: which anchors are visited."""
  here, due = np.zeros(len(anchors), bool), 0
  for place, anchor in enumerate(anchors):
    if anchor >= due:
      here[place], due = True, anchor + accepted[place] + 1
  return here


def drawn_rows(rng, sizes, stop):
  """Anchors below `stop`, so many for each row, and what they accept."""
  anchors = np.full((len(sizes), WINDOWS), 3, np.int32)
  for row, size in enumerate(sizes):
    anchors[row, :size] = 3 + np.sort(rng.permutation(stop)[:size])
  valid = np.arange(WINDOWS) < np.array(sizes)[:, None]
  accepted = rng.integers(0, 5, anchors.shape).astype(np.int32)
  return anchors, accepted, valid


def test_with_every_anchor_it_is_the_evaluations_walk():
  rng = np.random.default_rng(0)
  visited = jax.jit(serving_anchors.visited)
  for size in (WINDOWS, 7, 1, 0):
    anchors, accepted, valid = drawn_rows(rng, [size] * 3, size)
    found = np.asarray(visited(anchors, accepted, valid))
    assert not found[~valid].any()
    for row in range(3):
      _, calls = evaluate.simulate(accepted[row, :size])
      assert found[row].sum() == calls
      places = np.flatnonzero(found[row])  # s <- s + accepted + 1
      np.testing.assert_array_equal(
        places[1:], (places + accepted[row, places] + 1)[:-1]
      )
    if size == WINDOWS:  # the controls: even anchors, another row's counts
      assert (found != valid).any(-1).all()
      other = visited(anchors, accepted[::-1], valid)
      assert (np.asarray(other) != found).any()


def test_with_fewer_it_goes_on_at_the_next_there_is():
  rng = np.random.default_rng(1)
  sizes = (WINDOWS, 12, 5, 0)
  anchors, accepted, valid = drawn_rows(rng, sizes, 40)
  found = np.asarray(serving_anchors.visited(anchors, accepted, valid))
  for row, size in enumerate(sizes):
    np.testing.assert_array_equal(
      found[row, :size], walk(anchors[row, :size], accepted[row])
    )
    assert found[row, 0] == (size > 0) and not found[row, size:].any()
  apart = 5 * np.arange(WINDOWS, dtype=np.int32)[None]  # accepts at most 4
  assert np.asarray(
    serving_anchors.visited(apart, accepted[:1], valid[:1])
  ).all()


def made_batch():
  """Rows of every anchor, the last of them blank, and short windows."""
  rng = np.random.default_rng(2)
  length = np.array([24, 17, 12, 1], np.int32)
  index = np.arange(WINDOWS, dtype=np.int32)
  valid = index + 3 < length[:, None] - 1
  return training_types.TrainBatch(
    tokens=rng.integers(0, VOCAB, (ROWS, WIDTH)).astype(np.int32),
    length=length,
    prompt_length=np.full(ROWS, 3, np.int32),
    anchors=np.where(valid, index + 3, 3).astype(np.int32),
    anchor_valid=valid,
    record=np.array([5, 0, 7, -1], np.int32),
    features=np.arange(ROWS),  # where `score` finds the rows
  )


def draft(batch, rng):
  """What is in place of a drafter: its states, often right."""
  index = batch.anchors[..., None] + 1 + np.arange(GAMMA)
  target = batch.tokens[np.arange(ROWS)[:, None, None], index]
  states = rng.standard_normal((*target.shape, VOCAB)).astype(np.float32)
  return states + 1.5 * np.eye(VOCAB, dtype=np.float32)[target]


def score(params, view, batch, gamma, shown=None):
  del view, shown
  rows = params['of'][batch.features]
  position = batch.anchors[..., None] + jnp.arange(gamma)
  place = jnp.arange(rows[0, ..., 0].size).reshape(rows.shape[1:3])
  flat = len(rows), -1
  return scores.Predictions(
      rows.reshape(*flat, VOCAB), position.reshape(flat),
      jnp.broadcast_to(place, position.shape),
  )  # fmt: skip


@pytest.fixture(scope='module')
def case():
  """A batch, and the loss and gradient of its windows under a share."""
  batch = made_batch()
  params = {'of': draft(batch, np.random.default_rng(3))}
  eye = jnp.eye(VOCAB)
  view = objective.view({'embed': eye}, np.arange(VOCAB))

  @functools.cache
  def gradient(share, count):
    config = settings(loss='dpace', served=share, accumulate=count)
    function = objective.make_loss(score, build_losses.make(config), GAMMA)
    return jax.jit(jax.value_and_grad(function, has_aux=True))

  def run(share, batch=batch, count=1):
    found = gradient(share, count)(params, view, batch, 4)
    (loss, metrics), slope = found
    return float(loss), jax.device_get(metrics), np.asarray(slope['of'])

  matches = objective.make_matches(score, GAMMA)(params, view, batch)
  accepted = evaluate.accepted_counts(*map(np.asarray, matches))
  visited = np.stack([
      walk(anchors, counts) & valid for anchors, counts, valid in
      zip(batch.anchors, accepted, batch.anchor_valid)
  ])  # fmt: skip
  return batch, visited, run


def test_only_visited_windows_are_trained(case):
  batch, visited, run = case
  loss, metrics, slope = run(1.0)
  trained = np.abs(slope).sum((-1, -2))
  assert (trained[~visited] == 0).all() and (trained[visited] > 0).all()
  assert 0 < visited.sum() < batch.anchor_valid.sum()
  assert metrics['windows'] == visited.sum()
  # It is the loss of a batch that has no other windows.
  alone, alike, _ = run(0.0, batch.replace(anchor_valid=visited))
  assert loss == pytest.approx(alone, rel=1e-6)
  assert metrics['targets'] == alike['targets']
  # The control: all windows.
  even, metrics, slope = run(0.0)
  assert (np.abs(slope).sum((-1, -2)) > 0)[batch.anchor_valid].all()
  assert abs(even - loss) > 1e-2 and metrics['windows'] > visited.sum()


def test_a_part_of_the_rest_stays_wherever_its_row_stands(case):
  batch, visited, run = case
  loss, metrics, slope = run(0.5)
  trained = np.abs(slope).sum((-1, -2)) > 0
  assert trained[visited].all()
  rest = batch.anchor_valid & ~visited
  assert 0 < trained[rest].sum() < rest.sum()
  assert metrics['windows'] == trained.sum()
  order = np.array([2, 3, 0, 1])
  for other in (
    run(0.5, count=2),
    run(0.5, jax.tree.map(lambda x: x[order], batch)),
  ):
    assert other[0] == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(other[2], slope, rtol=1e-5, atol=1e-7)
  # The control: rows that are other records.
  other = run(0.5, batch.replace(record=batch.record + 1))
  assert ((np.abs(other[2]).sum((-1, -2)) > 0) != trained).any()


def test_what_is_shown_of_a_row_goes_with_its_record(case):
  batch, _, _ = case
  loss = build_losses.make(settings(loss='elbo', network={'ngram': 3}))
  params = {'of': draft(batch, np.random.default_rng(3))}
  view = objective.view({'embed': jnp.eye(VOCAB)}, np.arange(VOCAB))
  value = jax.jit(objective.make_loss(score, loss, GAMMA))

  def run(batch):
    loss, metrics = value(params, view, batch, 4)
    return float(loss), float(metrics['masked'])

  order = np.array([2, 3, 0, 1])
  moved = jax.tree.map(lambda x: x[order], batch)
  assert run(moved) == pytest.approx(run(batch), rel=1e-6)
  # The control: rows that are other records.
  assert abs(run(batch.replace(record=batch.record + 1))[0] - run(batch)[0]) > (
    1e-3
  )


def test_no_window_at_all_is_finite(case):
  batch, visited, run = case
  loss, metrics, slope = run(
    1.0, batch.replace(anchor_valid=np.zeros_like(visited))
  )
  assert np.isfinite(loss) and metrics['windows'] == 0 and not slope.any()


def test_the_share_of_what_serving_skips():
  anchors = np.arange(500)[None].astype(np.int32)
  every = np.ones((1, 500, GAMMA), bool)  # accepts 3: visits a fourth

  def kept(share, key=KEY):
    found = serving_anchors.counted(key[None], share, anchors, every, every)
    return np.asarray(found)[0, :, 0]

  assert kept(1.0).sum() == 125 and kept(1.0)[::4].all()
  half = kept(0.5)
  assert half[::4].all() and 150 < half.sum() - 125 < 225  # of 375
  np.testing.assert_array_equal(half, kept(0.5))
  assert (half != kept(0.5, jax.random.key(1))).any()  # of another step


def test_without_it_nothing_is_simulated(case, monkeypatch):
  _, _, run = case

  def refused(*_):
    raise AssertionError('a walk')

  monkeypatch.setattr(serving_anchors, 'counted', refused)
  run(0.0, count=4)  # not compiled before
  with pytest.raises(AssertionError, match='a walk'):
    run(0.5, count=4)


@pytest.mark.parametrize(
  'values, words',
  [
    ({'served': 1.5}, 'served is 1.5.*from 0 to 1'),
    ({'served': 1.0, 'loss': 'elbo'}, 'elbo.*sees a part'),
    ({'served': 0.1, 'loss': 'variable_prefix'}, 'variable_prefix'),
    ({'served': 1.0, 'windows': 1}, 'windows is 1.*Raise'),
  ],
)
def test_what_makes_no_sense_is_refused(values, words):
  with pytest.raises(errors.InputError, match=words):
    build_losses.check(settings(**values))
  build_losses.check(settings(**(values | {'served': 0.0})))  # the control


def test_it_decides_a_run_but_not_those_from_before():
  assert 'served' in settings(served=0.5).deciding('run')
  assert 'served' not in settings(served=0.0).deciding('run')
