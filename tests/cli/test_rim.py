"""The rim: consoles, pipes, disks and platforms; and messages like ours."""

import errno
import json
import os
import subprocess
import sys
import types

import pytest
import rich.table

from specdiff_jax import __main__
from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import failures
from specdiff_jax.core import errors
from specdiff_jax.recipes import recipe_file

FORGED = 'dir[/x]\x1b[2J\nspecdiff: done :smile: \u202e'
SAFE = r'dir[/x]\x1b[2J\nspecdiff: done :smile: \u202e'


def program(monkeypatch, body):
  """Makes `inspect` another program."""
  monkeypatch.setitem(
    sys.modules,
    'specdiff_jax.cli.inspect',
    types.SimpleNamespace(
      COMMAND=types.SimpleNamespace(run=lambda argv, body: body(argv)),
      body=body,
    ),
  )


def raising(error):
  def body(argv):
    raise error

  return body


def test_messages_cannot_be_forged(specdiff, monkeypatch):
  program(monkeypatch, raising(errors.InputError(f'{FORGED} is missing')))
  run = specdiff('inspect')
  assert run.code == 2
  assert run.err == f'specdiff inspect: {SAFE} is missing\n'
  run = specdiff(FORGED)
  assert run.code == 2 and len(run.err.splitlines()) == 1
  assert '\x1b' not in run.err


def test_names_are_no_markup_and_move_no_cursor(capsys):
  table = rich.table.Table(title=FORGED)
  table.add_column(FORGED)
  table.add_row(FORGED)
  console.out().print(table)
  console.out().print(FORGED)
  console.say(FORGED)
  done = capsys.readouterr()
  assert done.out.count(SAFE) == 4 and '\x1b' not in done.out
  assert done.err == SAFE + '\n'


@pytest.mark.parametrize('terminal', [False, True])
def test_generated_text_is_escaped_on_a_terminal_only(
  capsys, monkeypatch, terminal
):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal, raising=False)
  console.text('a\tb\n\x1b[2J\u202e')
  wanted = 'a\tb\n' + ('\\x1b[2J\\u202e' if terminal else '\x1b[2J\u202e')
  assert capsys.readouterr().out == wanted


def test_progress_escapes_what_it_shows(monkeypatch):
  class Terminal:
    encoding, written = 'utf-8', ''

    def write(self, text):
      self.written += text

    def flush(self):
      pass

    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '200')
  with console.progress('[/a]\x1b]0;x', 2) as show:
    show(1, 2, '[/b]\x1b]0;y')
  assert r'[/a]\x1b]0;x' in terminal.written
  assert r'[/b]\x1b]0;y' in terminal.written
  assert '\x1b]0' not in terminal.written


REASONS = (
  (MemoryError(), 'not enough memory'),
  (RuntimeError('RESOURCE_EXHAUSTED: too much'), 'not enough memory'),
  (RuntimeError('INTERNAL: Out of memory allocating 9'), 'allocating 9'),
  (RuntimeError("can't start new thread"), 'not enough memory'),
  (ImportError('x.so: Cannot allocate memory'), 'not enough memory'),
  (OSError(errno.ENOSPC, 'No space left', 'a\nb'), r'a\nb: No space left'),
)


@pytest.mark.parametrize('error, words', REASONS, ids=lambda x: str(x)[:20])
def test_what_the_machine_lacks_is_told_in_one_line(
  specdiff, monkeypatch, error, words
):
  program(monkeypatch, raising(error))
  run = specdiff('inspect')
  assert run.code == 2 and run.out == ''
  assert len(run.err.splitlines()) == 1 and words in run.err


def test_memory_behind_another_error_is_told_too(specdiff, monkeypatch):
  def body(argv):
    try:
      raise MemoryError
    except MemoryError as error:
      raise ValueError('no batch') from error

  program(monkeypatch, body)
  assert 'not enough memory' in specdiff('inspect').err


def test_a_fault_of_ours_keeps_its_traceback(specdiff, monkeypatch):
  for error in (KeyError('x'), FileNotFoundError('y'), AssertionError()):
    program(monkeypatch, raising(error))
    with pytest.raises(type(error)):
      specdiff('inspect')


def test_a_platform_that_is_absent_is_named(monkeypatch):
  import jax

  def devices():
    raise RuntimeError("Unable to initialize backend 'cuda'")

  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  monkeypatch.setattr(failures, '_there', lambda: 'This machine has: cpu.')
  monkeypatch.setattr(jax, 'devices', devices)
  said = failures.reason(AssertionError())
  for word in ("JAX_PLATFORMS='cuda'", 'backend', 'has: cpu', '[cuda13]'):
    assert word in said


def start(root, *argv, shell=None, **environment):
  """Starts a program in a process of its own."""
  argv = [sys.executable, '-m', 'specdiff_jax', *argv]
  if shell:
    argv = ['bash', '-c', shell, 'bash', *argv]
  return subprocess.run(
    argv, capture_output=True, cwd=root, env={**os.environ, **environment}
  )


def test_a_reader_that_leaves_is_no_fault(root):
  for shell in (
    '"$@" | true; exit ${PIPESTATUS[0]}',
    '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}',
  ):
    done = start(root, 'bench', '--help', shell='sleep 0.1; ' + shell)
    assert done.returncode == 0 and done.stderr == b'', done


def test_a_reader_that_leaves_a_table_is_no_fault(root):
  """rich would exit with 1."""
  shell = '"$@" | true; exit ${PIPESTATUS[0]}'
  done = start(root, 'inspect', 'preset:llama2_7b', shell=shell)
  assert done.returncode == 0 and done.stderr == b'', done


def test_streams_that_are_closed_or_full(root):
  done = start(root, 'bench', '--help', shell='"$@" >&-')
  assert (done.returncode, done.stdout, done.stderr) == (0, b'', b'')
  done = start(root, 'bensh', shell='"$@" 2>&-')
  assert (done.returncode, done.stdout, done.stderr) == (2, b'', b'')
  done = start(root, 'bench', '--help', shell='"$@" >/dev/full')
  assert done.returncode == 2 and b'No space left' in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_console_that_knows_ascii_only(root):
  code = (
    'import sys; from specdiff_jax.cli import console, failures;'
    'import rich.table;'
    'failures.streams(); console.text("caf\\xe9 \\u6f22\\n");'
    'table = rich.table.Table(); table.add_column("\\u6f22");'
    'console.out().print(table); console.say("\\xe9")'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    cwd=root,
    env=os.environ | {'PYTHONIOENCODING': 'ascii', 'PYTHONUTF8': '0'},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(b'caf\\xe9 \\u6f22\n')
  assert done.stderr == b'\\xe9\n'


def test_bytes_of_arguments_that_are_no_text(root):
  """Python hands them on as half surrogates, which no stream encodes."""
  done = start(root, 'bench', b'--config=a\xff.py')
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
  assert rb'a\udcff.py' in done.stderr.replace(b'\\\\', b'\\')


def test_what_generation_config_asks_for_in_vain(
  tiny, tmp_path, capsys, monkeypatch
):
  from specdiff_jax.recipes import decoding

  config = recipe_file.load_recipe(tiny.removeprefix('--config='))
  assert decoding.not_applied(config) == {}  # of no directory
  config = config.change(verifier=str(tmp_path))
  assert decoding.not_applied(config) == {}
  (tmp_path / 'generation_config.json').write_text(json.dumps({
      'repetition_penalty': 1.1, 'no_repeat_ngram_size': 0, 'num_beams': 1,
      'bad_words_ids': [[3]], 'suppress_tokens': [], 'min_new_tokens': None,
      'temperature': 0.7, 'eos_token_id': 2,
  }))  # fmt: skip
  assert decoding.not_applied(config) == {
      'repetition_penalty': 1.1, 'bad_words_ids': [[3]],
  }  # fmt: skip
  loaded = types.SimpleNamespace(source='mine')
  monkeypatch.setattr(decoding, 'verifier', lambda *args, **more: loaded)
  assert command.verifier(config) is loaded
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1 and 'not applied' in said
  assert 'mine' in said and 'repetition_penalty=1.1, bad_words_ids' in said


def test_main_leaves_the_streams_usable(specdiff):
  assert specdiff('--help').out == __main__.usage()
  assert specdiff('').code == 2
