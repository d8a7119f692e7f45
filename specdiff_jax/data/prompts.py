"""Prompt files: JSON lines with the fields `id` and `prompt`."""

import collections
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import hashlib
import json

from specdiff_jax.core import errors
from specdiff_jax.core import files

_LONGEST_LINE = 32 << 20  # bytes
_LONGEST_ID = 1000  # characters; messages and results repeat it


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt; `id` is that of the file and unique in it."""

  id: str
  text: str

  def __post_init__(self):
    for name, value in (('id', self.id), ('prompt', self.text)):
      try:
        value.encode()
      except UnicodeEncodeError as error:
        raise errors.InputError(
          f'The {name} {value[:40]!r} holds {value[error.start]!r} (character '
          f'{error.start + 1}), which is no character: half of a surrogate '
          'pair, or a byte that is not UTF-8. Write it in UTF-8.'
        ) from error


def read(path: str, limit: int | None = None) -> list[Prompt]:
  """Reads a JSONL file of prompts, at most `limit` of them.

  Fields other than `id` and `prompt` are ignored, blank lines are skipped. An
  id may be an integer.
  Raises InputError, with the line's number, where a line cannot be used.

  Example:
    >>> import specdiff_jax as sd
    >>> [one.id for one in sd.read_prompts('configs/prompts/tiny.jsonl', limit=1)]
    ['tiny-0']
  """
  found: dict[str, tuple[int, Prompt]] = {}
  for number, line in _lines(path):
    if limit is not None and len(found) >= limit:
      break
    if not line.strip():
      continue
    prompt = _parse(line, f'{path}, line {number}')
    if prompt.id in found:
      raise errors.InputError(
        f'{path}, line {number}: the id {prompt.id!r} stands already '
        f'on line {found[prompt.id][0]}; ids must be unique, because '
        'results are stored and resumed under them. Rename one.'
      )
    found[prompt.id] = number, prompt
  if not found and (limit is None or limit > 0):
    raise errors.InputError(
      f'The prompt file {path} is empty. It needs at least one line like '
      '{"id": "first", "prompt": "Tell me a story."}.'
    )
  return [prompt for _, prompt in found.values()]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Yields the lines of a file with their numbers, from 1."""
  with files.open_file(path) as file:
    number = 0
    while True:
      number += 1
      try:
        line = file.readline(_LONGEST_LINE + 1)
      except OSError as error:
        raise errors.InputError(
          f'{path}, line {number}: cannot be read ({error}).'
        ) from error
      if len(line) > _LONGEST_LINE:
        raise errors.InputError(
          f'{path}, line {number}: longer than {_LONGEST_LINE} bytes, which '
          'no prompt is. Each line must be one JSON object.'
        )
      if not line:
        return
      yield number, line


def _parse(line: bytes, where: str) -> Prompt:
  """Returns the prompt of one line, or raises an error that says `where`."""
  try:
    fields = files.parse_json(line)
  except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
    raise errors.InputError(
      f'{where}: not JSON ({error}). Each line must be one object with the '
      'fields "id" and "prompt"; correct or remove this line.'
    ) from error
  if not isinstance(fields, dict):
    raise errors.InputError(
      f'{where}: a JSON object was expected, found '
      f'{type(fields).__name__}. Write {{"id": ..., "prompt": ...}}.'
    )
  for name in ('id', 'prompt'):
    value = fields.get(name)
    if name == 'id' and type(value) is int:
      continue
    if not isinstance(value, str) or not value.strip():
      problem = (
        'is missing'
        if name not in fields
        else ('must be a string that is not empty')
      )
      raise errors.InputError(
        f'{where}: the field "{name}" {problem}. Each line needs "id" and '
        f'"prompt"; this one has {sorted(fields)[:9]}.'
      )
  if line.count(b'"id"') > 1 or line.count(b'"prompt"') > 1 or b'\\u' in line:
    names = [name for name, _ in json.loads(line, object_pairs_hook=list)]
    for name in ('id', 'prompt'):
      if names.count(name) > 1:
        raise errors.InputError(
          f'{where}: the field "{name}" stands there twice; leave one.'
        )
  if len(str(fields['id'])) > _LONGEST_ID:
    raise errors.InputError(
      f'{where}: the field "id" has {len(str(fields["id"]))} characters, but '
      f'it may have {_LONGEST_ID}. Shorten it.'
    )
  return Prompt(str(fields['id']), fields['prompt'])


def repeated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
  """Returns every prompt `count` times, each time under another id.

  The first keeps its id, so that a run may go on with more completions of a
  prompt than it began with. Raises InputError where an id would stand twice.

    >>> repeated([Prompt('a', 'Hello')], 2)
    [Prompt(id='a', text='Hello'), Prompt(id='a#2', text='Hello')]
  """
  found = [
    prompt
    if number == 1
    else dataclasses.replace(prompt, id=f'{prompt.id}#{number}')
    for prompt in prompts
    for number in range(1, count + 1)
  ]
  ids = collections.Counter(prompt.id for prompt in found)
  for name, times in ids.items():
    if times > 1:
      raise errors.InputError(
        f'The id {name!r} is that of a prompt and of a further completion of '
        'another. Rename the prompt.'
      )
  return found


def text_hash(text: str) -> str:
  """Returns 16 hex digits of SHA-256 over the text, whitespace normalised."""
  normalised = ' '.join(text.split())
  digest = hashlib.sha256(normalised.encode('utf-8', 'surrogatepass'))
  return digest.hexdigest()[:16]


def check_disjoint(
  train_hashes: Iterable[str], eval_hashes: Iterable[str]
) -> None:
  """Raises InputError where a prompt is both trained on and evaluated on."""
  shared = sorted(set(train_hashes) & set(eval_hashes))
  if shared:
    shown = ', '.join(shared[:5]) + (', ...' if len(shared) > 5 else '')
    raise errors.InputError(
      f'{len(shared)} evaluation prompts are also training prompts (text '
      f'hashes {shown}). Results on them would not be held out: remove them '
      'from one of the two files, and if they were collected, collect again '
      'in a new work directory.'
    )
