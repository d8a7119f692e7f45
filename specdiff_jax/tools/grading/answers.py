"""Final answers in texts: numbers, mathematical expressions, letters."""

from collections.abc import Sequence
import fractions
import importlib.util
import logging
import re
import threading

from specdiff_jax.core import errors

MISSING = (
  'Answers in LaTeX are compared by math-verify, which is not installed: '
  'pip install math-verify.'
)
_SECONDS, _ENDING = 5, 2000  # of a comparison; characters that hold an answer
_NUMBER = re.compile(r'-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+')


def number(text: str) -> fractions.Fraction | None:
  """Returns the last number of a text, None if it has none.

  Behind the last `####`, as GSM8K's answers have it, if there is one.

  >>> number('That is 3 + 1,200.50 = **$1,203.50**.')
  Fraction(2407, 2)
  >>> number('She has 7 left.' + chr(10) + '#### 7') == 7
  True
  """
  text = text.rpartition('####')[2]
  found = _NUMBER.findall(text)
  if not found:
    return None
  digits = found[-1].replace(',', '')
  try:
    top, _, below = digits.partition('/')
    return fractions.Fraction(top) / fractions.Fraction(below or 1)
  except (ValueError, ZeroDivisionError):
    return None


def comparable() -> bool:
  """Returns whether `same_expression` can compare."""
  return importlib.util.find_spec('math_verify') is not None


def same_expression(text: str, reference: str) -> bool:
  r"""Returns whether a text's last expression equals the reference's.

  As `math-verify` reads LaTeX and compares: `\frac{1}{2}` is 0.5.

  Raises:
    InputError: math-verify is not installed.
  """
  try:
    import math_verify
  except ImportError as error:
    raise errors.InputError(MISSING) from error
  # Its time limit is a signal, which the main thread alone can have.
  main = threading.current_thread() is threading.main_thread()
  limit = _SECONDS if main else 0
  logging.getLogger('math_verify').setLevel(logging.CRITICAL)
  gold = math_verify.parse(reference[-_ENDING:], parsing_timeout=limit)
  given = math_verify.parse(text[-_ENDING:], parsing_timeout=limit)
  return bool(math_verify.verify(gold, given, timeout_seconds=limit))


def letter(text: str, choices: Sequence[str]) -> str | None:
  r"""Returns the choice that a text ends on, None if it names none.

  What stands behind the last "answer", else the last letter that stands alone: in
  parentheses, before a point, colon or parenthesis, or on a line of its own.

  >>> letter('(A) is wrong, so the answer is (C), not a guess.', 'ABCD')
  'C'
  >>> letter('A good question: nobody knows.', 'ABCD')
  """
  one = f'[{"".join(choices)}]'
  behind = re.findall(
    rf'(?i:answer)[^A-Za-z]*(?:is|:)?[^A-Za-z]*({one})\b', text
  )
  alone = re.findall(
    rf'(?m)\(({one})\)|(?<![\w\'])({one})[.:)](?=\s|\*|$)|^\W*({one})\W*$', text
  )
  alone = [''.join(groups) for groups in alone]
  found = behind or alone
  return found[-1] if found else None
