"""What a run refuses: another's work directory, settings that do not fit."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import trajectory

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks
from specdiff_jax.data import windows
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import training as build_training
from specdiff_jax.training import distill
from specdiff_jax.training import identity

FACTS = {'loss': 'streak', 'gamma': 4, 'network': {'layers': 1, 'trunk': 8}}


def run(workdir, facts):
  """A run of which only these two are looked at."""
  rest = {field.name: None for field in dataclasses.fields(distill.Run)}
  output = distill.Output(str(workdir), facts)
  return distill.Run(**{**rest, 'output': output})


def test_another_runs_directory_is_refused_with_all_that_differs(tmp_path):
  files.write_json(str(tmp_path / 'run.json'), FACTS)
  other = {'loss': 'ce', 'gamma': 4, 'network': {'layers': 2, 'trunk': 8}}
  with pytest.raises(errors.InputError) as caught:
    run(tmp_path, other).train(lambda *_: None)
  assert "loss was 'streak' and is now 'ce'" in str(caught.value)
  assert 'network.layers was 1 and is now 2' in str(caught.value)
  assert 'gamma' not in str(caught.value) and 'trunk' not in str(caught.value)


def test_other_texts_and_another_start_are_another_run(tmp_path):
  path = str(tmp_path / 'run.json')
  later = {'data': 'a', 'held_out': 'b', 'start': ['c']}
  identity.check_same_run(path, FACTS | later)
  for name in later:
    with pytest.raises(errors.InputError, match=f'{name} was .* is now'):
      identity.check_same_run(path, FACTS | later | {name: 'x'})
  files.write_json(path, FACTS)  # as runs wrote it that did not know of them
  identity.check_same_run(path, FACTS | later)


def test_a_second_run_in_a_directory_is_refused(tmp_path):
  with locks.held(str(tmp_path / '.lock')):
    with pytest.raises(errors.InputError, match='Another process is writing'):
      run(tmp_path, FACTS).train(lambda *_: None)
  assert not (tmp_path / 'run.json').exists()
  # The control: once it is let go, the run begins, and has no mesh to run on.
  with pytest.raises((AttributeError, TypeError)):
    run(tmp_path, FACTS).train(lambda *_: None)
  assert (tmp_path / 'run.json').exists()


@pytest.mark.parametrize(
  'settings, words',
  [
    ({'batch': 3, 'accumulate': 2, 'mesh': (1, 1)}, 'a multiple of 2'),
    ({'mesh': (4096, 1)}, 'does not fit'),
  ],
)
def test_a_batch_that_does_not_divide_is_refused(settings, words):
  config = fields.typed(settings)
  with pytest.raises(errors.InputError, match=words):
    build_training.mesh(config)
  config = config.change(batch=4, mesh=(1, 1))  # the control
  assert build_training.mesh(config).size == 1


@pytest.mark.parametrize(
  'settings, words',
  [
    ({'on_full_disk': 'wait'}, 'on_full_disk.*stop'),
    ({'train_dtype': 'float16'}, 'train_dtype'),
    ({'keep': 0}, 'keep'),
    ({'export': 'first'}, 'export.*best'),
    ({'explosion': -1.0}, 'explosion'),
    ({'explosion': 0.5}, 'explosion'),
    ({'remat': True, 'network': {'kind': 'autoregressive'}}, 'remat'),
    ({'accumulate': 0}, 'accumulate'),
  ],
)
def test_settings_that_no_run_could_work_with(settings, words):
  config = fields.typed(settings)
  with pytest.raises(errors.InputError, match=words):
    build_training.check(config)


def test_a_damaged_run_json_is_said(tmp_path):
  path = tmp_path / 'run.json'
  identity.check_same_run(str(path), FACTS)
  good = path.read_text()
  identity.check_same_run(str(path), FACTS)
  for text in ('{"a": ', '[]', '[' * 5000, good.replace('streak', 'streaj')):
    path.write_text(text)
    said = 'run.json, which tells.*delete'
    with pytest.raises(errors.InputError, match=said):
      identity.check_same_run(str(path), FACTS)
  path.unlink()  # as it advises
  identity.check_same_run(str(path), FACTS)
  assert path.read_text() == good


@pytest.mark.parametrize(
  'settings',
  [
    {'feature_cache': 0, 'loss': 'kl'},
    {'feature_cache': 9, 'loss': 'kl'},
    {'feature_cache': 9, 'loss': 'kl', 'stored_law': True},
  ],
)
def test_the_program_of_shapes_is_what_runs(settings):
  """Without data and values: the very trees, shapes, dtypes and shardings."""
  sizes = {'batch': 2, 'tokens': 24, 'windows': 2, 'gamma': 3, 'mesh': (1, 1)}
  network = {'layers': 1, 'trunk': 8, 'vocab': 40, 'features': (1,)}
  config = fields.typed(sizes | settings | {'network': network})
  checkpoint = presets.random('tiny', 'float32')
  shapes = jax.eval_shape(lambda: checkpoint.params)
  mesh = build_training.mesh(config)
  abstract = build_training.abstract_run(
    config, dataclasses.replace(checkpoint, params=shapes), mesh
  )
  program = abstract.program(top_k=4)
  run = build_training.abstract_run(config, checkpoint, mesh)
  rng = np.random.default_rng(0)
  records = [
    dataclasses.replace(
      trajectory.trajectory(rng.integers(0, 99, 4), rng.integers(0, 99, 9)),
      top_ids=rng.integers(0, 99, (9, 4)),
      top_log_p=np.full((9, 4), -3.0, np.float16),
    )
    for _ in range(4)
  ]
  data = dataclasses.replace(run.data, train=records)
  run = dataclasses.replace(run, data=data)
  state, view, step = run.start()
  batch = run.prepare()(next(iter(windows.batches(records, data.sizes))))
  for told, real in (
    (program.state, state),
    (program.view, view),
    (program.batch, batch),
  ):
    assert jax.tree.structure(told) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(real)):
      assert (a.shape, a.dtype) == (b.shape, b.dtype)
      assert a.sharding.is_equivalent_to(b.sharding, b.ndim)
  given = jax.tree.leaves(program.step.trace(*program[1:]).jaxpr)
  assert str(given) == str(
    jax.tree.leaves(step.trace(state, batch, view).jaxpr)
  )


def test_folders_that_keep_other_numbers_of_tokens(monkeypatch):
  def dataset(recipe, checkpoint, folder):
    del recipe, checkpoint
    return [types.SimpleNamespace(top_ids=np.zeros((3, int(folder))))]

  monkeypatch.setattr(build_training, '_dataset', dataset)
  recipe = fields.typed({'loss': 'kl', 'stored_law': True})
  with pytest.raises(errors.InputError, match=r'store_top_k of \[4, 8\]'):
    build_training._trajectories(recipe, None, ['4', '8'])


def test_texts_of_a_rounded_verifier_are_not_the_verifiers():
  one = presets.random('tiny', 'float32')
  header = {'verifier': one.fingerprint, 'dtype': 'float32'}
  build_training.check_verifier(header, one, 'here')
  with pytest.raises(errors.InputError, match='in here .*rounded to int8'):
    build_training.check_verifier(
      header | {'dtype': 'int8/float32'}, one, 'here'
    )
