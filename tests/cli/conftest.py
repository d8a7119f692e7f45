"""What the tests of programs that train share."""

import pytest


@pytest.fixture(scope='session')
def data(tmp_path_factory, root):
  """Trajectories of the tiny verifier, collected once."""
  from specdiff_jax import __main__

  workdir = tmp_path_factory.mktemp('trajectories')
  code = __main__.main([
      'collect', f'--config={root}/configs/tiny.py:smoke',
      f'--prompts={root}/configs/prompts/tiny.jsonl', f'--workdir={workdir}',
  ])  # fmt: skip
  assert code == 0
  return workdir
