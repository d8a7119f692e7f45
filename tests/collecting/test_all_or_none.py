"""Processes that collect together end together, also where one cannot write."""

import pytest

from specdiff_jax.core import errors
from specdiff_jax.recipes import collecting


@pytest.fixture
def meets(monkeypatch):
  """The keys of this process's meetings; set `meets.other` to another's."""

  class Meets(list):
    other = 'done'

    def __call__(self, *, key, timeout_ms):
      self.append(key)
      if key != self.other:
        raise TimeoutError

  meets = Meets()
  monkeypatch.setattr(collecting.saving, 'meeting', lambda: meets)
  return meets


def test_all_are_done(meets):
  with collecting._all_or_none():
    pass
  assert meets == ['done']


def test_the_trouble_of_another_process_is_an_error(meets):
  meets.other = 'failed'
  with pytest.raises(errors.InputError, match='Another process could not'):
    with collecting._all_or_none():
      pass
  assert meets == ['done']


def test_own_trouble_is_said_once_the_others_are_done(meets):
  with pytest.raises(errors.InputError, match='No space left'):
    with collecting._all_or_none():
      raise errors.InputError('No space left')
  assert meets == ['failed']
