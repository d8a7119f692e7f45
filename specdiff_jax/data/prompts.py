"""Prompt files: JSON lines with the fields `id` and `prompt`.

A prompt is a text, or a list of messages, then under `prompt` or `messages`.
Beside it may stand arguments of the chat template: `chat_template_kwargs`, as
serving stacks and trainers call them (or `template`, as the config does), and
of messages `tools`. Suites add what their answers are checked against (`_ABOUT`).
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import gzip
import hashlib
import json
from typing import Any
import zlib

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

LONGEST_LINE = 32 << 20  # bytes
_GZIP = b'\x1f\x8b'
_LONGEST_ID = 1000  # characters; messages and results repeat it
_ARGUMENTS = ('template', 'chat_template_kwargs')
_READ = ('id', 'prompt', 'messages', 'tools', *_ARGUMENTS)  # that are read


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_texts(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(one, str) and bool(one.strip()) for one in value)
  )


def _is_letters(value: Any) -> bool:
  return isinstance(value, str | list) and all(
    isinstance(one, str) and len(one) == 1 and one.isalnum() for one in value
  )


# What a suite says of a prompt: whose kind it is, what the user says turn by
# turn, and what a right answer is.
_ABOUT: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  'task': (_is_text, 'a text'),
  'turns': (_is_texts, 'a list of what the user says, turn by turn'),
  'reference': (_is_text, 'a text'),
  'choices': (_is_letters, 'the letters to choose among, such as "ABCD"'),
  'test': (_is_text, 'a text'),
  'entry_point': (_is_text, 'a text'),
  'test_list': (_is_texts, 'a list of statements'),
}


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt; `id` is that of the file and unique in it."""

  id: str
  text: Any  # a text, a list of messages, or, from Python, of tokens
  template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Those of `_ABOUT` that its line has.
  about: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )

  def __post_init__(self):
    for name, value in (('id', self.id), ('prompt', self.text)):
      if not isinstance(value, str):
        continue
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

  Other fields than those above are ignored, blank lines are skipped. An id may
  be an integer.
  Raises InputError, with the line's number, where a line cannot be used.

  Example: read('configs/prompts/tiny.jsonl', limit=1)
  """
  found: dict[str, tuple[int, Prompt]] = {}
  for number, line in lines(path):
    if limit is not None and len(found) >= limit:
      break
    if not line.strip():
      continue
    prompt = parse(line, f'{path}, line {number}')
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


def lines(path: str) -> Iterator[tuple[int, bytes]]:
  """Yields the lines of a file, also a .gz, with their numbers, from 1."""
  with files.open_file(path) as raw:
    zipped = raw.peek(2)[:2] == _GZIP
    file = gzip.GzipFile(fileobj=raw) if zipped else raw
    number = 0
    while True:
      number += 1
      try:
        line = file.readline(LONGEST_LINE + 1)
      except (OSError, EOFError, zlib.error) as error:
        raise errors.InputError(
          f'{path}, line {number}: cannot be read ({error}).'
        ) from error
      if len(line) > LONGEST_LINE:
        raise errors.InputError(
          f'{path}, line {number}: longer than {LONGEST_LINE} bytes, which '
          'no prompt is. Each line must be one JSON object.'
        )
      if not line:
        return
      yield number, line


def encoded(where: str, fields: Mapping[str, Any]) -> bytes:
  """Returns a record as JSON; InputError for what JSON has no form for."""
  try:
    return json.dumps(fields).encode()
  except TypeError as error:  # a table's dates, bytes ...
    raise errors.InputError(
      f'{where}: a field cannot be read ({error}); make a text of it.'
    ) from error


def parse(line: bytes, where: str) -> Prompt:
  """Returns the prompt of one line, or raises an error that says `where`."""
  fields = parsed(line, where)
  if 'prompt' not in fields and isinstance(fields.get('messages'), list):
    fields['prompt'] = fields['messages']
  for name, other in (('id', int), ('prompt', list)):
    value = fields.get(name)
    if type(value) is other:
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
  if any(line.count(b'"%s"' % n.encode()) > 1 for n in _READ) or b'\\u' in line:
    names = [name for name, _ in json.loads(line, object_pairs_hook=list)]
    for name in _READ:
      if names.count(name) > 1:
        raise errors.InputError(
          f'{where}: the field "{name}" stands there twice; leave one.'
        )
  if len(str(fields['id'])) > _LONGEST_ID:
    raise errors.InputError(
      f'{where}: the field "id" has {len(str(fields["id"]))} characters, but '
      f'it may have {_LONGEST_ID}. Shorten it.'
    )
  prompt = fields['prompt']
  if isinstance(prompt, list):
    prompt = messages(where, prompt)
  # Tables have every field in every row.
  about = {n: fields[n] for n in _ABOUT if fields.get(n) is not None}
  for name, value in about.items():
    good, what = _ABOUT[name]
    if not good(value):
      raise errors.InputError(
        f'{where}: the field "{name}" is {printing.short(value)}, but it has to '
        f'be {what}. Correct it, or leave it out.'
      )
  template = arguments(where, fields, prompt)
  return Prompt(str(fields['id']), prompt, template, about)


def known(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a record in this form that are read."""
  return {n: record[n] for n in (*_READ, *_ABOUT) if n in record}


def parsed(line: bytes, where: str) -> dict[str, Any]:
  """Returns the object of a line, or raises an error that says `where`."""
  try:
    fields = files.parse_json(line)
  except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
    raise errors.InputError(
      f'{where}: not JSON ({error}). Each line must be one object; '
      'correct or remove this line.'
    ) from error
  if not isinstance(fields, dict):
    raise errors.InputError(
      f'{where}: a JSON object was expected, found '
      f'{type(fields).__name__}; write one object a line.'
    )
  return fields


def messages(where: str, values: Sequence[Any]) -> list[dict[str, Any]]:
  """Returns messages, checked: each has a role, and a content or calls tools.

  A content is a text or a list of parts, as some templates take it. Other
  fields are the template's matter. Raises InputError, which begins with
  `where`.

  >>> messages('prompt', [{'role': 'user', 'content': 'Hi'}])
  [{'role': 'user', 'content': 'Hi'}]
  """
  if not values:
    raise errors.InputError(f'{where} has no messages; give at least one.')
  for one in values:
    fault = _fault(one)
    if fault:
      raise errors.InputError(
        f'{where} has the message {printing.short(one)}, {fault}: role and '
        'content of a message have to be texts (the content may be a list of '
        'parts, and none beside tool_calls).'
      )
  found = [dict(one) for one in values]
  try:
    json.dumps(found)
  except (TypeError, ValueError) as error:
    raise errors.InputError(
      f'{where} has a message that is no JSON ({error}); give texts, numbers, '
      'lists and dicts of them.'
    ) from error
  return found


def _fault(message: Any) -> str:
  """Returns what is wrong with a message, '' if nothing is."""
  if not isinstance(message, Mapping):
    return 'which is no object'
  if not isinstance(message.get('role'), str):
    return 'whose role is wrong' if 'role' in message else 'which has no role'
  content = message.get('content')
  if content is None:
    return '' if message.get('tool_calls') else 'which has no content'
  parts = isinstance(content, list) and all(
    isinstance(part, Mapping) for part in content
  )
  return '' if parts or isinstance(content, str) else 'whose content is wrong'


def arguments(
  where: str, fields: Mapping[str, Any], prompt: Any
) -> dict[str, Any]:
  """Returns the arguments of the chat template that stand beside a prompt."""
  found = {}
  if isinstance(prompt, list) and fields.get('tools') is not None:
    found['tools'] = fields['tools']
  for name in _ARGUMENTS:
    value = fields.get(name)
    if isinstance(value, Mapping):
      found |= value
    elif value is not None and name != 'template':  # that may be anything
      raise errors.InputError(
        f'{where}: the field "{name}" is {printing.short(value)}, but it has '
        'to be an object, such as {"enable_thinking": false}.'
      )
  return found


def repeated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
  """Returns every prompt `count` times, each time under another id.

  The first keeps its id, so that a run may go on with more completions of a
  prompt than it began with. Raises InputError where an id would stand twice.

    >>> [(one.id, one.text) for one in repeated([Prompt('a', 'Hello')], 2)]
    [('a', 'Hello'), ('a#2', 'Hello')]
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


def text_hash(prompt: Any) -> str:
  """Returns 16 hex digits of SHA-256 over a prompt, whitespace normalised.

  Of messages over what the user says (over all, if it is nothing), so that one
  question is one prompt, under whatever system prompt.
  """
  normalised = ' '.join(said(prompt).split())
  digest = hashlib.sha256(normalised.encode('utf-8', 'surrogatepass'))
  return digest.hexdigest()[:16]


def said(prompt: Any) -> str:
  """Returns a text, or what the user says in messages (else what anybody does)."""
  if isinstance(prompt, str):
    return prompt
  chat = prompt
  users = [one for one in chat if one['role'] == 'user']
  texts = []
  for one in users or chat:
    content = one.get('content') or ''
    parts = [{'text': content}] if isinstance(content, str) else content
    texts += [str(part.get('text', '')) for part in parts]
  return '\n'.join(texts)
