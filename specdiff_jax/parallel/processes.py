"""Processes: starting them, and making global batches of local ones."""

from collections.abc import Callable
import functools
import itertools
import os
import socket
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.parallel import rules

_LONGEST = 4096  # bytes of a message that goes to all processes
_HERE_BY_NOW = 10  # seconds after which one of a meeting has another key
_numbers = itertools.count()  # of meetings, the same in all processes


def initialize(distributed: bool, timeout: int = 300) -> None:
  """Joins the other processes; call it before anything touches a device.

  Does nothing unless `distributed`. On TPU pods and under Slurm jax finds
  the coordinator by itself; elsewhere JAX_COORDINATOR_ADDRESS, with
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, names it.

  Raises:
    InputError: If the coordinator, or another process, is not there after
      `timeout` seconds.
  """
  if not distributed:
    return
  address = os.environ.get('JAX_COORDINATOR_ADDRESS', '')
  try:
    if address and _number('JAX_PROCESS_ID'):
      _reach(address, timeout)
    _join(timeout)
  except errors.InputError:  # is a ValueError too
    raise
  except (RuntimeError, ValueError) as error:  # a port that is no number too
    raise errors.InputError(
      f'distributed: the processes did not join within {timeout} seconds '
      f'({printing.error(error)}). Start every process with a reachable '
      'coordinator (under Slurm or on a TPU pod it is found; elsewhere set '
      'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), '
      'raise config.join_timeout, or run without config.distributed.'
    ) from error


def process_index() -> int:
  """Returns this process's number."""
  return jax.process_index()


def process_count() -> int:
  """Returns how many processes there are."""
  return jax.process_count()


def is_first() -> bool:
  """Returns whether this process writes logs and files for all."""
  return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> None:
  """Runs an action in the first process; its InputError is raised in all."""
  together(action if is_first() else lambda: None)


def together(action: Callable[[], Any]) -> Any:
  """Runs an action in each process; an exception of one is raised in all.

  All processes must call it: those that went on alone would wait for the
  others without end. Returns what the action returns in this process. What is
  no InputError is raised as it is where it happened, elsewhere as one.
  """
  if process_count() == 1:
    return action()
  text, found, failure = np.zeros(_LONGEST, np.uint8), None, None
  try:
    found = action()
  except Exception as error:
    if not isinstance(error, errors.InputError):
      failure = error
    said = (str(error) or type(error).__name__).encode(
      errors='backslashreplace'
    )[:_LONGEST]
    said = np.frombuffer(said, np.uint8)
    text[: len(said)] = said
  rows = multihost_utils.process_allgather(text).astype(np.uint8)
  texts = [row.tobytes().rstrip(b'\0').decode(errors='replace') for row in rows]
  said = list(dict.fromkeys(filter(None, texts)))
  if failure is not None:
    raise failure
  if said:
    raise errors.InputError('; in another process: '.join(said[:3]))
  return found


class Meeting:
  """Lets processes wait for each other, but not for one that has given up.

  A barrier, called with a key before each part of common work. A process that
  fails goes on to another part, and so comes with another key: then all of them
  get an error, in seconds, at this meeting and at every later one. All
  processes must make and call their meetings in the same order.

  Args:
    barrier: `(key=..., timeout_ms=...)`: returns once all processes have come
      to that key, and raises an error after that time.

  Example:
    meeting = Meeting(barrier)
    write_own_part()
    meeting(key='written', timeout_ms=60000)
  """

  def __init__(self, barrier: Callable[..., None]):
    self._barrier = barrier
    self._name = f'meeting_{next(_numbers)}'
    self._count = 0
    self._broken = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    if self._broken:
      raise TimeoutError('another process gave up before')
    self._count += 1
    place = f'{self._name}_{self._count}'
    soon = min(timeout_ms, 1000 * _HERE_BY_NOW)
    try:
      self._barrier(key=place, timeout_ms=timeout_ms)
      self._barrier(key=f'{place}_{key}', timeout_ms=soon)
    except Exception:
      self._broken = True
      raise


def whole(array: Any) -> np.ndarray:
  """Returns all values of an array, wherever they are.

  All processes must call it for an array that none of them holds whole.
  """
  if isinstance(array, jax.Array) and not (
    array.is_fully_addressable or array.is_fully_replicated
  ):
    assert isinstance(array.sharding, jax.sharding.NamedSharding)
    array = _spread(rules.replicated(array.sharding.mesh))(array)
  return np.asarray(array)


@functools.cache  # one program for all arrays of a shape
def _spread(sharding: jax.sharding.Sharding) -> Callable[[Any], jax.Array]:
  return jax.jit(lambda x: x, out_shardings=sharding)


def row_share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Returns (index, count): which part of a batch's rows is this process's.

  Processes that hold parts of the same rows, as where tensors are split over
  several of them, have the same index.

  Raises:
    InputError: If the mesh gives a process rows that are no such part.
  """
  ways = rules.row_ways(mesh)
  places = rules.by_row(mesh).addressable_devices_indices_map((ways,))
  held = sorted({i[0].indices(ways)[0] for i in places.values() if i})
  size = len(held)
  if ways % size or held[0] % size or held[-1] - held[0] != size - 1:
    raise errors.InputError(
      f'mesh: of {ways} parts of a batch this process holds {held}, which '
      'are not neighbours. Make the number of processes a divisor of the '
      'data axis, or each data axis a divisor of it.'
    )
  return held[0] // size, ways // size


def global_batch(mesh: jax.sharding.Mesh, local: Any) -> Any:
  """Returns arrays split by row over the mesh, from each process's rows.

  Args:
    mesh: The mesh; its axes of rows must divide the global batch.
    local: A tree of numpy arrays [rows of `row_share`, ...].

  Raises:
    InputError: If the rows do not divide over the mesh.
  """
  sharding = rules.by_row(mesh)
  ways, (_, count) = rules.row_ways(mesh), row_share(mesh)

  def place(leaf):
    leaf = np.asarray(leaf)
    check_rows(leaf.shape[0] * count, ways)
    return jax.make_array_from_process_local_data(sharding, leaf)

  return jax.tree.map(place, local)


def check_rows(rows: int, ways: int) -> None:
  """Raises InputError unless `rows` divide over `ways` devices."""
  if rows % ways:
    raise errors.InputError(
      f'batch: {rows} rows do not divide over a data axis of {ways}. Make '
      f'the batch a multiple of {ways}, or the data axis smaller.'
    )


def _reach(address: str, timeout: float) -> None:
  """Returns once something listens there: where nothing does, jax aborts."""
  host, _, port = address.rpartition(':')
  end = time.monotonic() + timeout
  while True:
    try:
      with socket.create_connection((host, int(port)), timeout=timeout):
        return
    except OSError as error:
      if time.monotonic() > end:
        raise ValueError(f'nothing answers at {address}: {error}') from error
      time.sleep(0.2)


def _join(timeout: int) -> None:
  """Joins; raises RuntimeError where others do not.

  After a time of its own jax ends the process, with nothing to catch: another
  thread waits for it, and this one has given up before.
  """
  count, failures = _number('JAX_NUM_PROCESSES'), []

  def join():
    try:
      jax.distributed.initialize(
        num_processes=count,
        process_id=_number('JAX_PROCESS_ID'),
        initialization_timeout=timeout + 60,
      )
    except Exception as error:
      failures.append(error)

  thread = threading.Thread(target=join, daemon=True)
  thread.start()
  thread.join(timeout)
  if thread.is_alive():
    raise RuntimeError(f'not all of {count or "the"} processes came')
  if failures:
    raise failures[0]


def _number(name: str) -> int | None:
  """Returns a number that the environment sets, or None."""
  text = os.environ.get(name)
  return int(text) if text else None
