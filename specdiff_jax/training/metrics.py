"""Metrics as JSON lines, and as TensorBoard's event files beside them."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import glob
import json
import math
import os
import time
from typing import Any

import jax
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.data import journal


class Pace:
  """Measures throughput; time outside of steps is left out.

  That is what evaluations and saves take.

  Example:
    pace.add(metrics)          # after every step
    with pace.paused(metrics):
      evaluate(state)
    pace.rates(values, flops)  # of the steps since the last time
  """

  def __init__(self, now: Callable[[], float] = time.monotonic):
    self._now = now
    self._steps, self._seconds = 0, 0.0
    self._since = math.nan  # until the first step is done

  def add(self, outcome: Any) -> None:
    """Counts a step, but for the first one, which was compiled too."""
    if math.isnan(self._since):
      jax.block_until_ready(outcome)
      self._since = self._now()
    else:
      self._steps += 1

  @contextlib.contextmanager
  def paused(self, outcome: Any) -> Iterator[None]:
    """Leaves out what is done within; the steps so far are waited for."""
    jax.block_until_ready(outcome)
    self._seconds += self._now() - self._since
    try:
      yield
    finally:
      self._since = self._now()

  def rates(self, values: dict[str, Any], flops: int) -> dict[str, float]:
    """Returns rates per second since the last call; {} if no step was done.

    Args:
      values: A step's metrics, of which `targets` is read. They are computed,
        so that the steps so far are done.
      flops: Of a step.
    """
    now = self._now()
    seconds = self._seconds + now - self._since
    speed = self._steps / seconds if seconds else 0.0
    self._steps, self._seconds, self._since = 0, 0.0, now
    if not speed:
      return {}
    found = {'steps_per_s': speed, 'flops_per_s': flops * speed}
    if 'targets' in values:
      found['targets_per_s'] = float(values['targets']) * speed
    return found


class MetricsWriter:
  """Appends one JSON object a line; each has a `step`.

  Only one process may write a file: the others pass `path=None`, and then
  nothing is written. With `events`, a folder, the same numbers go there for
  TensorBoard; InputError where tensorboardX is not installed. `say` is told of
  damaged lines.
  """

  def __init__(
    self,
    path: str | None,
    events: str | None = None,
    say: Callable[[str], None] = lambda text: None,
  ):
    self._path, self._say = path, say
    self._events = _Events(events) if path and events else None
    if path:
      self._guard(os.makedirs, os.path.dirname(path) or '.', exist_ok=True)

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Appends a line; a number that JSON lacks (nan, inf) becomes null."""
    if not self._path:
      return
    record = {'step': step} | {k: _plain(v) for k, v in values.items()}
    self._guard(_append, self._path, json.dumps(record) + '\n')
    if self._events:
      self._guard(self._events.add, record)

  def read(self) -> list[dict[str, Any]]:
    """Returns the lines written so far, without torn and damaged ones."""
    return self._lines()[0]

  def _lines(self) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Returns the objects of the good lines, and the others."""
    records, bad = [], []
    if self._path and os.path.lexists(self._path):
      with files.open_file(self._path) as file:
        while line := file.readline(files.MOST_JSON):
          record = _parse(line)
          if record is not None:
            records.append(record)
          else:
            bad.append(line)
    return records, bad

  def truncate(self, step: int) -> None:
    """Drops what lies past `step`: a resumed run will write it again.

    Damaged lines go to a file beside it; a torn last one is dropped.
    """
    records, bad = self._lines()
    if bad and not bad[-1].endswith(b'\n'):
      del bad[-1]
    if bad:
      aside = f'{self._path}.damaged'
      self._guard(_replace, aside, b''.join(bad))
      self._say(
        f'metrics: {len(bad)} damaged lines of {self._path} are set aside, '
        f'in {aside}; the run goes on.'
      )
    if self._path and os.path.lexists(self._path):
      kept = [record for record in records if record['step'] <= step]
      data = ''.join(json.dumps(r) + '\n' for r in kept).encode()
      self._guard(_replace, self._path, data)
    if self._events:
      self._guard(self._events.restart, self.read())

  def last(self, key: str, until: float = math.inf) -> Any:
    """Returns the newest value of `key` up to a step, or None."""
    for record in reversed(self.read()):
      if key in record and record['step'] <= until:
        return record[key]
    return None

  def _guard(self, function, *args, **kwargs) -> None:
    try:
      function(*args, **kwargs)
    except OSError as error:
      raise errors.InputError(
        f'metrics: {self._path} cannot be written ({error}). No checkpoint '
        'is lost. Free some space there (or make it writable) and start '
        'the same command again: it goes on from the last checkpoint.'
      ) from error


class _Events:
  """An event file, which cannot be cut: it is made anew of the lines kept."""

  def __init__(self, folder: str):
    try:
      # An extra, which need not be here.
      from tensorboardX import event_file_writer  # pyright: ignore[reportMissingImports]
      from tensorboardX.proto import event_pb2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
      raise errors.InputError(
        'config.tensorboard is True, but tensorboardX is not installed: '
        "`pip install '.[tensorboard]'` in its clone, or set it to False."
      ) from error
    self._folder = folder
    # Not its SummaryWriter, whose thread may lose the last lines of a run.
    self._open = event_file_writer.EventsWriter
    self._event = event_pb2.Event
    self._writer: Any = None

  def restart(self, records: list[dict[str, Any]]) -> None:
    """Begins with these records and no others."""
    if self._writer:
      self._writer.close()
    before = os.path.join(glob.escape(self._folder), 'events.out.tfevents.*')
    for old in glob.glob(before):
      os.remove(old)
    os.makedirs(self._folder, exist_ok=True)
    self._writer = self._open(os.path.join(self._folder, 'events'))
    for record in records:
      self.add(record)

  def add(self, record: dict[str, Any]) -> None:
    """Writes the numbers of one line, those of `eval` under that name."""
    inner = record.get('eval')
    inner = inner if isinstance(inner, dict) else {}
    values = record | {f'eval/{name}': inner[name] for name in inner}
    event = self._event(step=record['step'], wall_time=time.time())
    for name, value in values.items():
      if isinstance(value, (int, float)) and name != 'step':
        event.summary.value.add(tag=name, simple_value=value)
    self._writer.write_event(event)
    self._writer.flush()


def _append(path: str, text: str) -> None:
  """Writes it whole, or not at all where the disk is full."""
  data = text.encode()
  file = files.open_own(path, os.O_WRONLY | os.O_APPEND)
  try:
    before = os.fstat(file).st_size
    if os.write(file, data) < len(data):
      os.ftruncate(file, before)
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  finally:
    os.close(file)


def _replace(path: str, data: bytes) -> None:
  with files.whole(os.path.realpath(path)) as file:
    file.write(data)


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns the object of a line, or None where `write` writes no such line."""
  record = journal.parsed(line)
  if record is None or type(record.get('step')) is not int:
    return None
  if not 0 <= record['step'] < 2**63 or not _finite(record):
    return None
  if type(record.get('loss')) not in (int, float, type(None)):
    return None
  return record if isinstance(record.get('eval', {}), dict) else None


def _finite(value: Any) -> bool:
  """Returns whether no number in it is nan or infinite; JSON has no such."""
  if isinstance(value, dict):
    return all(map(_finite, value.values()))
  if isinstance(value, list):
    return all(map(_finite, value))
  return not isinstance(value, float) or math.isfinite(value)


def _plain(value: Any) -> Any:
  """Returns what json can write."""
  if isinstance(value, str) or value is None:
    return value
  if isinstance(value, dict):
    return {key: _plain(element) for key, element in value.items()}
  array = np.asarray(value)
  if array.ndim:
    return [_plain(element) for element in array]
  number = array.item()
  if isinstance(number, float) and not math.isfinite(number):
    return None
  return number
