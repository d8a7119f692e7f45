"""Locks of files: one holder, and none once it is gone."""

import os
import signal
import subprocess
import sys

import pytest

from specdiff_jax.core import errors
from specdiff_jax.core import files

HOLDER = """
import sys, time
from specdiff_jax.core import files
with files.held(sys.argv[1]):
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
      with files.held(path):
        pass
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=20)
  for _ in range(2):  # and it is free again after it was let go
    with files.held(path):
      pass


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='file.*cannot be written'):
    with files.held(str(tmp_path / 'file' / '.lock')):
      pass


def test_an_alias_has_no_character_that_means_something(tmp_path):
  plain = tmp_path / 'a-b_c.d, e'
  odd = tmp_path / 'run[1]{a,b}*'
  for folder in (plain, odd):
    folder.mkdir()
    (folder / 'here').touch()
  assert files.alias(str(plain)) == str(plain)
  alias = files.alias(str(odd))
  assert not set(alias) & set('[]{}*') and files.alias(str(odd)) == alias
  assert os.listdir(alias) == ['here']
  (odd / 'here').unlink()
  odd.rmdir()
  odd.mkdir()  # another folder of that name has another alias
  assert files.alias(str(odd)) != alias


def test_locks_are_files(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(errors.InputError, match='pipe'):
    with files.held(str(tmp_path / 'pipe')):
      pass


def test_whatever_is_there_is_removed(tmp_path):
  (tmp_path / 'folder' / 'inner').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'kept')
  (tmp_path / 'kept').mkdir()
  os.mkfifo(tmp_path / 'pipe')
  for name in ('folder', 'link', 'pipe', 'nothing'):
    files.remove(str(tmp_path / name))
  assert os.listdir(tmp_path) == ['kept']
