"""Damaged headers: an error that says so, or success; no crash, no hang."""

import json
import os
import pathlib
import subprocess
import sys

import gguf_writing
import hf_reference
import pytest

from specdiff_jax.formats import gguf_io
from specdiff_jax.formats import params as params_lib

PROGRAM = pathlib.Path(__file__).parent / 'fuzz_program.py'
CASES = 400


def run(kind, path, header, cases=CASES):
  argv = [sys.executable, str(PROGRAM), kind, str(path), str(cases)]
  environment = os.environ | {'HEADER': str(header)}
  done = subprocess.run(
      argv, env=environment, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('kind', ['safetensors', 'gguf'])
def test_damaged_headers(tiny, tmp_path, kind):
  config, params, tokenizer = tiny
  path = tmp_path / f'tiny.{kind}'
  if kind == 'gguf':
    fields = gguf_writing.metadata(config, tokenizer)
    gguf_writing.write(path, fields, gguf_writing.tensors(config, params))
    tensors = gguf_io.read_header(str(path)).tensors.values()
    header = min(tensor.offset for tensor in tensors)
  else:
    hf_reference.save(str(path), dict(params_lib.flatten(params)))
    header = 8 + int.from_bytes(path.read_bytes()[:8], 'little')
  told = run(kind, path, header)
  assert not told['wrong'], told['wrong'][:5]
  assert told['refused'] > CASES // 2  # most damage is seen
  assert told['read'] + told['refused'] == CASES
  if kind == 'safetensors':
    wrong = run('trusting', path, header, 60)['wrong']
    assert any('MemoryError' in one for one in wrong), wrong
