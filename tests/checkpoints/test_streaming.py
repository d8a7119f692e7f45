"""Tensors go one at a time from their file to where they belong."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import hf_reference
import ml_dtypes
import numpy as np
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import placing
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import networks
from specdiff_jax.text import tokenizer as tokenizer_lib

PROGRAM = pathlib.Path(__file__).parents[1] / 'programs' / 'loading_program.py'
LARGE = config_lib.TransformerConfig(  # 57 MB in bfloat16, 16 MB its largest
    vocab_size=16384, width=512, layers=4, heads=8, kv_heads=4, head_dim=64,
    mlp_width=2048, tied_head=False,
)  # fmt: skip


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  """Returns a directory of 57 MB in 3 files."""
  path = str(tmp_path_factory.mktemp('large') / 'model')
  generator = np.random.default_rng(0)
  flat = {
    name: generator.standard_normal(shape, np.float32).astype(
      ml_dtypes.bfloat16
    )
    for name, shape in networks.shapes(LARGE).items()
  }
  tokenizer = tokenizer_lib.Tokenizer.bytes(300)
  params = params_lib.nest(flat)
  hf_reference.write_directory(path, LARGE, params, tokenizer, shards=3)
  return path, params_lib.fingerprint(LARGE, params)


def run(folder, how, block=1 << 18):
  argv = [sys.executable, str(PROGRAM), folder, how, str(block)]
  environment = os.environ | {'JAX_NUM_CPU_DEVICES': '8'}
  done = subprocess.run(
    argv, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def allowed(told):
  return told['shards'] + 1.3 * told['largest']


@pytest.mark.slow
def test_eight_devices_hold_their_shards_and_little_more(large):
  told = run(large[0], 'STREAM')
  assert not told['wrong'] and told['shardings_kept']
  assert told['fingerprint'] == large[1]
  assert told['query'] == [128, 512] and told['down'] == [512, 512]
  assert told['progress'] == [told['total'] // 2] * 2
  assert told['dtypes'] == ['bfloat16']
  assert told['peak'] <= allowed(told), told
  naive = run(large[0], 'NAIVE')  # the whole model, then its shards
  assert not naive['wrong']
  assert naive['peak'] > allowed(naive), naive


def test_only_rows_that_are_held_are_read():
  array = np.arange(40.0).reshape(10, 4)
  asked = []

  class Counting(stored.InMemory):
    def blocks(self, first=0, last=None):
      asked.append((first, last))
      yield from ((i, self.array[i : i + 1]) for i in range(first, last))

  pieces = {
    ((2, 4), (0, 2)): np.zeros((2, 2)),
    ((2, 4), (2, 4)): np.zeros((2, 2)),
    ((4, 5), (0, 4)): np.zeros((1, 4)),
    ((8, 10), (1, 3)): np.zeros((2, 2)),
  }
  placing._fill(Counting(array), pieces)
  assert asked == [(2, 5), (8, 10)]
  for (rows, columns), piece in pieces.items():
    np.testing.assert_array_equal(piece, array[slice(*rows), slice(*columns)])


@pytest.fixture
def in_file(tmp_path, monkeypatch):
  """Returns an array and its tensor in a file, read in blocks of 3 rows."""
  array = np.random.default_rng(0).standard_normal((11, 5)).astype('f4')
  path = str(tmp_path / 'x.safetensors')
  hf_reference.save(path, {'before': np.ones(7, 'f4'), 'a.b': array})
  monkeypatch.setattr(stored, 'BLOCK', 3 * 5 * 4)
  return array, safetensors_io.tensors(path)['a.b']


def forms(array, tensor):
  yield tensor
  yield stored.InMemory(array)
  yield stored.Derived(tensor, lambda row, rows: rows)
  yield stored.Deferred(array.shape, array.dtype, lambda: array)
  yield stored.transposed(stored.InMemory(np.ascontiguousarray(array.T)))
  yield stored.Tapped(tensor, 4)


def test_every_form_of_tensor_reads_alike(in_file):
  array, tensor = in_file
  for one in forms(array, tensor):
    assert one.shape == array.shape and one.dtype == array.dtype
    np.testing.assert_array_equal(stored.read(one), array)
    for stride in (1, 4, 7, 100):
      np.testing.assert_array_equal(
        one.sample(stride), array.reshape(-1)[::stride], err_msg=str(one)
      )
    parts = [rows for _, rows in one.blocks(2, 9)]
    np.testing.assert_array_equal(np.concatenate(parts), array[2:9])
  assert len(list(tensor.blocks())) == 4
  shifted = stored.Derived(tensor, lambda row, rows: rows + row)
  assert stored.read(shifted)[10, 0] == array[10, 0] + 9  # its block's first


def test_a_tapped_tensor_is_read_once(in_file):
  array, tensor = in_file
  reads = []

  def count(row, rows):
    reads.append(row)
    return rows

  tapped = stored.Tapped(stored.Derived(tensor, count), 4)
  stored.read(tapped)
  np.testing.assert_array_equal(tapped.sample(4), array.reshape(-1)[::4])
  assert reads == [0, 3, 6, 9]
  half = stored.Tapped(stored.Derived(tensor, count), 4)
  list(half.blocks(0, 5))  # the rest never goes by
  np.testing.assert_array_equal(half.sample(4), array.reshape(-1)[::4])


def test_a_file_that_shrinks_while_it_is_read(in_file):
  _, tensor = in_file
  with open(tensor.path, 'r+b') as file:
    file.truncate(tensor.offset + 100)
  with pytest.raises(errors.InputError, match="ends within tensor 'a.b'"):
    stored.read(tensor)
  with pytest.raises(errors.InputError, match="ends within tensor 'a.b'"):
    tensor.sample(30)
  moved = dataclasses.replace(tensor, path=tensor.path + '.gone')
  with pytest.raises((errors.InputError, FileNotFoundError)):
    stored.read(moved)


def test_writing_streams_and_the_library_reads_it(in_file, tmp_path):
  from safetensors import numpy as safetensors_numpy

  array, tensor = in_file
  odd = np.array([3], np.int8)
  entries = {
    'odd': (stored.InMemory(odd), np.int8),
    'half': (tensor, ml_dtypes.bfloat16),
    'same': (tensor, np.float32),
    'none': (stored.InMemory(np.zeros((0, 3), 'f4')), np.float32),
    'scalar': (stored.InMemory(np.array(2.5)), np.float64),
  }
  path = str(tmp_path / 'y.safetensors')
  written = sum(safetensors_io.write(path, entries, {'a': 'b'}))
  assert written == 1 + 110 + 220 + 8
  got = safetensors_numpy.load_file(path)
  np.testing.assert_array_equal(got['same'], array)
  np.testing.assert_array_equal(got['half'], array.astype(ml_dtypes.bfloat16))
  assert got['odd'] == odd and got['scalar'] == 2.5
  assert got['none'].shape == (0, 3)
  assert safetensors_io.metadata(path) == {'a': 'b'}
