"""Paths without special characters; removal of whatever lies at a path."""

import os

import pytest

from specdiff_jax.core import files


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


def test_whatever_is_there_is_removed(tmp_path):
  (tmp_path / 'folder' / 'inner').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'kept')
  (tmp_path / 'kept').mkdir()
  os.mkfifo(tmp_path / 'pipe')
  for name in ('folder', 'link', 'pipe', 'nothing'):
    files.remove(str(tmp_path / name))
  assert os.listdir(tmp_path) == ['kept']


def test_two_writers_at_once_publish_their_own(tmp_path):
  path = tmp_path / 'out'
  with files.whole(str(path)) as one:
    one.write(b'one')
    with files.whole(str(path)) as two:
      two.write(b'the other')
      assert not path.exists()
    assert path.read_bytes() == b'the other'
  assert path.read_bytes() == b'one'
  with pytest.raises(ZeroDivisionError):
    with files.whole(str(path)) as three:
      three.write(b'half')
      raise ZeroDivisionError
  assert [one.name for one in tmp_path.iterdir()] == ['out']
  assert path.read_bytes() == b'one'
