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


@pytest.fixture
def clock(monkeypatch):
  """Time that passes while one sleeps; a list of what the disk shows."""

  class Clock:
    now, shown = 0.0, [{}]

    def lengths(self, workdir):
      return self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]

    def sleep(self, seconds):
      self.now += seconds

  one = Clock()
  monkeypatch.setattr(collecting.time, 'monotonic', lambda: one.now)
  monkeypatch.setattr(collecting.time, 'sleep', one.sleep)
  monkeypatch.setattr(collecting.trajectories, 'lengths', one.lengths)
  monkeypatch.setattr(collecting.processes, 'process_count', lambda: 2)
  return one


def test_what_others_wrote_is_waited_for(clock):
  clock.shown = [{}, {'a': 1}, {'a': 1, 'b': 2}]
  assert collecting._all_there('work', {'a', 'b'}) == {'a': 1, 'b': 2}
  assert 0 < clock.now < 60


def test_a_disk_that_is_not_shared_is_an_error(clock):
  clock.shown = [{'a': 1}]
  with pytest.raises(
    errors.InputError, match='1 of the 2 .* all processes sha'
  ):
    collecting._all_there('work', {'a', 'b'})
  assert 600 < clock.now < 700


def test_one_process_does_not_wait(clock, monkeypatch):
  monkeypatch.setattr(collecting.processes, 'process_count', lambda: 1)
  with pytest.raises(errors.InputError, match='took them away'):
    collecting._all_there('work', {'a'})
  assert clock.now == 0
