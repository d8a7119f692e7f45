"""What many tests share: where things are, and the programs in this process."""

import dataclasses
import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Run:
  """What a program did."""

  code: int
  out: str
  err: str

  @property
  def json(self) -> dict:
    """The object on the last line of stdout."""
    return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
  """The root of the repository."""
  return ROOT


@pytest.fixture(scope='session')
def tiny(root) -> str:
  """The flag that takes the smallest recipe."""
  return f'--config={root}/configs/tiny.py:smoke'


@pytest.fixture
def specdiff(capsys):
  """Runs `specdiff ARGS` in this process: no second start of Python and jax."""
  from specdiff_jax import __main__

  def run(*argv: str) -> Run:
    capsys.readouterr()
    code = __main__.main([str(arg) for arg in argv])
    sys.stdout.flush()
    done = capsys.readouterr()
    return Run(code, done.out, done.err)

  return run
