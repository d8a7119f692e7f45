"""The tools as a library: objects come back, and nothing is printed."""

import json

import pytest

from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe_file
from specdiff_jax.tools.bench import runner
from specdiff_jax.tools.exactness import certificate
from specdiff_jax.tools.exactness import plan
from specdiff_jax.tools.inspect import describe
from specdiff_jax.tools.inspect import report


@pytest.fixture(scope='module')
def given(root):
  """(config, verifier, prompts) of the smallest recipe, as verify takes it."""

  config = plan.settle(
    recipe_file.load_recipe(f'{root}/configs/tiny.py:smoke'), False
  )
  return config, decoding.verifier(config), decoding.prompts(config, None, 1)


def test_a_bench(given, capsys):
  warm = []
  found = runner.run(
    *given, ('lookup',), 1, trace=True,
    on_warm=lambda *pair: warm.append(pair),
  )  # fmt: skip
  assert [row.system for row in found.rows] == ['lookup'] and found.passed
  assert found.rows[0].prompts == len(given[2]) == 1
  assert warm[0][0].name == 'lookup'
  told = json.loads(json.dumps(found.to_json()))
  assert told['rounds'] == 1
  [example] = told['example']
  assert (example['system'], example['id']) == ('lookup', given[2][0].id)
  system, request = warm[0]
  [text] = [system.cut(made)[0] for made in system.decode([request])]
  assert ''.join(piece['text'] for piece in example['trace']) == text
  assert found.tables()[0].rows[0][0] == 'lookup'
  assert capsys.readouterr() == ('', '')


def test_a_certificate(given, capsys):
  found = certificate.verify(*given, ('lookup',))
  assert found.passed and found.facts['mode'] == 'exact'
  told = json.loads(json.dumps(found.to_json()))
  assert told['passed'] and told['schema'] == 1
  assert 'token for token' in found.verdict()
  assert capsys.readouterr() == ('', '')


def test_a_model_in_words(capsys):
  told = describe.describe('preset:qwen2.5_72b')
  told['mesh'] = report.fit(
    'preset:qwen2.5_72b', {'data': 1, 'model': 4}, 80, 'bfloat16'
  )
  lines = dict(report.lines(told))
  assert told['mesh']['fits'] and 'fits in 80 GiB' in lines['each chip']
  assert lines['parameters'].startswith('72,')
  assert capsys.readouterr() == ('', '')
