"""A file of completions: JSON lines that a killed run goes on with.

Beside FILE stands FILE.settings.json: what decides the lines. A run with the
same settings keeps the lines that are there; one with others is refused. Both
have checksums, so that damage is noticed.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import os
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.data import journal as journal_lib

# The fields of lines from before these had a checksum.
_OLD = {
    'id': str, 'text': str, 'tokens': list, 'tau': (int, float),
    'prompt_sha256': str,
}  # fmt: skip


class Outputs(journal_lib.Resumed):
  """An append-only file of completions, each on disk once it is written.

  with Outputs('out.jsonl', {'seed': 0}, {'p1': prompt_key([5, 7])}) as file:
    file.append({'id': 'p1', 'prompt_sha256': prompt_key([5, 7])})
  file.done  # {'p1'}
  """

  def __init__(
    self,
    path: str,
    settings: dict[str, Any],
    prompts: Mapping[str, str],
    overwrite: bool = False,
  ):
    """Opens `path`, keeping the lines that a run like this one wrote.

    Args:
      path: file in a folder that exists.
      settings: JSON values that decide the lines besides the prompts.
      prompts: `prompt_key` of each id.
      overwrite: whether what is in the file is dropped.

    Raises InputError if the file holds anything but lines of these settings
    and prompts, naming what differs; it is then left as it is.
    """
    self.done: set[str] = set()
    self._path = path
    self._settings = json.loads(json.dumps(settings))
    try:
      os.close(files.open_own(path, os.O_WRONLY))
    except OSError as error:
      raise errors.InputError(
        f'{path!r} cannot be written ({error.strerror or error}). Give a file '
        'in a folder that exists.'
      ) from error
    self._prompts, self._overwrite = prompts, overwrite
    super().__init__(path)

  def _recover(self) -> None:
    if not os.path.isfile(self._path):  # a device: nothing to go on with
      return
    if self._overwrite or not os.path.getsize(self._path):
      self._file.cut(0)
      settings = journal_lib.with_sum(self._settings)
      files.write_json(_beside(self._path), settings)  # before the first line
      return
    self._check_settings()
    end = 0
    for end, number, fields in journal_lib.lines(self._path):
      self._check_line(fields, number)
      self.done.add(fields['id'])
    self._file.cut(end)

  def _check_settings(self) -> None:
    try:
      old = journal_lib.without_sum(files.read_json(_beside(self._path)))
    except ValueError as error:
      raise errors.InputError(
        f'{self._path} is there, but without a readable '
        f'{_beside(self._path)} that tells which settings made it '
        f'({error}). Give another file, or --overwrite.'
      ) from error
    different = journal_lib.differences(old, self._settings)
    if different:
      raise errors.InputError(
        f'{self._path} was begun under other settings: {different}. Go on '
        'with the old ones, give another file, or --overwrite.'
      )

  def _check_line(self, fields: Mapping[str, Any], number: int) -> None:
    name, key = fields.get('id'), fields.get('prompt_sha256')
    if 'sum' not in fields and not _is_old(fields):
      raise journal_lib.damaged(self._path, number, 'not a completion')
    if (
      not isinstance(name, str)
      or name in self.done
      or self._prompts.get(name, key) != key
    ):
      raise errors.InputError(
        f'{self._path}, line {number}: not a completion of this prompt file '
        f'(the id {name!r} is missing, stands twice, or had another prompt). '
        'Give another file, or --overwrite.'
      )

  def append(self, record: dict[str, Any]) -> None:
    """Writes a line and returns once it is on disk.

    Raises InputError if the disk is full, and the file is then as before; or
    if another process deleted, replaced or changed the file.
    """
    self._file.append([record])
    self.done.add(record['id'])


def prompt_key(ids: Sequence[int]) -> str:
  """Returns 16 hex digits of SHA-256 over a prompt's tokens."""
  text = ' '.join(str(int(token)) for token in ids)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_old(fields: Mapping[str, Any]) -> bool:
  """Returns whether these are the fields of a line without a checksum."""
  return (
    fields.keys() == _OLD.keys()
    and all(isinstance(fields[name], kind) for name, kind in _OLD.items())
    and all(type(token) is int for token in fields['tokens'])
  )


def _beside(path: str) -> str:
  return f'{path}.settings.json'
