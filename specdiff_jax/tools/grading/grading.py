"""Whether a completion answers its prompt, by what the prompt says of itself."""

from collections.abc import Sequence
from typing import Any

from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.tools.grading import answers
from specdiff_jax.tools.grading import programs


def gradable(prompt: prompts_lib.Prompt) -> bool:
  """Returns whether `grade` says yes or no of it."""
  kind = _kind(prompt.about)
  return kind is not None and (kind != 'expression' or answers.comparable())


def ungraded(prompts: Sequence[prompts_lib.Prompt]) -> str:
  """Returns what is not graded for want of a package, in a sentence; or ''."""
  if answers.comparable():
    return ''
  count = sum(_kind(one.about) == 'expression' for one in prompts)
  return f'{count} prompts are not graded. {answers.MISSING}' if count else ''


def grade(prompt: prompts_lib.Prompt, text: str) -> bool | None:
  r"""Returns whether a completion is right, None where it cannot be told.

  Programs are run against `test` (HumanEval) or `test_list` (MBPP), confined;
  letters are compared (`choices`), numbers (a reference with `####`, GSM8K) and
  expressions (`\boxed`, MATH).
  """
  about = prompt.about
  match _kind(about):
    case 'program':
      asked = prompt.text if isinstance(prompt.text, str) else ''
      name = str(about.get('entry_point', ''))
      source = programs.code(text, asked, name)
      return programs.run(f'{source}\n{_tests(about, name)}\n')
    case 'letter':
      return answers.letter(text, about['choices']) == about['reference']
    case 'number':
      right = answers.number(about['reference'])
      return right is not None and answers.number(text) == right
    case 'expression':
      return answers.same_expression(text, about['reference'])
  return None


def _kind(about: Any) -> str | None:
  reference = about.get('reference')
  if about.get('test_list') or about.get('test') and about.get('entry_point'):
    return 'program'
  if not isinstance(reference, str):
    return None
  if about.get('choices'):
    return 'letter'
  if '####' in reference:
    return 'number'
  return 'expression' if '\\boxed' in reference else None


def _tests(about: Any, name: str) -> str:
  if about.get('test_list'):
    return '\n'.join(map(str, about['test_list']))
  return f'{about["test"]}\ncheck({name})'
