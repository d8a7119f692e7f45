"""A short soak; `benchmarks/soak.py 1200 WORKDIR` is the long one."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'soak.py'


@pytest.mark.parametrize('leak', [[], ['leak']])
def test_memory_and_compilations_stand_still(tmp_path, leak):
  argv = [sys.executable, str(PROGRAM), '6', str(tmp_path), *leak]
  done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-3000:]
  told = json.loads(done.stdout.splitlines()[-1])
  assert told['steps'] > 50 and told['compilations'] == 0, told
  # In seconds allocators do not settle: the long soak says 1 %.
  assert (told['growth'] > 0.1) == bool(leak), told
