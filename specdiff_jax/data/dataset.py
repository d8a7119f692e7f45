"""The trajectories of a work directory as a dataset with random access.

Made from the journals (`trajectories`) in seconds, and remade when these have
grown. Equal completions of one prompt are kept once: several seeds, or a prompt
that stands in a file twice, may yield the same text. (Where trajectories are
draws of a distribution, as some losses want them, the likeliest short texts
then count for less than their share.)
"""

from collections.abc import Sequence
import hashlib
import os
from typing import Any

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.data import journal as journal_lib
from specdiff_jax.data import trajectories

# What tells from which bytes of the journals a dataset was made.
_MADE_FROM = ('format', 'header', 'journal_bytes', 'journal_sha256')


class Source:
  """Random access to a dataset on disk: `len(source)`, `source[index]`."""

  def __init__(self, records: Any):
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> trajectories.Trajectory:
    record = self._records[index]
    return trajectories.Trajectory(
      id=record['id'].decode(),
      prompt_hash=record['prompt_hash'].decode(),
      prompt=record['prompt'],
      completion=record['completion'],
      # float32 on disk: the shortest decimal gives 0.7 back as 0.7.
      temperature=float(str(np.float32(record['temperature']))),
      top_k=int(record['top_k']),
      top_p=float(str(np.float32(record['top_p']))),
      seed=int(record['seed']),
      top_ids=record.get('top_ids'),
      top_log_p=record.get('top_log_p'),
    )


class Joined:
  """Several sources as one, one after the other."""

  def __init__(self, sources: Sequence[trajectories.Source]):
    self._sources = sources
    self._ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> trajectories.Trajectory:
    which = int(np.searchsorted(self._ends, index, side='right'))
    source = self._sources[which]
    return source[index - int(self._ends[which]) + len(source)]


def there(workdir: str) -> bool:
  """Returns whether a work directory has a dataset."""
  from specdiff_jax.data import tfds_builder

  return tfds_builder.read_manifest(_path(workdir)) is not None


def build(workdir: str) -> dict[str, Any]:
  """Makes the TFDS dataset of what was collected; returns its manifest.

  Does nothing if the dataset there was made from the journals as they are now
  and is not damaged, or if there is a dataset and no journal. A build that is
  killed leaves the dataset before it, or none. Raises InputError if nothing was
  collected or the disk is full.
  """
  from specdiff_jax.data import tfds_builder  # takes a second to import

  folder = _path(workdir)
  manifest = tfds_builder.read_manifest(folder)
  if manifest and not trajectories.paths(workdir):
    return manifest
  found = trajectories.read_all(workdir)
  records = _distinct(found.records)
  stored = {0 if x.top_ids is None else x.top_ids.shape[1] for x in records}
  fresh = {
    'format': trajectories.FORMAT,
    'header': found.header,
    'records': len(records),
    'last': records[-1].id,
    'journal_bytes': sum(size for _, size in found.parts),
    'journal_sha256': journal_lib.digest(found.parts),
    'duplicates': len(found.records) - len(records),
    'stored_top_k': stored.pop() if len(stored) == 1 else 0,
    'most_id': max(map(trajectories.most_id, records)),
    'prompt_hashes': sorted({record.prompt_hash for record in records}),
  }
  if manifest and all(manifest.get(n) == fresh[n] for n in _MADE_FROM):
    if tfds_builder.is_whole(folder, manifest):
      return manifest
  return tfds_builder.write(folder, map(vars, records), fresh)


def _distinct(
  records: Sequence[trajectories.Trajectory],
) -> list[trajectories.Trajectory]:
  """Returns the records without equal completions of an equal prompt."""
  found = {}
  for record in records:
    key = hashlib.sha256(np.int32(len(record.prompt)).tobytes())
    key.update(np.concatenate([record.prompt, record.completion]).tobytes())
    found.setdefault(key.digest(), record)
  return list(found.values())


def read(workdir: str) -> tuple[dict[str, Any], Source]:
  """Returns the header and the trajectories of a dataset that was built.

  Raises InputError if there is none, or its files are not those that were
  written.

    header, source = read('runs/smollm2')
    print(header['verifier'], len(source), source[0].completion)
  """
  from specdiff_jax.data import tfds_builder  # takes a second to import

  folder = _path(workdir)
  manifest = tfds_builder.read_manifest(folder)
  if not manifest or manifest.get('format') != trajectories.FORMAT:
    raise errors.InputError(
      f'There is no trajectory dataset of format {trajectories.FORMAT} in '
      f'{workdir}. Run `specdiff collect` with this work directory: it makes '
      'one at its end.'
    )
  try:
    if not tfds_builder.is_whole(folder, manifest):
      raise ValueError('its files are not those that were written')
    stored = manifest.get('stored_top_k', 0)
    source = Source(tfds_builder.read(folder, stored))
    last = source[manifest['records'] - 1].id
    if (len(source), last) != (manifest['records'], manifest['last']):
      raise ValueError(f'{len(source)} records, the last one {last!r}')
    header = dict(manifest['header'])
  except MemoryError:
    raise
  except Exception as error:  # TFDS and array_record raise many kinds
    advice = 'There is no journal beside it to make it of: collect it again.'
    if trajectories.paths(workdir):
      advice = (
        'Delete that folder: the next run makes it again from the journal '
        'beside it.'
      )
    raise errors.InputError(
      f'The trajectory dataset {folder} is damaged ({error}). {advice}'
    ) from error
  return header, source


def check_ids(workdir: str, source: Source, vocab_size: int) -> None:
  """Raises InputError if a record holds a token id outside the vocabulary.

  Reads all records only where the manifest does not tell the largest token, as
  those of older versions.
  """
  from specdiff_jax.data import tfds_builder  # takes a second to import

  manifest = tfds_builder.read_manifest(_path(workdir)) or {}
  if manifest.get('most_id', vocab_size) < vocab_size:
    return
  for index in range(len(source)):
    most = trajectories.most_id(source[index])
    if most >= vocab_size:
      raise errors.InputError(
        f'{trajectories.place(workdir, source[index].id)}: the trajectory '
        f'{source[index].id!r} has the token {most}, but the verifier has '
        f'{vocab_size}: it was damaged, or not collected with this verifier. '
        'Delete its line and run the command again.'
      )


def _path(workdir: str) -> str:
  return os.path.join(workdir, 'dataset')
