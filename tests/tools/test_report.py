"""The report: what it reads, what it refuses, and what a browser shows of it."""

import copy
import html.parser
import json
import shutil
import subprocess

import pytest

from specdiff_jax.core import errors
from specdiff_jax.tools.report import figures
from specdiff_jax.tools.report import page
from specdiff_jax.tools.report import results

_ENDS = {'not in top-K': [3, 1], 'wrong parent': [0, 0],
         'budget': [1, 0], 'end': [0, 1]}  # fmt: skip


def row(system, speedup, **more):
  return {
    'system': system, 'tokens_per_s': 20.0 * speedup, 'speedup': speedup,
    'tau': 1.3 * speedup, 'exact': True, 'cycles': 6, 'prompts': 4,
    'drafts': 1, 'cond': [0.7, 0.6, None], 'ends': _ENDS, 'r': 1.1,
    'c_draft': 0.2, 'cycle_overhead': 0.05, 'predicted_speedup': 1.1 * speedup,
    'break_even_tau': 1.3, **more,
  }  # fmt: skip


def bench(**more):
  plain = row('ar', 1.0, cond=[], ends={}, r=None, predicted_speedup=None)
  systems = [plain, row('specdiff', 2.1), row('tree', 1.7, drafts=4)]
  return {
    'schema': 1, 'verifier': 'model', 'dtype': 'float32', 'device': 'cpu',
    'temperature': 0.0, 'rounds': 2, 'systems': systems, **more,
  }  # fmt: skip


@pytest.fixture
def files(tmp_path):
  """Returns the paths of two results and of a run."""
  (tmp_path / 'gsm8k.json').write_text(f'a table\n{json.dumps(bench())}\n')
  hot = json.dumps(bench(temperature=1.0), indent=2)
  (tmp_path / 'gsm8k <hot>.json').write_text(hot)
  run = tmp_path / 'run'
  run.mkdir()
  lines = [{'step': 10}, {'step': 10, 'eval': {'tau': 1.5}},
           {'step': 20, 'eval': {'tau': 1.9}}]  # fmt: skip
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (run / 'metrics.jsonl').write_text(text + '{"step": 3')  # it is writing
  names = 'gsm8k.json', 'gsm8k <hot>.json', 'run'
  return [str(tmp_path / name) for name in names]


def test_all_that_results_have_is_drawn(files, tmp_path):
  found = results.read(files)
  assert [one.name for one in found.benches] == ['gsm8k', 'gsm8k <hot>']
  assert found.runs == [('run', [(10, 1.5), (20, 1.9)])]
  names = [one.name for one in figures.of(found)]
  assert names == ['speedup', 'acceptance', 'ends', 'cycle', 'prediction',
                   'temperature', 'distillation']  # fmt: skip
  path, folder = tmp_path / 'p.html', tmp_path / 'figures'
  folder.mkdir()
  page.write(found, str(path), str(folder))
  written = {one.name for one in folder.iterdir()}
  assert written == {f'{n}{e}' for n in names for e in ('.png', '.svg')}
  text = path.read_text()
  assert 'gsm8k 2.10&times; (specdiff)' in text
  assert 'gsm8k &lt;hot&gt;' in text and '<hot>' not in text
  assert 'Not exact' not in text
  assert 'http' not in text.split('base64')[0]  # nothing is fetched


def test_only_what_there_is_is_drawn(files, tmp_path):
  assert [f.name for f in figures.of(results.read(files[2:]))] == [
    'distillation'
  ]
  told = bench()
  for one in told['systems']:
    for key in ('r', 'cond', 'ends', 'predicted_speedup'):
      one.pop(key)
  path = tmp_path / 'old.json'
  path.write_text(json.dumps(told))
  found = results.read([str(path)])
  assert [f.name for f in figures.of(found)] == ['speedup']


def test_a_wrong_output_is_told_first(files, tmp_path):
  told = bench()
  told['systems'][1] |= {'exact': False, 'mismatched_rows': 3}
  told['systems'][2] |= {'exact': False, 'mismatched_rows': 2,
                         'excused_rows': 2}  # fmt: skip
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps(told))
  page.write(results.read([str(path)]), str(tmp_path / 'p.html'))
  text = (tmp_path / 'p.html').read_text()
  assert 'Not exact: specdiff.' in text
  assert 'NO (3 prompts)' in text and '2 near-ties' in text
  told['systems'][1]['excused_rows'] = 1  # of three
  path.write_text(json.dumps(told))
  page.write(results.read([str(path)]), str(tmp_path / 'p.html'))
  text = (tmp_path / 'p.html').read_text()
  assert 'Not exact: specdiff.' in text and 'NO (2 prompts)' in text


@pytest.mark.parametrize(
  'change, words',
  [
    ({'verifier': 'other'}, ['verifier', "'other'", 'gsm8k.json']),
    ({'dtype': 'bfloat16'}, ['dtype', 'bfloat16', 'gsm8k.json']),
    ({'schema': 2}, ['schema is 2']),
    ({'systems': []}, ['specdiff bench']),
    ({'systems': [{'system': 'ar'}]}, ["without 'tokens_per_s'"]),
    ({'systems': [3]}, ['without']),
  ],
)
def test_results_that_do_not_go_together(files, tmp_path, change, words):
  path = tmp_path / 'other.json'
  path.write_text(json.dumps(copy.deepcopy(bench()) | change))
  with pytest.raises(errors.InputError) as error:
    results.read([files[0], str(path)])
  for word in ['other.json', *words]:
    assert word in str(error.value), word


@pytest.mark.parametrize('text', ['', 'no json', '[1]', '{"a": 1}', '\xff'])
def test_files_that_are_no_results(tmp_path, text):
  path = tmp_path / 'x.json'
  path.write_text(text, encoding='latin1')
  with pytest.raises(errors.InputError, match='x.json'):
    results.read([str(path)])
  with pytest.raises(errors.InputError, match='missing'):
    results.read([str(tmp_path / 'missing')])
  bad = tmp_path / 'metrics.jsonl'
  bad.write_text('{"step": 1}\nno\n{"step": 2}\n')
  with pytest.raises(errors.InputError, match='metrics.jsonl, line 2'):
    results.read([str(tmp_path / 'metrics.jsonl')])


class _Wide(html.parser.HTMLParser):
  """Collects the texts of a page that a browser has run."""

  text = ''

  def handle_data(self, data):
    self.text += data


@pytest.mark.slow
def test_a_browser_shows_it(files, tmp_path):
  """All figures load, and nothing is wider than a phone but in its own box."""
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  if not browser:
    pytest.skip('there is no Chromium here')
  path = tmp_path / 'p.html'
  page.write(results.read(files), str(path))
  probe = (
    '<script>addEventListener("load",()=>{document.title=JSON.stringify(['
    '[...document.images].map(i=>i.naturalWidth>0),'
    'document.documentElement.scrollWidth,innerWidth])})</script>'
  )
  path.write_text(path.read_text() + probe)
  done = subprocess.run(
    [browser, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
     '--window-size=500,900', f'--user-data-dir={tmp_path}/b',
     path.as_uri()], capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  parser = _Wide()
  parser.feed(done.stdout.split('<title>')[1].split('</title>')[0])
  loaded, wide, window = json.loads(parser.text)
  assert loaded == [True] * 7
  assert wide <= window
