"""Saves leave nothing behind, which tensorstore alone would."""

import gc
import importlib.metadata

import jax
import pytest
import tensorstore
import tiny_training

from specdiff_jax.training.checkpoint import memory
from specdiff_jax.training.checkpoint import saving


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
  saved = saving.Checkpointer(str(tmp_path))
  lists_left(saved, (1, 2))
  assert abs(lists_left(saved, range(3, 7))) < 5
  # The control: what leaks, as it is.
  name = 'experimental_collect_matching_metrics'
  leaking = getattr(tensorstore._tensorstore, name, None)
  if leaking is None:
    pytest.skip('tensorstore keeps it elsewhere')
  monkeypatch.setattr(tensorstore, name, leaking)
  assert lists_left(saved, range(7, 11)) > 5


@pytest.mark.skipif(not memory.leaks(), reason='this tensorstore is left alone')
def test_the_json_of_equal_specs_is_made_once():
  memory.stop_leaks()
  made = tensorstore.KvStore.Spec.to_json.made
  memory.stop_leaks()
  assert tensorstore.KvStore.Spec.to_json.made is made
  for path in ('/a/', '/a/', '/b/'):
    spec = {'driver': 'file', 'path': path}
    assert tensorstore.KvStore.Spec(spec).to_json() == spec
    tensorstore.KvStore.Spec(spec).to_json()['path'] = 'changed'
  assert sum("'/a/'" in key for key in made) == 1
  for number in range(50):
    spec = {'driver': 'file', 'path': f'/{number}/'}
    tensorstore.KvStore.Spec(spec).to_json()
  assert len(made) <= 16


@pytest.mark.parametrize(
  'version, leaks',
  [('0.1.74', True), ('0.1.86', True), ('0.1.87', False), ('0.2.0', False)],
)
def test_versions_that_do_not_leak_are_left_alone(version, leaks, monkeypatch):
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
  assert memory.leaks() == leaks
