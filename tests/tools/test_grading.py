"""Right and wrong answers, and generated code that misbehaves."""

import os
import subprocess
import sys
import time

import pytest

from specdiff_jax.data import prompts
from specdiff_jax.data import suites
from specdiff_jax.tools.grading import answers
from specdiff_jax.tools.grading import grading
from specdiff_jax.tools.grading import programs


@pytest.mark.parametrize(
  'text, value',
  (
    ('The answer is 7.', 7),
    ('#### 1,234\n', 1234),
    ('It is 8, not 9. #### 8 eggs', 8),
    ('$18.50', 18.5),
    ('-3', -3),
    ('1/2', 0.5),
    ('none', None),
    ('1/0', None),
  ),
)
def test_numbers(text, value):
  assert answers.number(text) == value


@pytest.mark.parametrize(
  'text, same',
  (
    ('So it is $\\boxed{\\frac{1}{2}}$.', True),
    ('Thus \\boxed{0.5}', True),
    ('\\boxed{\\dfrac12}', True),
    ('\\boxed{2}', False),
    ('I cannot say.', False),
  ),
)
def test_expressions(text, same):
  pytest.importorskip('math_verify', reason='the extra [grading]')
  assert answers.same_expression(text, '\\boxed{\\frac12}') is same


def test_code_in_texts():
  asked = 'from typing import List\n\ndef f(x: List) -> int:\n  """Adds."""\n'
  whole = 'def f(x):\n  return sum(x)\n'
  continued = '  return sum(x)\n'
  for text in (
    f'Sure:\n```python\n{whole}```\nIt adds.',
    f'```py\nprint(1)\n```\n\n```python\n{whole}```',
    f'Here it is:\n{whole}',
    continued,
    f'```python\n{continued}```',
    f'```python\n{whole}',  # cut off
    f'{whole}\nIt adds up, as you can see.',
    f'{continued}\nassert f([1, 2]) == 3\nassert f([1, 2',
  ):
    source = programs.code(text, asked, 'f')
    assert programs.run(f'{source}\nassert f([1, 2]) == 3'), text
    assert not programs.run(f'{source}\nassert f([1, 2]) == 4'), text


FAULTY = {
  'loops': 'while True: pass',
  'sleeps': 'import time\ntime.sleep(60)',
  'forks': 'import os\nos.fork()',
  'spawns': 'import os\nos.posix_spawn("/bin/true", ["true"], {})',
  'runs': 'import subprocess\nsubprocess.run(["true"])',
  'processes': 'import multiprocessing',
  'writes': 'open("x", "w")',
  'writes there': 'open({there!r}, "w").write("x")',
  'creates': 'import os\nos.open({there!r}, os.O_CREAT | os.O_WRONLY)',
  'removes': 'import os\nos.remove({kept!r})',
  'sockets': 'import socket\nsocket.socket()',
  'eats memory': 'x = [0] * 10 ** 10',
  'leaves': 'import sys\nsys.exit(0)',
  'leaves hard': 'import os\nos._exit(0)',
  'kills': 'import os\nos.kill(os.getppid(), 9)',
  'limits its parent': 'import os, resource\n'
  'resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (1, 1))',
  'kills by a descriptor': 'import os, signal\n'
  'signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)',
  'threads': 'import threading, time\n'
  'threading.Thread(target=time.sleep, args=(60,)).start()',
  'is no Python': 'def f(:',
  'is wrong': 'assert 1 == 2',
}


@pytest.mark.parametrize('name', FAULTY)
def test_faulty_programs_fail_and_are_contained(name, tmp_path):
  there, kept = tmp_path / 'there', tmp_path / 'kept'
  kept.write_text('mine')
  source = FAULTY[name].replace('{there!r}', repr(str(there)))
  source = source.replace('{kept!r}', repr(str(kept)))
  begin = time.monotonic()
  assert not programs.run(source, seconds=2)
  assert time.monotonic() - begin < 20  # not the minute that it wants
  assert not there.exists()
  assert kept.read_text() == 'mine'


def test_good_programs_pass():
  assert programs.run('import math, json, re\nassert math.sqrt(4) == 2')
  assert programs.run(f'assert open({os.path.abspath(__file__)!r}).read()')
  assert programs.run(  # looked up in its module
    'import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n  x: "int"\n'
    'assert pickle.loads(pickle.dumps(A(1))) == A(1)'
  )


def test_what_an_answer_does_as_a_program_is_left_out():
  assert programs.run('if __name__ == "__main__":\n  input()')


def test_a_program_ends_though_its_parent_was_killed(tmp_path):
  fifo = tmp_path / 'open as long as it lives'
  os.mkfifo(fifo)
  program = f'x = open({str(fifo)!r})\nimport time\ntime.sleep(60)'
  parent = subprocess.Popen([
      sys.executable, '-c', 'import sys\n'
      'from specdiff_jax.tools.grading import programs\n'
      'programs.run(sys.argv[1], seconds=2)', program,
  ])  # fmt: skip
  with open(fifo, 'w') as end:  # waits until the program opens it
    parent.kill()
    begin = time.monotonic()
    with pytest.raises(BrokenPipeError):
      while time.monotonic() - begin < 30:
        os.write(end.fileno(), b'x')
        time.sleep(0.1)


def test_what_ships_grades_its_own_references():
  """And none of its neighbours': the control."""
  rows = [one for one in suites.read('mixed') if grading.gradable(one)]
  kinds = {one.about['task'] for one in rows}
  assert kinds >= {'arithmetic', 'code'}
  for before, one in zip([rows[-1], *rows], rows):
    task = one.about['task']
    if task == 'mathematics':
      pytest.importorskip('math_verify', reason='the extra [grading]')
    assert grading.grade(one, one.about['reference']), one.id
    other = before.about['reference']
    if before.about['task'] == task and other != one.about['reference']:
      same = answers.number(other) == answers.number(one.about['reference'])
      assert same or not grading.grade(one, other), one.id


def test_prompts_that_say_nothing_are_not_graded():
  one = prompts.Prompt('a', 'Say something.', about={'reference': 'Anything.'})
  assert not grading.gradable(one)
  assert grading.grade(one, 'Anything.') is None


def test_what_is_missing_costs_its_prompts_alone(monkeypatch):
  latex = prompts.Prompt('a', 'Why?', about={'reference': '\\boxed{2}'})
  number = prompts.Prompt('b', 'How many?', about={'reference': '#### 2'})
  monkeypatch.setattr(answers, 'comparable', lambda: True)
  assert grading.gradable(latex) and not grading.ungraded([latex, number])
  monkeypatch.setattr(answers, 'comparable', lambda: False)
  assert not grading.gradable(latex) and grading.gradable(number)
  assert '1 prompts are not graded' in grading.ungraded([latex, number])
  assert 'pip install math-verify' in grading.ungraded([latex])


def test_letters():
  one = prompts.Prompt('a', 'Why?', about={'choices': 'ABCD', 'reference': 'C'})
  assert grading.grade(one, 'The answer is (C).')
  assert not grading.grade(one, 'Not C, the answer is B.')
  first = prompts.Prompt('b', '?', about={'choices': 'ABCD', 'reference': 'A'})
  for text in '(A)', 'A', 'So it is\n**A**\n', 'A) 12', 'It is A.', 'answer: A':
    assert grading.grade(first, text), text
  for text in 'A cat.', 'A good question', 'Not A: B.', 'I do not know.':
    assert not grading.grade(first, text), text
