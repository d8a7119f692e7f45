"""Refresh: the anchors where a drafter fails, and requests from there."""

import numpy as np
import trajectory

from specdiff_jax.collecting import refresh
from specdiff_jax.data import windows
from specdiff_jax.training import every_anchor


def record(prompt=3, completion=8):
  return trajectory.trajectory(
    np.arange(prompt), np.arange(20, 20 + completion)
  )


def test_only_what_serving_visits_counts():
  accepted = [2, 9, 9, 0, 1, 9, 0]
  assert refresh.failing(accepted, most=1, limit=9) == [3, 4, 6]
  assert refresh.failing(accepted, most=0, limit=9) == [3, 6]
  assert refresh.failing(accepted, most=9, limit=9) == [0, 3, 4, 6]
  # The control: another path through the same text.
  assert refresh.failing([0, *accepted[1:]], most=0, limit=9) == [0]
  assert refresh.failing([], most=1, limit=9) == []


def test_the_shortest_come_first_and_equals_are_spread():
  accepted = [0, 0, 1, 9, 0, 0, 0, 0]
  assert refresh.failing(accepted, most=1, limit=9) == [0, 1, 2, 4, 5, 6, 7]
  assert refresh.failing(accepted, most=1, limit=3) == [0, 4, 6]
  assert refresh.failing(accepted, most=1, limit=6) == [0, 1, 4, 5, 6, 7]


def test_a_window_of_the_new_trajectory_begins_at_the_anchor():
  item = record()
  found = refresh.requests(item, [0, 4], completions=2, max_prompt=99)
  assert [r.id for r in found] == ['a@0', 'a@0#2', 'a@4', 'a@4#2']
  whole = np.concatenate([item.prompt, item.completion])
  for request, anchor in zip(found, (0, 0, 4, 4), strict=True):
    assert request.prompt == whole[: 3 + anchor + 1].tolist()
    assert request.given == 1 and request.prompt_hash == item.prompt_hash
  assert [r.id for r in refresh.requests(item, [0, 4], 1, 4)] == ['a@0']


def test_counts_of_all_anchors_in_order():
  """Two records whose anchors fill several rows, the windows of a toy."""
  source = [record(3, 9), record(5, 4)]
  sizes = windows.WindowConfig(tokens=16, windows=3, gamma=2, batch=2)

  def matches(batch):  # slot 1 fits at even places, slot 2 always
    _, valid = windows.targets(batch, 2)
    first = batch.anchors % 2 == 0
    match = np.stack([first, np.ones_like(first)], axis=-1)
    return match & valid, valid

  found = refresh.accepted_counts(
    matches, every_anchor.batches(source, sizes), 2
  )
  # Anchors 3..10 and 5..7; the last one has one target only.
  assert [counts.tolist() for counts in found] == [
    [0, 2, 0, 2, 0, 2, 0, 1],
    [0, 2, 0],
  ]
