"""The same training on every mesh; eight devices in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

CLOSE = 2e-5


@pytest.fixture(scope='module')
def outcome(tmp_path_factory, root):
  """What `meshes_program` says."""
  program = pathlib.Path(__file__).parents[1] / 'programs' / 'meshes_program.py'
  done = subprocess.run(
      [sys.executable, str(program), str(tmp_path_factory.mktemp('meshes'))],
      env=os.environ | {
          'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
          'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'PYTHONPATH': str(root),
      },
      capture_output=True, text=True, timeout=500, cwd=root,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_training_is_the_same_on_every_mesh(outcome):
  """With features that are kept, and with the verifier in the step."""
  assert len(outcome['cases']) == 4
  for name, case in outcome['cases'].items():
    for what in ('gradient', 'loss', 'params'):
      assert case[what] <= CLOSE, (name, what)
    assert case['compiled'] == 1, name
  for name, error in outcome['controls'].items():
    assert error > 100 * CLOSE, name


def test_params_are_split(outcome):
  """Matrices are [64, 64]: a drafter's queries, a verifier's outputs.

  They are split by heads, and by the other axis too for FSDP.
  """
  shapes = {
    name: (case['query'], case['verifier'])
    for name, case in outcome['cases'].items()
  }
  assert shapes == {
    '(1, 1) cached': ([64, 64], None),
    '(8, 1) cached': ([64, 64], None),
    '(4, 2) online': ([32, 64], [64, 32]),
    '(2, 2, 2) fsdp': ([32, 32], [32, 32]),
  }


def test_a_checkpoint_of_one_mesh_goes_on_on_another(outcome):
  restored = outcome['restored']  # (4, 2) to (8, 1)
  assert restored['placed']
  assert restored['losses'] <= CLOSE and restored['params'] <= CLOSE
  assert restored['control'] > 100 * CLOSE


def test_what_eight_devices_refuse(outcome):
  divisor, few, many, three, rows, sliced = outcome['refused']
  assert 'data=3' in divisor and 'divisor of 8' in divisor
  assert 'data=3, model=2' in few and 'divisor of 8' in few
  assert 'data=4, model=4' in many and 'divisor of 8' in many
  assert 'replica=2, data=2, model=4' in three
  assert '6 rows' in rows and 'axis of 8' in rows
  assert '6 rows' in sliced and 'axis of 4' in sliced
