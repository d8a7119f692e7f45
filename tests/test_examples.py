"""The examples run, and the notebook without jupyter."""

import json
import runpy

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
  'name, words',
  [
    ('decode', ['ar: ', 'lookup: ']),
    ('my_drafter', ['keeps the contract', 'tokens per call']),
    ('distill_my_model', ['drafter.safetensors: loss', 'tokens per call']),
  ],
)
def test_an_example_runs(root, monkeypatch, tmp_path, capsys, name, words):
  monkeypatch.chdir(tmp_path)
  module = runpy.run_path(str(root / 'examples' / f'{name}.py'))
  module['main']([])
  out = capsys.readouterr().out
  assert all(word in out for word in words)


def test_my_drafter_is_short(root):
  source = (root / 'examples' / 'my_drafter.py').read_text()
  body = source[source.index('@dataclasses') : source.index('def main')]
  assert len(body.strip().splitlines()) <= 60


def test_the_tour_runs(root, monkeypatch, tmp_path, capsys):
  import matplotlib
  import matplotlib.pyplot as plt

  matplotlib.use('agg')
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('SPECDIFF_VERIFIER', raising=False)
  cells = json.loads((root / 'examples' / 'tour.ipynb').read_text())['cells']
  assert not any(cell.get('outputs') for cell in cells)
  names = {}
  for cell in cells:
    if cell['cell_type'] == 'code':
      exec(compile(''.join(cell['source']), 'tour.ipynb', 'exec'), names)
  assert len(plt.get_fignums()) == 2
  plt.close('all')
  assert 'tokens per call' in capsys.readouterr().out
