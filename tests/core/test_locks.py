"""Locks of files: one holder, and none once it is gone."""

import os
import signal
import subprocess
import sys

import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import locks

HOLDER = """
import sys, time
from specdiff_jax.core import locks
with locks.held(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def test_a_killed_process_lets_go(tmp_path, root):
  path = str(tmp_path / 'run' / '.lock')
  holder = subprocess.Popen(
      [sys.executable, '-c', HOLDER, path],
      stdout=subprocess.PIPE, text=True, cwd=root,
      env=os.environ | {'PYTHONPATH': str(root)},
  )  # fmt: skip
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(errors.InputError, match='Another process.*lock'):
      with locks.held(path):
        pass
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=20)
  for _ in range(2):  # and it is free again after it was let go
    with locks.held(path):
      pass


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='file.*cannot be written'):
    with locks.held(str(tmp_path / 'file' / '.lock')):
      pass


def test_locks_are_files(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(errors.InputError, match='pipe'):
    with locks.held(str(tmp_path / 'pipe')):
      pass
