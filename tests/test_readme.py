"""What the README says can be typed, runs; what it names, exists."""

import pathlib
import re
import shlex

import pytest

from specdiff_jax.cli import aot
from specdiff_jax.cli import bench
from specdiff_jax.cli import collect
from specdiff_jax.cli import convert
from specdiff_jax.cli import decode
from specdiff_jax.cli import distill
from specdiff_jax.cli import inspect
from specdiff_jax.cli import ngram
from specdiff_jax.cli import prompts
from specdiff_jax.cli import report
from specdiff_jax.cli import sweep
from specdiff_jax.cli import verify

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = {
    'decode': decode, 'bench': bench, 'collect': collect, 'distill': distill,
    'verify': verify, 'inspect': inspect, 'convert': convert, 'aot': aot,
    'sweep': sweep, 'prompts': prompts, 'ngram': ngram,
    'report': report,
}  # fmt: skip


def blocks(language: str) -> list[str]:
  """Returns the fenced blocks of a language."""
  text = (ROOT / 'README.md').read_text()
  found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S)
  return [block for name, block in found if name == language]


def commands() -> list[list[str]]:
  """Returns every `python -m specdiff_jax ...` of the README, in order."""
  lines = [line for block in blocks('bash') for line in block.splitlines()]
  prefix = 'python -m specdiff_jax '
  return [shlex.split(l[len(prefix) :]) for l in lines if l.startswith(prefix)]


def test_it_shows_every_subcommand():
  assert {argv[0] for argv in commands()} >= set(PROGRAMS)


@pytest.mark.parametrize('argv', commands(), ids=' '.join)
def test_commands_parse(argv, monkeypatch):
  monkeypatch.chdir(ROOT)
  if argv != ['--help']:
    PROGRAMS[argv[0]].COMMAND.parse(argv[1:])


def test_commands_of_the_tiny_recipe_run(specdiff, tmp_path):
  ran = set()
  for argv in commands():
    if '--config=configs/tiny.py' not in argv:
      continue
    small = [
      arg.replace('configs/tiny.py', f'{ROOT}/configs/tiny.py:smoke').replace(
        'runs/tiny', f'{tmp_path}/tiny'
      )
      for arg in argv
    ]
    run = specdiff(*small)
    assert run.code == 0, run.err
    ran.add(argv[0])
  assert ran == {'decode', 'bench', 'distill', 'sweep'}


def test_python_runs(monkeypatch, capsys):
  """With a verifier that is always there, for which no drafter is shipped."""
  monkeypatch.chdir(ROOT)
  assert blocks('python')
  for block in blocks('python'):
    here = block.replace("'quickstart'", "'random:tiny'")
    here = here.replace("'specdiff', verifier", "'lookup', verifier")
    assert here.count('random:tiny') == here.count('lookup') == 1
    exec(compile(here, 'README.md', 'exec'), {})
  assert capsys.readouterr().out.strip()


def test_scripts_and_files_exist():
  for line in '\n'.join(blocks('bash')).splitlines():
    if line.startswith('./'):
      assert (ROOT / line.split()[0]).stat().st_mode & 0o100, line
  tree = blocks('')[-1]
  folder = ROOT
  for line in tree.splitlines():
    name = line.split()[0]
    if not line.startswith(' '):
      folder = ROOT / name
      assert folder.is_dir(), name
    else:
      assert (folder / name).exists(), name
