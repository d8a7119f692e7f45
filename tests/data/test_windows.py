"""Packed windows: what a batch holds, and that its order is exact."""

import collections
import json

import jax
import numpy as np
import pytest
import trajectory

from specdiff_jax.core import errors
from specdiff_jax.data import overlap
from specdiff_jax.data import prompts
from specdiff_jax.data import windows

CONFIG = windows.WindowConfig(tokens=24, windows=5, gamma=3, batch=4, seed=7)


def made(number, prompt=None, completion=None):
  rng = np.random.default_rng(number)
  prompt = rng.integers(1, 9) if prompt is None else prompt
  completion = rng.integers(2, 30) if completion is None else completion
  return trajectory.trajectory(
      rng.integers(1, 99, prompt), rng.integers(100, 199, completion),
      id=f'{number}', prompt_hash=prompts.text_hash(f'{number}'),
  )  # fmt: skip


SOURCE = [made(number) for number in range(23)]


def take(dataset, count):
  iterator = iter(dataset)
  return [next(iterator) for _ in range(count)]


def equal(one, other):
  assert jax.tree.structure(one[0]) == jax.tree.structure(other[0])
  return len(one) == len(other) and all(
    map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other))
  )


def test_a_batch_holds_what_is_said():
  for batch in take(windows.batches(SOURCE, CONFIG), 20):
    shapes = {
      name: (v.shape, v.dtype.name)
      for name, v in vars(batch).items()
      if v is not None
    }
    told = windows.abstract(CONFIG)
    assert jax.tree.structure(told) == jax.tree.structure(batch)
    assert [(v.shape, v.dtype.name) for v in jax.tree.leaves(told)] == list(
      shapes.values()
    )
    assert shapes == {
      'tokens': ((4, 24), 'int32'),
      'length': ((4,), 'int32'),
      'prompt_length': ((4,), 'int32'),
      'anchors': ((4, 5), 'int32'),
      'anchor_valid': ((4, 5), 'bool'),
      'record': ((4,), 'int32'),
    }
    for row in range(4):
      item = SOURCE[batch.record[row]]
      whole = np.concatenate([item.prompt, item.completion])
      length = min(len(whole), 24)
      assert batch.length[row] == length
      assert batch.prompt_length[row] == len(item.prompt)
      np.testing.assert_array_equal(
        batch.tokens[row], np.pad(whole[:length], (0, 24 - length))
      )
      valid = batch.anchor_valid[row]
      anchors = batch.anchors[row][valid]
      assert len(anchors) == min(5, length - 1 - len(item.prompt)) > 0
      assert (np.diff(anchors) > 0).all()
      assert len(item.prompt) <= anchors[0] and anchors[-1] <= length - 2
      assert (batch.anchors[row][~valid] == len(item.prompt)).all()
      assert (valid[:-1] >= valid[1:]).all()


@pytest.mark.parametrize('completion, length', [(6, 10), (50, 24)])
def test_enough_windows_take_every_anchor_in_order(completion, length):
  config = windows.WindowConfig(tokens=24, windows=30, gamma=3, batch=1)
  [batch] = take(windows.batches([made(0, 4, completion)], config), 1)
  assert batch.length == [length]
  np.testing.assert_array_equal(
    batch.anchors[batch.anchor_valid], np.arange(4, length - 1)
  )


def chi_square(counts):
  expected = sum(counts.values()) / len(counts)
  return sum((n - expected) ** 2 / expected for n in counts.values())


def test_anchors_are_uniform():
  config = windows.WindowConfig(tokens=24, windows=5, gamma=3, batch=8)
  counts = collections.Counter(dict.fromkeys(range(4, 23), 0))
  first = collections.Counter(counts)
  for batch in take(windows.batches([made(0, 4, 20)], config), 250):
    assert batch.anchor_valid.all()
    counts.update(batch.anchors.ravel().tolist())
    first.update(batch.anchors[:, 0].tolist())
  assert len(counts) == 19
  assert chi_square(counts) < 40  # 99.9 % of a chi-square of 18 degrees: 42
  assert chi_square(first) > 400  # the least anchors are not: it can fail


def test_records_without_an_anchor_are_left_out():
  source = [
    made(0, 4, 1),
    made(1, 4, 2),
    made(2, 4, 0),
    made(3, 23, 9),
    made(4, 22, 9),
    made(5, 40, 9),
  ]
  config = windows.WindowConfig(tokens=24, windows=2, gamma=3, batch=1)
  batches = take(windows.batches(source, config), 20)
  assert {int(batch.record[0]) for batch in batches} == {1, 4}
  assert all(batch.anchor_valid[0].sum() == 1 for batch in batches)
  with pytest.raises(errors.InputError, match='None of the 3 trajectories'):
    windows.batches([source[0], source[2], source[5]], config)


def test_an_epoch_holds_every_record_once():
  batches = take(windows.batches(SOURCE, CONFIG), 23)  # four epochs
  records = np.concatenate([batch.record for batch in batches])
  for epoch in np.split(records, 4):
    assert sorted(epoch.tolist()) == list(range(23))
    assert epoch.tolist() != sorted(epoch.tolist())


def test_a_blank_row_has_no_anchor():
  blank = windows.blank(CONFIG)
  assert blank.record == windows.BLANK
  assert not blank.anchor_valid.any() and not blank.tokens.any()
  assert blank.length == blank.prompt_length == 1


def test_epochs_differ_in_order_and_in_anchors():
  batches = take(windows.batches(SOURCE[:20], CONFIG), 10)
  one, two = batches[:5], batches[5:]
  order = [np.concatenate([b.record for b in part]) for part in (one, two)]
  assert sorted(order[0]) == sorted(order[1]) == list(range(20))
  assert (order[0] != order[1]).any()
  anchors = [
    {r: tuple(a) for b in part for r, a in zip(b.record, b.anchors)}
    for part in (one, two)
  ]
  assert anchors[0] != anchors[1]


def test_a_resumed_iterator_is_exact():
  dataset = windows.batches(SOURCE, CONFIG)
  straight = take(dataset, 14)
  for stop in (0, 1, 5, 6, 9):  # over the ends of epochs
    iterator = iter(dataset)
    head = [next(iterator) for _ in range(stop)]
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = iter(windows.batches(SOURCE, CONFIG))
    resumed.set_state(state)
    tail = [next(resumed) for _ in range(14 - stop)]
    assert equal(head + tail, straight)
    if stop:  # negative control: without the state it is another run
      assert not equal(take(dataset, 14 - stop), tail)


def test_the_seed_decides():
  assert equal(
    take(windows.batches(SOURCE, CONFIG), 6),
    take(windows.batches(SOURCE, CONFIG), 6),
  )
  other = windows.WindowConfig(24, 5, 3, 4, seed=8)
  assert not equal(
    take(windows.batches(SOURCE, CONFIG), 6),
    take(windows.batches(SOURCE, other), 6),
  )


@pytest.mark.parametrize('count', [2, 4])
def test_processes_together_see_what_one_would(count):
  def rows(batch):
    return sorted(
      (int(batch.record[i]), tuple(batch.anchors[i].tolist()))
      for i in range(len(batch.record))
    )

  alone = take(windows.batches(SOURCE, CONFIG), 12)
  shares = [
    take(windows.batches(SOURCE, CONFIG, i, count), 12) for i in range(count)
  ]
  for step, batch in enumerate(alone):
    parts = [rows(share[step]) for share in shares]
    assert {len(part) for part in parts} == {4 // count}
    assert sorted(sum(parts, [])) == rows(batch)
    assert sorted(parts[0] * count) != rows(batch)  # equal shares would not do


@pytest.mark.slow
@pytest.mark.parametrize('array', [np.asarray, jax.numpy.asarray])
def test_targets_are_the_tokens_after_the_anchor(array):
  [batch] = take(windows.batches(SOURCE, CONFIG), 1)
  ids, valid = windows.targets(jax.tree.map(array, batch), 3)
  assert ids.shape == valid.shape == (4, 5, 3)
  assert ids.dtype == np.int32 and valid.dtype == bool
  short = 0
  for b, w, j in np.ndindex(4, 5, 3):
    place = batch.anchors[b, w] + 1 + j
    expected = batch.anchor_valid[b, w] and place < batch.length[b]
    assert valid[b, w, j] == expected
    assert ids[b, w, j] == (batch.tokens[b, place] if expected else 0)
    short += not expected
  assert short and bool(valid[batch.anchor_valid][:, 0].all())
  jitted = jax.jit(windows.targets, static_argnums=1)(batch, 3)
  np.testing.assert_array_equal(jitted[0], ids)
  np.testing.assert_array_equal(jitted[1], valid)


def test_the_split_follows_the_text_alone():
  source = [made(number % 200) for number in range(400)]  # each text twice
  train, held_out = windows.split(source, 0.25)
  assert sorted(train.indices + held_out.indices) == list(range(400))
  assert 60 < len(held_out) < 140
  overlap.check_disjoint(windows.hashes(train), windows.hashes(held_out))
  assert train[0] is source[train.indices[0]]
  fewer = windows.split(source[:150], 0.25)[1]
  assert set(fewer.indices) == {i for i in held_out.indices if i < 150}
  assert set(windows.split(source, 0.1)[1].indices) < set(held_out.indices)
  [batch] = take(windows.batches(held_out, CONFIG), 1)
  row = held_out[batch.record[0]]
  np.testing.assert_array_equal(batch.tokens[0, : len(row.prompt)], row.prompt)


@pytest.mark.parametrize('fraction', [0.0, 1.0])
def test_an_empty_side_is_said(fraction):
  with pytest.raises(errors.InputError, match='eval_fraction is'):
    windows.split(SOURCE, fraction)


def test_processes_that_cannot_share_a_batch_are_refused():
  said = 'batch of 4 rows does not divide among 3'
  with pytest.raises(errors.InputError, match=said):
    windows.batches(SOURCE, CONFIG, 0, 3)
