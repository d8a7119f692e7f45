"""Damaged headers and JSON: an error that says so, or success; no hang."""

import json
import os
import pathlib
import subprocess
import sys

import gguf
import gguf_writing
import hf_reference
import pytest

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints.gguf import header as gguf_io

HERE = pathlib.Path(__file__).resolve().parent
CASES = 400
JSON_CASES = 50  # of each kind; also run with 400
JSON_KINDS = (
    'LlamaForCausalLM', 'MistralForCausalLM', 'Qwen2ForCausalLM',
    'Qwen3ForCausalLM', 'Gemma3ForCausalLM', 'GPT2LMHeadModel', 'dream',
    'a2d_qwen3', 'llada', 'mdlm', 'dflash', 'index', 'adapter', 'native',
    'drafter',
)  # fmt: skip


def run(program, kind, path, cases, **environment):
  argv = [
    sys.executable,
    str(HERE.parent / 'programs' / program),
    kind,
    str(path),
    str(cases),
  ]
  environment = os.environ | environment
  environment['PYTHONPATH'] = str(HERE.parents[1])
  done = subprocess.run(
    argv, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('kind', ['safetensors', 'gguf', 'quantised'])
def test_damaged_headers(tiny, tmp_path, kind):
  config, params, tokenizer = tiny
  path = tmp_path / f'tiny.{kind}'
  if kind != 'safetensors':
    fields = gguf_writing.metadata(config, tokenizer)
    arrays = gguf_writing.tensors(config, params)
    stored = gguf.GGMLQuantizationType.Q4_0
    stored = stored if kind == 'quantised' else gguf_writing.F32
    gguf_writing.write(path, fields, arrays, stored)
    kind = 'gguf'
    tensors = gguf_io.read_header(str(path)).tensors.values()
    header = min(tensor.offset for tensor in tensors)
  else:
    hf_reference.save(str(path), dict(params_lib.flatten(params)))
    header = 8 + int.from_bytes(path.read_bytes()[:8], 'little')
  program, header = 'fuzz_weights_program.py', str(header)
  told = run(program, kind, path, CASES, HEADER=header)
  assert not told['wrong'], told['wrong'][:5]
  assert told['refused'] > CASES // 2  # most damage is seen
  assert told['read'] + told['refused'] == CASES
  if kind == 'safetensors':
    told = run(program, 'trusting', path, 60, HEADER=header)
    assert any('MemoryError' in one for one in told['wrong']), told


@pytest.mark.slow
def test_damaged_json(tmp_path):
  kinds = ','.join((*JSON_KINDS, 'trusting'))
  told = run('fuzz_json_program.py', kinds, tmp_path, JSON_CASES)
  trusting = told.pop('trusting')
  assert len(trusting['wrong']) > JSON_CASES // 4, trusting
  assert told.keys() == set(JSON_KINDS)
  for kind, outcomes in told.items():
    assert not outcomes['wrong'], (kind, outcomes['wrong'][:5])
    assert outcomes['refused'] > JSON_CASES // 2, kind
    assert outcomes['read'] + outcomes['refused'] == JSON_CASES
