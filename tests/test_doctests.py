"""The examples in docstrings are run; each module that has some is a case."""

import doctest
import importlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'specdiff_jax'


def modules():
  """Returns the names of the modules with an example."""
  for path in sorted(PACKAGE.rglob('*.py')):
    if '>>> ' in path.read_text():
      parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
      slow = [pytest.mark.slow] * (parts[1] in ('api', 'testing'))
      yield pytest.param('.'.join(parts), marks=slow)


@pytest.mark.parametrize('name', modules())
def test_examples_run(name):
  failed, tried = doctest.testmod(importlib.import_module(name))
  assert tried and not failed
