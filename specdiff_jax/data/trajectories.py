"""The verifier's completions: a journal while collecting, then a dataset.

A TFDS build restarts from nothing when it is killed, so `collect` writes an
append-only journal of JSON lines, and `dataset.build` turns it into an
`array_record` dataset at the end, in seconds. Under a work directory:

  journal.jsonl     the header on line 1, then one trajectory a line
  journal.1.jsonl   that of a second process, with the same header; and so on
  dataset/          the TFDS dataset, made from the journals, remade at will

Each line has a checksum (see `journal`). What is read is checked all the same:
lines of older versions have none.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
import re
from typing import Any, Protocol

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import trajectory_fields

FORMAT = 1  # of the journal and of the manifest, written in both


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
  """One completion by the verifier, with the settings it was drawn under."""

  id: str
  prompt_hash: str  # of the prompt's text: `prompts.text_hash`
  prompt: np.ndarray  # [P] int32
  completion: np.ndarray  # [C] int32, with its end token if it came
  temperature: float
  top_k: int
  top_p: float
  seed: int
  # The verifier's K likeliest tokens in the place of each completion token,
  # likeliest first, and their log-probabilities; None where not stored.
  top_ids: np.ndarray | None = None  # [C, K] int32
  top_log_p: np.ndarray | None = None  # [C, K] float16


class Journal(journal_lib.Resumed):
  """An append-only file of trajectories that survives a kill at any byte.

  Whatever `append` returned from is on disk. Reopening cuts off a last line
  that a killed run left torn. One process at a time may hold the journal.

    with Journal(workdir, {'verifier': fingerprint, 'seed': 0}) as journal:
      journal.append([trajectory])
  """

  def __init__(self, workdir: str, header: dict[str, Any], process: int = 0):
    """Opens or creates a process's journal; `header` is of JSON values.

    Raises InputError if the journal there was begun under another header,
    naming the fields; if another process holds it; or if it is damaged.
    """
    self.path = _path(workdir, process)
    self.header = json.loads(json.dumps(header))
    self._ids: set[str] = set()
    super().__init__(self.path)

  def _recover(self) -> None:
    end = 0
    for end, number, fields in journal_lib.lines(self.path):
      if number == 1:
        _check_header(_header(fields, self.path), self.header, self.path)
      else:
        self._ids.add(_from_fields(fields, self.path, number).id)
    self._file.cut(end)
    if not end:
      self._file.append([{'journal': FORMAT, 'header': self.header}])

  def append(self, trajectories: Sequence[Trajectory]) -> None:
    """Writes the trajectories and returns once they are on disk.

    Raises InputError if the disk is full; the journal is then as before.
    """
    new = {trajectory.id for trajectory in trajectories}
    if len(new) < len(trajectories) or new & self._ids:
      raise ValueError(f'an id would stand twice in {self.path}')
    self._file.append(
      [trajectory_fields.encoded(vars(item)) for item in trajectories]
    )
    self._ids |= new

  def ids(self) -> set[str]:
    """Returns the ids of the trajectories written so far."""
    return set(self._ids)


class Source(Protocol):
  """Random access to trajectories."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Trajectory: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
  """What the journals of a work directory hold at some moment."""

  header: dict[str, Any]
  records: list[Trajectory]
  parts: list[tuple[str, int]]  # each journal, and how many bytes of it


def read_all(workdir: str) -> Collected:
  """Reads the journals of all processes; they may be written meanwhile.

  Raises InputError if nothing was collected, or if two journals have different
  headers.
  """
  header, records, parts = None, {}, []
  for path in paths(workdir):
    end = 0
    for end, number, fields in journal_lib.lines(path):
      if number > 1:
        record = _from_fields(fields, path, number)
        records.setdefault(record.id, record)
      elif header is None:
        header = _header(fields, path)
      else:
        _check_header(header, _header(fields, path), path)
    parts.append((path, end))
  if header is None or not records:
    raise errors.InputError(
      f'The journal {_path(workdir, 0)} holds no trajectory yet. Run '
      '`specdiff collect` with this work directory first.'
    )
  return Collected(header, list(records.values()), parts)


def every(workdir: str) -> Iterator[Trajectory]:
  """Yields what stands in all journals; less than `read_all` is checked."""
  for path in paths(workdir):
    for _, number, fields in journal_lib.lines(path):
      if number > 1:
        yield _from_fields(fields, path, number)


def lengths(workdir: str) -> dict[str, int]:
  """Returns the ids in all journals, and the tokens of each completion.

  Nothing has to be there, and headers are not compared.
  """
  return {record.id: len(record.completion) for record in every(workdir)}


def place(workdir: str, name: str) -> str:
  """Returns where the trajectory of an id stands, such as 'FILE, line 7'."""
  for path in paths(workdir):
    for _, number, fields in journal_lib.lines(path):
      if number > 1 and fields.get('id') == name:
        return f'{path}, line {number}'
  return os.path.join(workdir, 'dataset')


def paths(workdir: str) -> list[str]:
  """Returns the journals that are there, in the order of their processes."""
  if not os.path.isdir(workdir):
    return []
  found = {}
  for name in os.listdir(workdir):
    match = re.fullmatch(r'journal(?:\.([1-9]\d*))?\.jsonl', name)
    if match:
      found[int(match[1] or 0)] = os.path.join(workdir, name)
  return [found[process] for process in sorted(found)]


def _path(workdir: str, process: int) -> str:
  number = f'.{process}' if process else ''
  return os.path.join(workdir, f'journal{number}.jsonl')


def _header(fields: dict[str, Any], path: str) -> dict[str, Any]:
  """Returns the header that stands on a journal's first line."""
  if (
    fields.keys() - {'sum'} != {'journal', 'header'}
    or not isinstance(fields['header'], dict)
    or fields['journal'] != FORMAT
  ):
    raise errors.InputError(
      f'{path}, line 1: not the header of a journal of format {FORMAT} '
      f'(format: {fields.get("journal")!r:.40}). Give a new work '
      'directory, or one that `specdiff collect` of this version made.'
    )
  return fields['header']


def _check_header(old: dict, new: dict, path: str) -> None:
  """Raises InputError naming every field in which the two headers differ."""
  different = journal_lib.differences(old, new)
  if different:
    raise errors.InputError(
      f'The journal {path} was begun under other settings: {different}. Its '
      'trajectories and new ones must not be mixed: go on with the old '
      'settings, or give a new work directory.'
    )


def _from_fields(fields: dict[str, Any], path: str, number: int) -> Trajectory:
  try:
    return Trajectory(**trajectory_fields.decoded(fields))
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise journal_lib.damaged(
      path, number, f'not a trajectory ({str(error)[:200]})'
    ) from error


def most_id(record: Trajectory) -> int:
  """Returns the largest token of a trajectory; -1 if it has none."""
  parts = (record.prompt, record.completion, record.top_ids)
  return max(
    (int(part.max()) for part in parts if part is not None and part.size),
    default=-1,
  )
