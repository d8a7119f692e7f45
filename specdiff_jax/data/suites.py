"""Standard sets of prompts, in the forms in which others publish them.

A suite turns a record of its set into a line of a prompt file (`data.prompts`),
with what an answer is checked against beside the prompt. A file whose records
have `id` and `prompt` is in our own form and is taken as it is.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import os
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.data import prompt_sources
from specdiff_jax.data import prompts as prompts_lib

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Suite:
  """A standard set of prompts.

  Attributes:
    fields: returns the fields of a prompt line of a record; KeyError names a
      field of the set that the record lacks.
    get: where the set's public file is, and what it looks like.
    tfds: its name in tensorflow_datasets; '' where that lacks it.
    split: of TFDS.
  """

  fields: Callable[[Record], dict[str, Any]]
  get: str
  tfds: str = ''
  split: str = 'test'


def _gsm8k(record: Record) -> dict[str, Any]:
  return {'prompt': record['question'], 'reference': record['answer']}


def _math(record: Record) -> dict[str, Any]:
  answer = record.get('solution') or f'\\boxed{{{record["answer"]}}}'
  found = {'prompt': record['problem'], 'reference': answer}
  if 'unique_id' in record:
    found['id'] = record['unique_id']
  if 'subject' in record:
    found['task'] = f'math500/{record["subject"]}'
  return found


def _humaneval(record: Record) -> dict[str, Any]:
  return {
    'id': record['task_id'],
    'prompt': record['prompt'],
    'entry_point': record['entry_point'],
    'test': record['test'],
    'reference': record.get('canonical_solution', ''),
  }


def _mbpp(record: Record) -> dict[str, Any]:
  asked = record['text'] if 'text' in record else record['prompt']
  if isinstance(record['test_list'], str):
    raise ValueError('its test_list is a text, and no list of texts')
  tests = list(record['test_list'])
  told = '\n'.join(tests)
  before = record.get('test_setup_code') or record.get('test_imports') or ()
  return {
    'id': f'mbpp-{record["task_id"]}',
    'prompt': f'{asked}\n\nYour code should pass these tests:\n\n{told}',
    'test_list': [*([before] if isinstance(before, str) else before), *tests],
    'reference': record.get('code', ''),
  }


def _turns(suite: str, record: Record, task: str) -> dict[str, Any]:
  """Returns the fields of one of FastChat's questions, which have turns."""
  if isinstance(record['turns'], str):
    raise ValueError('its turns are a text, and no list of texts')
  turns = list(record['turns'])
  return {
    'id': f'{suite}-{record["question_id"]}',
    'task': f'{suite}/{task}',
    'prompt': turns[0],
    'turns': turns,
  }


def _mt_bench(record: Record) -> dict[str, Any]:
  return _turns('mt_bench', record, record['category'])


def _spec_bench(record: Record) -> dict[str, Any]:
  # MT-Bench's categories are one of its six tasks.
  task = record['category']
  return _turns(
    'spec_bench', record, 'multi-turn' if task in _MT_BENCH else task
  )


_MT_BENCH = (
    'writing', 'roleplay', 'reasoning', 'math', 'coding', 'extraction', 'stem',
    'humanities',
)  # fmt: skip


def _alpaca(record: Record) -> dict[str, Any]:
  more = record.get('input') or ''
  asked = record['instruction']
  return {'prompt': f'{asked}\n\n{more}' if more else asked}


def _livecodebench(record: Record) -> dict[str, Any]:
  begin = record.get('starter_code') or ''
  begin = f'\n\nBegin with this code:\n\n```python\n{begin}\n```' * bool(begin)
  return {
    'id': record['question_id'],
    'task': f'livecodebench/{record.get("difficulty", "any")}',
    'prompt': f'{record["question_content"]}{begin}',
  }


def _gpqa(record: Record) -> dict[str, Any]:
  right = str(record['Correct Answer']).strip()
  others = [str(record[f'Incorrect Answer {i}']).strip() for i in (1, 2, 3)]
  # In an order that hangs on the question alone, else the first is right.
  texts = sorted([right, *others], key=lambda text: _hash(record, text))
  letters = 'ABCD'
  told = '\n'.join(f'({a}) {text}' for a, text in zip(letters, texts))
  found = {
    'prompt': f'{record["Question"]}\n\n{told}\n\nAnswer with the letter.',
    'choices': letters,
    'reference': letters[texts.index(right)],
  }
  if record.get('Record ID'):
    found['id'] = record['Record ID']
  return found


def _hash(record: Record, text: str) -> str:
  return hashlib.sha256(f'{record["Question"]}\0{text}'.encode()).hexdigest()


def _own(record: Record) -> dict[str, Any]:
  return {'prompt': record['prompt']}


# It ships; the package's configs are a link in a clone, a folder in a wheel.
MIXED = os.path.join(
  os.path.dirname(os.path.dirname(__file__)), 'configs/prompts/mixed.jsonl'
)

SUITES: Mapping[str, Suite] = {
  'gsm8k': Suite(
    _gsm8k,
    'https://github.com/openai/grade-school-math (test.jsonl: question, '
    'answer)',
    tfds='gsm8k',
  ),
  'math500': Suite(
    _math,
    'https://huggingface.co/datasets/HuggingFaceH4/MATH-500 (test.jsonl: '
    'problem, solution or answer)',
  ),
  'humaneval': Suite(
    _humaneval,
    'https://github.com/openai/human-eval (HumanEval.jsonl.gz: task_id, '
    'prompt, test, entry_point)',
  ),
  'mbpp': Suite(
    _mbpp,
    'https://github.com/google-research/google-research/tree/master/mbpp '
    '(mbpp.jsonl: task_id, text, test_list)',
    tfds='mbpp',
  ),
  'mt_bench': Suite(
    _mt_bench,
    'https://github.com/lm-sys/FastChat (fastchat/llm_judge/data/mt_bench/'
    'question.jsonl: question_id, category, turns)',
  ),
  'spec_bench': Suite(
    _spec_bench,
    'https://github.com/hemingkx/Spec-Bench (data/spec_bench/question.jsonl: '
    'question_id, category, turns)',
  ),
  'alpaca': Suite(
    _alpaca,
    'https://huggingface.co/datasets/tatsu-lab/alpaca (parquet: instruction, '
    'input), or any file of that form',
  ),
  'livecodebench': Suite(
    _livecodebench,
    'https://huggingface.co/datasets/livecodebench/code_generation_lite '
    '(test.jsonl: question_id, question_content, starter_code)',
  ),
  'gpqa': Suite(
    _gpqa,
    'https://huggingface.co/datasets/Idavidrein/gpqa (gpqa_diamond.csv: '
    'Question, Correct Answer, Incorrect Answer 1 to 3)',
  ),
  'mixed': Suite(
    _own, 'the package: it ships, as configs/prompts/mixed.jsonl (id, prompt)'
  ),
}


def read(
  name: str, path: str = '', limit: int | None = None
) -> list[prompts_lib.Prompt]:
  """Returns prompts of one of `SUITES`, of its file or of TFDS ('').

  Raises InputError, which says where to get it, where it is not known, not
  there, or not of its form.

  Example: read('mixed', limit=5)
  """
  suite = SUITES.get(name)
  if suite is None:
    raise errors.InputError(
      f'There is no suite {name!r}; there are {printing.names(SUITES)}.'
    )
  source = path or (MIXED if name == 'mixed' else suite.tfds)
  if not source:
    raise errors.InputError(
      f'tensorflow_datasets does not have {name}; give its file, --path=FILE (of '
      f'bench) or --from=FILE (of prompts). Get it from {suite.get}.'
    )
  if path and not os.path.lexists(path):
    raise errors.InputError(
      f'{path} is not there. Get {name} from {suite.get}.'
    )
  found: dict[str, prompts_lib.Prompt] = {}
  for number, (where, record) in enumerate(
    prompt_sources.records(source, suite.split)
  ):
    if limit is not None and len(found) >= limit:
      break
    fields = _fields(name, suite, record, where)
    fields.setdefault('id', f'{name}-{number}')
    fields.setdefault('task', name)
    one = prompts_lib.parse(prompts_lib.encoded(where, fields), where)
    if one.id in found:
      raise errors.InputError(
        f'{where}: the id {one.id!r} stands there twice; ids must be unique. '
        f'Get the file again from {suite.get}.'
      )
    found[one.id] = one
  if not found and (limit is None or limit > 0):
    raise errors.InputError(
      f'{source} holds no prompts. Get {name} from {suite.get}.'
    )
  return list(found.values())


def write(
  path: str,
  name: str,
  source: str = '',
  limit: int | None = None,
  *,
  overwrite: bool = False,
) -> int:
  """Writes a suite as a prompt file with what answers are checked against.

  Returns the number of prompts. See `read`.
  """
  prompts = read(name, source, limit)
  with prompt_sources.new_file(path, overwrite) as file:
    for one in prompts:
      fields = {'id': one.id, 'prompt': one.text, **one.about}
      if one.template:
        fields['chat_template_kwargs'] = dict(one.template)
      file.write(json.dumps(fields).encode() + b'\n')
  return len(prompts)


def _fields(name, suite: Suite, record: Record, where: str) -> dict[str, Any]:
  if 'id' in record and ('prompt' in record or 'messages' in record):
    return prompts_lib.known(record)  # our own form
  try:
    return suite.fields(record)
  except (KeyError, TypeError, ValueError, IndexError) as error:
    lacks = f'lacks {error}' if isinstance(error, KeyError) else f'({error})'
    raise errors.InputError(
      f'{where}: this is no record of {name}: it {lacks}, and has '
      f'{printing.names(sorted(map(str, record))) or "nothing"}. '
      f'Get the set from {suite.get}.'
    ) from error
