"""Readings of the verifier that stay on disk for later runs."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from specdiff_jax.checkpoints import presets
from specdiff_jax.core import files as files_lib
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.models import networks
from specdiff_jax.training import feature_store
from specdiff_jax.training import features

LAYERS = (0, 2)


def batch(seed=0):
  rng = np.random.default_rng(seed)
  length = np.array([9, 5, 0], np.int32)
  tokens = rng.integers(1, 60, (3, 12)).astype(np.int32)
  tokens *= np.arange(12) < length[:, None]
  none = np.zeros((3, 0), np.int32)
  return training_types.TrainBatch(
    tokens, length, length // 2, none, none.astype(bool),
    np.array([4, 7, windows.BLANK], np.int32),
  )  # fmt: skip


@pytest.fixture(scope='module')
def verifier():
  return presets.random('tiny', 'float32')


@pytest.fixture
def reader(verifier, tmp_path):
  """Returns a function that makes what adds readings, with an empty memory."""
  said = []

  def make(folder=tmp_path / 'store', limit=9, key=('one',)):
    store = feature_store.Store(str(folder), key, said.append)
    made = features.Features(
      networks.network(verifier.config), verifier.params, LAYERS, limit, 1.0,
      store=store,
    )  # fmt: skip
    return made

  make.said = said
  return make


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize('limit', (9, 0))
def test_a_later_run_computes_nothing(reader, monkeypatch, limit):
  wanted = reader()(batch())
  assert wanted.features.shape[2] == 2 and wanted.distribution is not None
  monkeypatch.setattr(features, 'forward', None)
  found = reader(limit=limit)(batch())
  # Padding aside, which is computed too where a batch is read at first.
  for row, size in enumerate(batch().length):
    cut = lambda x, row=row, size=size: np.asarray(x)[row, :size]
    same(jax.tree.map(cut, found.features), jax.tree.map(cut, wanted.features))
    same(
      jax.tree.map(cut, found.distribution),
      jax.tree.map(cut, wanted.distribution),
    )


def test_other_texts_and_settings_are_computed(reader, monkeypatch):
  reader()(batch())
  monkeypatch.setattr(features, 'forward', None)
  for one, other in ((reader(), 1), (reader(key=('two',)), 0)):
    with pytest.raises(TypeError):  # forward is called
      one(batch(other))


def test_a_damaged_file_is_computed_again(reader, tmp_path):
  wanted = reader()(batch())
  (folder,) = (tmp_path / 'store').iterdir()
  files = sorted(folder.iterdir())
  assert len(files) == 2  # a blank row has none
  for path in files:
    whole = path.read_bytes()
    for cut in (b'', whole[: len(whole) // 2], whole[:-1], b'x' * 99):
      path.write_bytes(cut)
      same(reader()(batch()), wanted)
      assert path.read_bytes() == whole  # and mended


def test_another_run_that_writes_the_same_is_no_trouble(
  reader, tmp_path, monkeypatch
):
  real = files_lib.put

  def late(draft, path):
    shutil.copy(draft, path)  # the other one's
    real(draft, path)

  with monkeypatch.context() as patched:
    patched.setattr(files_lib, 'put', late)
    wanted = reader()(batch())
  assert not reader.said
  monkeypatch.setattr(features, 'forward', None)
  found = reader()(batch())
  cut = lambda x: np.asarray(x.features)[1, :5]
  same(cut(found), cut(wanted))


@pytest.mark.skipif(os.name != 'posix', reason='a file in place of a folder')
def test_what_cannot_be_written_is_said_once(reader, tmp_path):
  (tmp_path / 'file').write_text('')
  one = reader(folder=tmp_path / 'file')
  wanted = reader()(batch())
  same(one(batch()), wanted)
  same(dataclasses.replace(one, kept={})(batch()), wanted)
  assert len(reader.said) == 1 and 'features cannot be kept' in reader.said[0]


def test_flipped_bits_are_no_traceback(tmp_path):
  store = feature_store.Store(str(tmp_path), ('a',), lambda _: None)
  tokens, wanted = np.arange(3), {'features': np.ones((3, 2), np.float32)}
  store.put(tokens, wanted)
  same(store.get(tokens), wanted)
  (path,) = tmp_path.glob('*/*')
  good = path.read_bytes()
  for bit in range(0, 8 * len(good), 3):
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    found = store.get(tokens)
    assert found is None or found.keys() == wanted.keys()
