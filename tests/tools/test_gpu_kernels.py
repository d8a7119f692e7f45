"""The kernels of a decode cycle, compiled for an H100, do not become more."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# Of three layers, at 1 and at 5 tokens a cycle, and with a drafter's. Lower them
# where a program has fewer.
MOST = {
  '': {'ar': 69, 'lookup': 75, 'specdiff': 141},
  '--kernel': {'specdiff': 104, 'specdiff2': 120},
}


@pytest.mark.slow
@pytest.mark.parametrize('form', MOST)
@pytest.mark.skipif(
  not any(importlib.util.find_spec(f'jax_cuda{v}_plugin') for v in (12, 13)),
  reason='the compiler for GPUs is not installed (specdiff_jax[cuda12])',
)
def test_a_cycle_has_no_more_kernels(root, form):
  most = MOST[form]
  run = subprocess.run(
    [
      *(sys.executable, 'benchmarks/gpu_kernels.py', '--small', '--list'),
      *filter(None, [form]),
      *most,
    ],
    env=os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'},
    cwd=root,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  found = json.loads(run.stdout.splitlines()[-1])
  more = {name: n for name, n in found.items() if n > most[name]}
  assert not more, (most, run.stdout)
