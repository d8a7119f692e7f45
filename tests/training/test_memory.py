"""Saves leave nothing behind, which tensorstore alone would."""

import gc

import jax
import pytest
import tensorstore
import tiny_training

from specdiff_jax.training import checkpoint
from specdiff_jax.training import memory


def lists_left(saved, steps):
  """Returns how many lists more there are for each of these saves."""
  state, _ = tiny_training.start()
  counts = []
  for step in steps:
    state = state.replace(step=jax.numpy.int32(step))
    saved.save(state, tiny_training.batches())
    saved.wait()
    gc.collect()
    counts.append(sum(type(one) is list for one in gc.get_objects()))
  return (counts[-1] - counts[0]) / (len(counts) - 1)


def test_saves_leave_no_objects(tmp_path, monkeypatch):
  saved = checkpoint.Checkpointer(str(tmp_path))
  lists_left(saved, (1, 2))
  assert abs(lists_left(saved, range(3, 7))) < 5
  # The control: what leaks, as it is.
  name = 'experimental_collect_matching_metrics'
  leaking = getattr(tensorstore._tensorstore, name, None)
  if leaking is None:
    pytest.skip('tensorstore keeps it elsewhere')
  monkeypatch.setattr(tensorstore, name, leaking)
  assert lists_left(saved, range(7, 11)) > 5


def test_the_json_of_equal_specs_is_made_once():
  memory.stop_leaks()
  known = tensorstore.KvStore.Spec.to_json.known
  memory.stop_leaks()
  assert tensorstore.KvStore.Spec.to_json.known is known
  for path in ('/a/', '/a/', '/b/'):
    made = {'driver': 'file', 'path': path}
    assert tensorstore.KvStore.Spec(made).to_json() == made
    tensorstore.KvStore.Spec(made).to_json()['path'] = 'changed'
  assert sum("'/a/'" in key for key in known) == 1
  for number in range(50):
    made = {'driver': 'file', 'path': f'/{number}/'}
    tensorstore.KvStore.Spec(made).to_json()
  assert len(known) <= 16
