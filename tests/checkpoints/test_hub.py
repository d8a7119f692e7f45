"""The hub's cache on disk is used without network, if it is whole."""

import importlib
import os

import hf_reference
import huggingface_hub
from huggingface_hub import constants
import pytest

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.tools.inspect import describe


@pytest.fixture
def snapshot(tiny, tmp_path, monkeypatch):
  """Returns org/name's snapshot in a cache, with no hub to ask."""

  def offline(*args, **kwargs):
    raise OSError('no network')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  root = tmp_path / 'hub' / 'models--org--name'
  path = root / 'snapshots' / 'abc123'
  hf_reference.write_directory(str(path), *tiny, shards=2)
  (root / 'refs').mkdir()
  (root / 'refs' / 'main').write_text('abc123')
  return path


def test_a_whole_snapshot_is_loaded_without_network(snapshot, tiny):
  loaded = weights.load('org/name', 'float32')
  assert loaded.source == 'org/name' and loaded.config == tiny[0]
  assert loaded.fingerprint == params_lib.fingerprint(*tiny[:2])
  assert hub.folder('org/name') == str(snapshot)


def test_describing_downloads_nothing(snapshot, monkeypatch):
  assert describe.describe('org/name')['family'] == 'LlamaForCausalLM'
  monkeypatch.setattr(hub, '_download', None)  # it would fail
  with pytest.raises(errors.InputError, match='org/other.*downloads nothing'):
    describe.describe('org/other')


@pytest.mark.parametrize(
  'gone', ['config.json', 'model-00002-of-00002.safetensors']
)
def test_a_torn_snapshot_is_not(snapshot, gone):
  os.remove(snapshot / gone)
  with pytest.raises(errors.InputError, match="hub's cache .*no network"):
    weights.load('org/name', 'float32')


def test_a_vocabulary_without_its_merges_is_not_whole(snapshot):
  os.remove(snapshot / 'tokenizer.json')
  assert hub.cached('org/name') == str(snapshot)  # as of a drafter
  (snapshot / 'vocab.json').write_text('{}')
  assert hub.cached('org/name') == ''
  (snapshot / 'merges.txt').write_text('')
  assert hub.cached('org/name') == str(snapshot)


def test_refs_point_nowhere_else(snapshot, tmp_path):
  refs = snapshot.parent.parent / 'refs' / 'main'
  for commit in ('', '../../elsewhere', 'other'):
    refs.write_text(commit)
    assert hub.cached('org/name') == ''
  os.remove(refs)  # a cache that was filled by commit
  assert hub.cached('org/name') == str(snapshot)


def test_a_cache_that_was_filled_by_commit(snapshot, tiny):
  root = snapshot.parent.parent
  (root / 'refs' / 'main').unlink()
  assert hub.cached('org/name') == str(snapshot)
  (root / 'refs' / 'v1').write_text('abc123')
  for name in ('org/name', 'org/name@v1', 'org/name@abc123'):
    assert weights.load(name, 'float32').config == tiny[0]
  assert hub.cached('org/name@v2') == ''
  other = root / 'snapshots' / 'def456'
  hf_reference.write_directory(str(other), *tiny)
  assert hub.cached('org/name@def456') == str(other)
  with pytest.raises(errors.InputError, match='2 snap.*@abc123: abc123, def4'):
    weights.load('org/name', 'float32')
  (other / 'config.json').unlink()  # torn
  assert hub.cached('org/name') == str(snapshot)


def test_links_out_of_the_cache_are_refused(snapshot, tmp_path):
  blobs = snapshot.parent.parent / 'blobs'
  blobs.mkdir()
  (snapshot / 'tokenizer.json').rename(blobs / 'hash')
  (snapshot / 'tokenizer.json').symlink_to('../../blobs/hash')
  assert hub.cached('org/name') == str(snapshot)  # as the hub lays it out
  (blobs / 'hash').rename(tmp_path / 'secret')
  (snapshot / 'tokenizer.json').unlink()
  (snapshot / 'tokenizer.json').symlink_to(tmp_path / 'secret')
  with pytest.raises(errors.InputError, match='tokenizer.json.*is a link to'):
    weights.load('org/name', 'float32')


def test_where_the_cache_is(monkeypatch):
  names = ('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME')
  with monkeypatch.context() as environment:
    for name in names:
      environment.delenv(name, raising=False)
    for name, value, place in (
      ('XDG_CACHE_HOME', '/x', '/x/huggingface/hub'),
      ('HF_HOME', '/y', '/y/hub'),
      ('HUGGINGFACE_HUB_CACHE', '/old', '/old'),
      ('HF_HUB_CACHE', '/z', '/z'),
    ):
      environment.setenv(name, value)
      importlib.reload(constants)
      assert hub.cache_dir() == place
  importlib.reload(constants)
