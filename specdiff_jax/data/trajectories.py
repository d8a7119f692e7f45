"""The verifier's own completions: a journal while collecting, then a dataset.

A TFDS build restarts from nothing when it is killed, so `collect` writes an
append-only journal of JSON lines, and `build_dataset` turns it into an
`array_record` dataset at the end, in seconds. Under a work directory:

  journal.jsonl   the header on line 1, then one trajectory a line
  dataset/        the TFDS dataset, made from the journal and remade at will
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.data import journal as journal_lib
import numpy as np

FORMAT = 1  # of the journal and of the manifest, written in both


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
  """One completion by the verifier, with the law it was drawn from."""

  id: str
  prompt_hash: str  # of the prompt's text: `prompts.text_hash`
  prompt: np.ndarray  # [P] int32
  completion: np.ndarray  # [C] int32, with its end token if it came
  temperature: float
  top_k: int
  top_p: float
  seed: int


class Journal:
  """An append-only file of trajectories that survives a kill at any byte.

  Whatever `append` returned from is on disk. Reopening cuts off a last line
  that a killed run left torn. One process at a time may hold the journal.

    with Journal(workdir, {'verifier': fingerprint, 'seed': 0}) as journal:
      journal.append([trajectory])
  """

  def __init__(self, workdir: str, header: dict[str, Any]):
    """Opens or creates `workdir/journal.jsonl`; `header` is of JSON values.

    Raises InputError if the journal there was begun under another header,
    naming the fields; if another process holds it; or if it is damaged.
    """
    self.path = _journal_path(workdir)
    self.header = json.loads(json.dumps(header))
    self._ids: set[str] = set()
    self._file = journal_lib.AppendFile(self.path)
    try:
      self._recover()
    except BaseException:
      self.close()
      raise

  def _recover(self) -> None:
    """Takes in the whole lines and cuts off what follows them."""
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
    self._file.append([_to_fields(item) for item in trajectories])
    self._ids |= new

  def ids(self) -> set[str]:
    """Returns the ids of the trajectories written so far."""
    return set(self._ids)

  def __len__(self) -> int:
    return len(self._ids)

  def read(self) -> Iterator[Trajectory]:
    """Yields the trajectories in the order they were written."""
    for _, number, fields in journal_lib.lines(self.path):
      if number > 1:
        yield _from_fields(fields, self.path, number)

  def close(self) -> None:
    """Lets another process have the journal; a second call does nothing."""
    self._file.close()

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_) -> None:
    self.close()


class Source:
  """Random access to a dataset on disk: `len(source)`, `source[index]`."""

  def __init__(self, records: Any):
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Trajectory:
    record = self._records[index]
    return Trajectory(
        id=record['id'].decode(),
        prompt_hash=record['prompt_hash'].decode(),
        prompt=record['prompt'],
        completion=record['completion'],
        # float32 on disk: the shortest decimal gives 0.7 back as 0.7.
        temperature=float(str(np.float32(record['temperature']))),
        top_k=int(record['top_k']),
        top_p=float(str(np.float32(record['top_p']))),
        seed=int(record['seed']),
    )


def build_dataset(workdir: str) -> str:
  """Makes the TFDS dataset of the journal's records; returns its folder.

  Does nothing if the dataset there was made from the journal as it is now, or
  if there is a dataset and no journal. A build that is killed leaves the
  dataset before it, or none. Raises InputError if nothing was collected or
  the disk is full.
  """
  from specdiff_jax.data import tfds_builder  # takes a second to import

  folder, path = _dataset_path(workdir), _journal_path(workdir)
  manifest = tfds_builder.read_manifest(folder)
  if manifest and not os.path.exists(path):
    return folder
  header, records, end = _whole_journal(path)
  fresh = {
      'format': FORMAT,
      'header': header,
      'records': len(records),
      'last': records[-1].id,
      'journal_bytes': end,
      'journal_sha256': journal_lib.digest(path, end),
  }
  if manifest != fresh:
    tfds_builder.write(folder, map(vars, records), fresh)
  return folder


def open_dataset(workdir: str) -> tuple[dict[str, Any], Source]:
  """Returns the header and the trajectories of a dataset that was built.

    header, source = open_dataset('runs/smollm2')
    print(header['verifier'], len(source), source[0].completion)
  """
  from specdiff_jax.data import tfds_builder  # takes a second to import

  folder = _dataset_path(workdir)
  manifest = tfds_builder.read_manifest(folder)
  if not manifest or manifest.get('format') != FORMAT:
    raise errors.InputError(
        f'There is no trajectory dataset of format {FORMAT} in {workdir}. Run '
        '`specdiff collect` with this work directory: it makes one at its end.'
    )
  try:
    source = Source(tfds_builder.read(folder))
    last = source[manifest['records'] - 1].id
    if (len(source), last) != (manifest['records'], manifest['last']):
      raise ValueError(f'{len(source)} records, the last one {last!r}')
  except Exception as error:  # TFDS and array_record raise many kinds
    raise errors.InputError(
        f'The trajectory dataset {folder} is damaged ({error}). Delete that '
        'folder: the next run makes it again from the journal beside it.'
    ) from error
  return manifest['header'], source


def _journal_path(workdir: str) -> str:
  return os.path.join(workdir, 'journal.jsonl')


def _dataset_path(workdir: str) -> str:
  return os.path.join(workdir, 'dataset')


def _whole_journal(path: str) -> tuple[dict, list[Trajectory], int]:
  """Returns header, trajectories and the offset where they end."""
  header, records, end = None, [], 0
  for end, number, fields in journal_lib.lines(path):
    if number == 1:
      header = _header(fields, path)
    else:
      records.append(_from_fields(fields, path, number))
  if header is None or not records:
    raise errors.InputError(
        f'The journal {path} holds no trajectory yet. Run `specdiff collect` '
        'with this work directory first.'
    )
  return header, records, end


def _header(fields: dict[str, Any], path: str) -> dict[str, Any]:
  """Returns the header that stands on a journal's first line."""
  if fields.get('journal') != FORMAT or 'header' not in fields:
    raise errors.InputError(
        f'{path}, line 1: not the header of a journal of format {FORMAT} '
        f'(format: {fields.get("journal")!r}). Give a new work directory, or '
        'one that `specdiff collect` of this version made.'
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


def _to_fields(trajectory: Trajectory) -> dict[str, Any]:
  fields = dict(vars(trajectory))
  for name in ('prompt', 'completion'):
    fields[name] = np.asarray(fields[name], np.int32).tolist()
  return fields


def _from_fields(fields: dict[str, Any], path: str, number: int) -> Trajectory:
  try:
    fields = dict(fields)
    for name in ('prompt', 'completion'):
      fields[name] = np.asarray(fields[name], np.int32)
    return Trajectory(**fields)
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise errors.InputError(
        f'{path}, line {number}: not a trajectory ({error!r}). Delete the '
        'line (only its trajectory is lost) and run the command again.'
    ) from error
