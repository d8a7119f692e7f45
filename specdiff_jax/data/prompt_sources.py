"""Prompts of datasets as others publish them, written as a prompt file.

A source is a JSONL file (also a .gz), a parquet or CSV file, or a dataset of
TFDS. One field of its records holds the prompt: a text, or messages, as OpenAI has them (`role`,
`content`) or ShareGPT (`from`, `value`), of which all up to the last one of the
user are taken.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import csv
import hashlib
import importlib.util
import io
import json
import os
import re
from typing import Any, BinaryIO

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.data import overlap
from specdiff_jax.data import prompts as prompts_lib

_FIELDS = {'gsm8k': 'question'}  # of well-known datasets of TFDS
_TFDS = re.compile(
  r'([a-z]\w*)(/[\w.+-]+)?(:\d[\w.*]*)?'
)  # name/config:version
# ShareGPT's names of those who speak, where templates have other ones.
_ROLES = {
    'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant',
    'bing': 'assistant', 'bard': 'assistant', 'observation': 'tool',
}  # fmt: skip
Records = Iterator[tuple[str, dict[str, Any]]]  # with where each one stands


def write(
  path: str,
  source: str,
  split: str = 'train',
  field: str = '',
  *,
  id_field: str = '',
  limit: int = 0,
  overwrite: bool = False,
  unlike: overlap.Seen | None = None,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
  """Writes the prompts of a source as a prompt file, whole or not at all.

  Records without a prompt are left out, and so are those whose prompt stood in
  another one before.

  Args:
    path: the prompt file; '' to write none, and only count.
    source: path of a JSONL, CSV or parquet file, or a name of TFDS.
    split: of a dataset of TFDS, as that has it, such as 'train[:1000]'.
    field: field of the prompt; by default `prompt`, `question` of gsm8k.
    id_field: field of the id; by default the id is a hash of the prompt.
    limit: prompts at most; 0: all.
    overwrite: whether a file that is there may be replaced.
    unlike: prompts that overlap these are left out too.
    progress: called with the prompts written so far.

  Returns:
    How many prompts were written, and how many records were left out: empty,
    or duplicates; and `overlapping`, from their ids to those in `unlike`.

  Raises:
    InputError: the source is not there, cannot be read, or lacks a field.
  """
  found: dict[str, Any] = {'prompts': 0, 'empty': 0, 'duplicates': 0}
  if unlike is not None:
    found['overlapping'] = {}
  seen: set[str] = set()
  ids: dict[str, str] = {}
  with new_file(path, overwrite) if path else io.BytesIO() as file:
    for where, record in records(source, split):
      line, content = _line(where, record, field or _field(source), id_field)
      if content in seen or not content:
        found['duplicates' if content else 'empty'] += 1
        continue
      one = prompts_lib.parse(line, where)  # as it will be read
      if one.id in ids:
        raise errors.InputError(
          f'{where}: the id {one.id!r} is also that of {ids[one.id]}, but '
          'ids must be unique; take another field for them, or none.'
        )
      ids[one.id] = where
      seen.add(content)
      if unlike is not None and (other := unlike.like(one)):
        found['overlapping'][one.id] = other
        continue
      file.write(line)
      found['prompts'] += 1
      progress(found['prompts'])
      if found['prompts'] == limit:
        break
    if not seen:
      raise errors.InputError(
        f'{source} has no prompts: of {found["empty"]} records the field '
        f'{field or _field(source)!r} is empty.'
      )
    if path and not found['prompts']:
      raise errors.InputError(
        f'{source} has no prompts to write: all {len(seen)} overlap those that '
        'they are kept apart from.'
      )
  return found


@contextlib.contextmanager
def new_file(path: str, overwrite: bool) -> Iterator[BinaryIO]:
  """Opens a prompt file to write, which appears whole or not at all.

  Raises InputError where it is there already, or cannot be written.
  """
  files.check_new(path, overwrite)
  try:
    with files.whole(path) as file:
      yield file
  except OSError as error:
    raise errors.InputError(
      f'{path} cannot be written ({error.strerror or error}). Give a file in a '
      'folder that exists, on a disk with room.'
    ) from error


def records(source: str, split: str) -> Records:
  """Yields the records of a source, each with where it stands."""
  if not os.path.lexists(source):
    return _tfds(source, split)
  with files.open_file(source) as file:
    begin = file.read(4)
  if begin == b'PAR1':
    return _parquet(source)
  if source.endswith('.csv'):
    return _csv(source)
  if begin.lstrip()[:1] == b'[':
    raise errors.InputError(
      f'{source} is one JSON array, but it has to be an object a line, as '
      f"`jq -c '.[]' {source}` writes it."
    )
  return _jsonl(source)


def _field(source: str) -> str:
  match = _TFDS.fullmatch(source)
  return _FIELDS.get(match[1] if match else '', 'prompt')


def _line(
  where: str, record: Mapping[str, Any], field: str, id_field: str
) -> tuple[bytes, str]:
  """Returns a record's line, and a hash of its prompt ('' if it has none)."""
  for name in filter(None, (field, id_field)):
    if name not in record:
      raise errors.InputError(
        f'{where} has no field {name!r}; it has '
        f'{printing.names(sorted(record)) or "none"}.'
      )
  prompt = record[field]
  if isinstance(prompt, list) and prompt:
    prompt = _asked(where, prompt)
  elif not isinstance(prompt, str | None | list):
    raise errors.InputError(
      f'{where}: the field {field!r} is {printing.short(prompt)}, but a prompt '
      'is a text or a list of messages.'
    )
  if not prompt or isinstance(prompt, str) and not prompt.strip():
    return b'', ''
  fields: dict[str, Any] = {'prompt': prompt}
  if arguments := prompts_lib.arguments(where, record, prompt):
    fields['chat_template_kwargs'] = arguments
  told = prompts_lib.encoded(where, fields)
  content = hashlib.sha256(told).hexdigest()[:16]
  own = record[id_field] if id_field else content
  if not isinstance(own, str | int):
    raise errors.InputError(
      f'{where}: the field {id_field!r} is {printing.short(own)}, but an id is '
      'a text or a whole number; give another field for the ids, or none.'
    )
  fields = {'id': own, **fields}
  return json.dumps(fields).encode() + b'\n', content


def _asked(where: str, messages: list[Any]) -> list[Any]:
  """Returns messages up to the last one of the user, in OpenAI's form."""
  found, end = [], 0
  for number, one in enumerate(messages, 1):
    if isinstance(one, Mapping):
      if 'from' in one and 'role' not in one:
        who = one['from']
        who = _ROLES.get(who, who) if isinstance(who, str) else who
        one = {'role': who, 'content': one.get('value')}
      # A table has every field in every message.
      one = {name: value for name, value in one.items() if value is not None}
      end = number if one.get('role') == 'user' else end
    found.append(one)
  prompts_lib.messages(where, found)
  return found[:end]


def _jsonl(path: str) -> Records:
  for number, line in prompts_lib.lines(path):
    if line.strip():
      where = f'{path}, line {number}'
      yield where, prompts_lib.parsed(line, where)


def _csv(path: str) -> Records:
  """Yields the rows of a table whose first row has the fields' names."""
  lines = (line for _, line in prompts_lib.lines(path))
  csv.field_size_limit(max(csv.field_size_limit(), prompts_lib.LONGEST_LINE))
  try:
    texts = (line.decode('utf-8-sig') for line in lines)
    for number, row in enumerate(csv.DictReader(texts, strict=True), 1):
      yield f'{path}, row {number}', {str(k): v for k, v in row.items()}
  except (csv.Error, UnicodeDecodeError) as error:
    raise errors.InputError(
      f'{path} cannot be read as a CSV table ({error}); download it again.'
    ) from error


def _parquet(path: str) -> Records:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise errors.InputError(
      f'{path} is a parquet file, which the package pyarrow reads: pip install '
      "'.[parquet]' in the clone."
    ) from error
  number = 0
  try:
    with files.open_file(path) as file:
      for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
        for record in batch.to_pylist():
          number += 1
          yield f'{path}, row {number}', record
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise errors.InputError(
      f'{path} cannot be read as a parquet file ({printing.error(error)}); '
      'download it again.'
    ) from error


def _tfds(name: str, split: str) -> Records:
  source = None
  if _TFDS.fullmatch(name):
    from specdiff_jax.data import tfds_builder  # takes a second to import

    source = tfds_builder.published(name, split)
  if source is None:
    without = importlib.util.find_spec('tensorflow') is None
    raise errors.InputError(
      f'{name} is neither a file that is there nor a dataset that '
      'tensorflow_datasets has'
      + (' (without tensorflow it has few)' if without else '')
      + '; correct the path or the name.'
    )
  for number in range(len(source)):
    record = {key: _plain(value) for key, value in source[number].items()}
    yield f'{name}, record {number} of {split}', record


def _plain(value: Any) -> Any:
  """Returns what TFDS reads as values of JSON."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  if isinstance(value, Mapping):
    return {name: _plain(one) for name, one in value.items()}
  value = value.tolist() if hasattr(value, 'tolist') else value
  if isinstance(value, list):
    return [_plain(one) for one in value]
  return _plain(value) if isinstance(value, bytes) else value
