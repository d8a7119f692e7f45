"""A meeting: no process waits for one that has given up."""

import collections
import threading
import time

import pytest

from specdiff_jax.parallel import processes


def together(*keys_of_each):
  """Lets threads call a meeting with their keys; returns what each was told."""
  barriers = collections.defaultdict(
    lambda: threading.Barrier(len(keys_of_each))
  )
  lock, told = threading.Lock(), [[] for _ in keys_of_each]

  def barrier(*, key, timeout_ms):
    with lock:
      own = barriers[key.split('_', 2)[2]]  # without the meeting's number
    own.wait(timeout_ms / 1000)

  def run(keys, outcomes):
    meeting = processes.Meeting(barrier)
    for key in keys:
      try:
        meeting(key=key, timeout_ms=60000)
        outcomes.append('met')
      except (threading.BrokenBarrierError, TimeoutError):
        outcomes.append('gave up')

  threads = [
    threading.Thread(target=run, args=both)
    for both in zip(keys_of_each, told, strict=True)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return told


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(processes, '_HERE_BY_NOW', 0.1)


def test_processes_with_equal_keys_meet():
  assert together('abc', 'abc', 'abc') == [['met'] * 3] * 3


def test_one_that_has_given_up_is_not_waited_for():
  """It skips 'b', as where its part could not be written."""
  start = time.monotonic()
  told = together('abcd', 'acd', 'abcd')
  assert time.monotonic() - start < 10
  gave_up = ['gave up'] * 3
  assert told == [['met', *gave_up], ['met', *gave_up[1:]], ['met', *gave_up]]
