"""What small programs for a TPU move does not grow unseen."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

RECORD = json.loads(
  (pathlib.Path(__file__).parent / 'hbm_bytes.json').read_text()
)
MOST = 1.05


def compiler() -> str:
  """Returns the version of the compiler for TPUs; '' if there is none."""
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return ''


def grown(found: dict, before: dict) -> dict[str, float]:
  """Returns the programs that move more than they may, and how much more."""
  ratios = {
    name: found[name] / nbytes
    for name, nbytes in before.items()
    if name != 'libtpu'
  }
  return {name: ratio for name, ratio in ratios.items() if ratio > MOST}


@pytest.mark.skipif(
  compiler() != RECORD['libtpu'],
  reason='the compiler for TPUs of the record is not here '
  f'(pip install libtpu=={RECORD["libtpu"]})',
)
def test_a_cycle_moves_no_more_bytes(root):
  """In a process of its own: the compiler stays in the one that loads it."""
  run = subprocess.run(
    [sys.executable, 'tests/programs/hbm_bytes.py'],
    env=os.environ | {'PYTHONPATH': os.pathsep.join([str(root), *sys.path])},
    cwd=root, capture_output=True, text=True, timeout=1800,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr[-3000:]
  found = json.loads(run.stdout.splitlines()[-1])
  more = grown(found, RECORD)
  assert not more, (
    f'a cycle moves {more} times the HBM bytes that it did: find out why with '
    '`aot`; if it has to, python tests/programs/hbm_bytes.py --update'
  )


def test_growth_is_seen():
  """The control: 6 % are, 4 % are not."""
  before = {'libtpu': '1', 'a': 100, 'b': 100}
  assert grown({'a': 104, 'b': 106}, before) == {'b': 1.06}
  assert set(RECORD) == {'libtpu', 'ar', 'specdiff', 'best_first'}
