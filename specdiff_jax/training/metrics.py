"""Metrics as JSON lines."""

import json
import math
import os
from typing import Any

import numpy as np

from specdiff_jax.core import errors


class MetricsWriter:
  """Appends one JSON object a line; each has a `step`.

  Only one process may write a file: the others pass `path=None`, and then
  nothing is written.
  """

  def __init__(self, path: str | None):
    self._path = path
    if path:
      self._guard(os.makedirs, os.path.dirname(path) or '.', exist_ok=True)

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Appends a line; a number that JSON lacks (nan, inf) becomes null."""
    if not self._path:
      return
    record = {'step': step} | {k: _plain(v) for k, v in values.items()}
    self._guard(self._append, json.dumps(record) + '\n')

  def read(self) -> list[dict[str, Any]]:
    """Returns the lines written so far, a torn last one left out."""
    records = []
    if self._path and os.path.exists(self._path):
      with open(self._path, encoding='utf-8') as file:
        for line in file:
          try:
            records.append(json.loads(line))
          except json.JSONDecodeError:
            break
    return records

  def truncate(self, step: int) -> None:
    """Drops what lies past `step`: a resumed run will write it again."""
    if self._path and os.path.exists(self._path):
      kept = [record for record in self.read() if record['step'] <= step]
      self._guard(self._replace, ''.join(json.dumps(r) + '\n' for r in kept))

  def last(self, key: str) -> Any:
    """Returns the newest value of `key`, or None."""
    for record in reversed(self.read()):
      if key in record:
        return record[key]
    return None

  def _append(self, text: str) -> None:
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(text)

  def _replace(self, text: str) -> None:
    with open(self._path + '.tmp', 'w', encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(self._path + '.tmp', self._path)

  def _guard(self, function, *args, **kwargs) -> None:
    try:
      function(*args, **kwargs)
    except OSError as error:
      raise errors.InputError(
          f'metrics: {self._path} cannot be written ({error}). No checkpoint '
          'is lost. Free some space there (or make it writable) and start '
          'the same command again: it goes on from the last checkpoint.'
      ) from error


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
