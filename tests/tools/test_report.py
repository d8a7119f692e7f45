"""The report: what it reads, what it refuses, and what a browser shows of it."""

import copy
import html.parser
import json
import os
import re
import shutil
import subprocess

from matplotlib import figure
from matplotlib import text as text_lib
import pytest

from specdiff_jax.core import errors
from specdiff_jax.tools import plots
from specdiff_jax.tools.bench import result
from specdiff_jax.tools.report import figures
from specdiff_jax.tools.report import page
from specdiff_jax.tools.report import results

_ENDS = {'not in top-K': [3, 1], 'wrong parent': [0, 0],
         'budget': [1, 0], 'end': [0, 1]}  # fmt: skip


_INT8 = {'int8': 'verifier'}
_PIECES = [
  {'text': 'One', 'cycle': 0, 'depth': 0},
  {'text': ' <b>&amp;', 'cycle': 1, 'depth': 1},
  {'text': '\n\n', 'cycle': 1, 'depth': 2},
  {'text': '€ "', 'cycle': 1, 'depth': 0},
  {'text': '', 'cycle': 2, 'depth': 1},
]  # of an end token


def graded(*found):
  return [
    {'id': str(i), 'correct': correct, 'seconds': seconds, 'tokens': 9}
    for i, (correct, seconds) in enumerate(found)
  ]


def row(system, speedup, **more):
  return {
    'system': system, 'tokens_per_s': 20.0 * speedup, 'speedup': speedup,
    'tau': 1.3 * speedup, 'exact': True, 'cycles': 6, 'prompts': 4,
    'drafts': 1, 'cond': [0.7, 0.6, None], 'ends': _ENDS, 'r': 1.1,
    'c_draft': 0.2, 'cycle_overhead': 0.05, 'predicted_speedup': 1.1 * speedup,
    'break_even_tau': 1.3, **more,
  }  # fmt: skip


def example(*systems, pieces=_PIECES):
  return [{'id': 'p <1>', 'system': n, 'trace': pieces} for n in systems]


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
  one = bench(example=example('ar', 'specdiff'))
  one['systems'][1]['graded'] = graded((True, 2.5), (None, 1.0), (False, 0.3))
  (tmp_path / 'gsm8k.json').write_text(f'a table\n{json.dumps(one)}\n')
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
  assert names == ['speedup', 'budget', 'acceptance', 'ends', 'cycle',
                   'prediction', 'temperature', 'distillation']  # fmt: skip
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


def drawn(name, *told, folder):
  """Returns the curves of a figure: (label, x, y)."""
  paths = [folder / f'{i}.json' for i in range(len(told))]
  for path, one in zip(paths, told):
    path.write_text(json.dumps(one))
  found = figures.of(results.read([str(path) for path in paths]))
  [one] = [one for one in found if one.name == name]
  canvas = figure.Figure()
  one.draw(canvas)
  return [
    (line.get_label(), list(line.get_xdata()), list(line.get_ydata()))
    for line in canvas.axes[0].get_lines()
  ]


def test_the_share_that_is_answered_in_time(tmp_path):
  one = bench()
  answers = (True, 4.0), (False, 1.0), (None, 0.1), (True, 2.0), (False, 9.0)
  answers += ((True, None),)  # decoded together with others
  one['systems'][1]['graded'] = graded(*answers)
  one['systems'][2]['graded'] = graded((None, 1.0))  # nothing to draw
  [(name, seconds, share)] = drawn('budget', one, folder=tmp_path)
  assert name == 'specdiff' and share == [0, 25, 50, 50]
  assert seconds == pytest.approx([1, 2, 4, 9.9])


def test_drafts_by_temperature(tmp_path):
  told = []
  for heat, drafts, tau in ((0.0, 1, 2), (0.0, 4, 3), (0.0, 4, 5), (1.0, 4, 2)):
    one = bench(temperature=heat)
    one['systems'][2] |= {'drafts': drafts, 'tau': tau}
    told.append(one)
  [curve] = drawn('drafts', *told, folder=tmp_path)
  assert curve == ('tree, temperature 0', [1, 4], [2, 4])


class _Trace(html.parser.HTMLParser):
  """Collects (element, text, title) of the tokens of an unfolded trace."""

  def __init__(self):
    super().__init__()
    self.tokens, self._inside = [], False

  def handle_starttag(self, tag, attrs):
    told = dict(attrs)
    self._inside |= tag == 'details' and 'open' in told
    if self._inside and tag in ('u', 'b'):
      self.tokens.append([tag, '', told['title']])

  def handle_endtag(self, tag):
    self._inside &= tag != 'details'

  def handle_data(self, data):
    if self._inside and self.tokens:
      self.tokens[-1][1] += data


def test_what_proposed_each_token(tmp_path):
  path, out = tmp_path / 'a.json', tmp_path / 'p.html'
  plain = [piece | {'cycle': i} for i, piece in enumerate(_PIECES)]
  both = example('ar', pieces=plain) + example('specdiff')
  path.write_text(json.dumps(bench(example=both)))
  page.write(results.read([str(path)]), str(out))
  text = out.read_text()
  assert 'ar: 5 calls' in text and 'specdiff: 3 calls' in text
  assert 'p &lt;1&gt;' in text and ' <b>&amp;' not in text
  parser = _Trace()
  parser.feed(text)  # of specdiff, which took the fewest calls
  assert [token[:2] for token in parser.tokens] == [
    ['u' if piece['depth'] else 'b', piece['text']] for piece in _PIECES
  ]
  assert parser.tokens[2][2] == 'call 2, drafted at depth 2'
  assert '--trace' not in text
  path.write_text(json.dumps(bench()))
  page.write(results.read([str(path)]), str(out))
  assert 'bench --trace --out=FILE' in out.read_text()


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


def test_where_and_whether_it_was_measured_is_told(tmp_path):
  for name, device in ('one', 'cpu'), ('two', 'cpu'), ('three', 'h100'):
    told = bench(device=device, simulated_acceptance=0.8)
    (tmp_path / f'{name}.json').write_text(json.dumps(told))
  paths = [str(tmp_path / f'{n}.json') for n in ('one', 'two', 'three')]
  page.write(results.read(paths), str(tmp_path / 'p.html'))
  text = (tmp_path / 'p.html').read_text()
  assert text.count('on cpu;') == 1 and text.count('on h100;') == 1
  assert text.index('on cpu;') < text.index('on h100;')
  assert 'Simulated acceptance' in text and text.count('rate 0.8') == 3
  assert 'int8' not in text
  (tmp_path / 'one.json').write_text(json.dumps(bench(settings=_INT8)))
  page.write(results.read(paths[:1]), str(tmp_path / 'p.html'))
  assert 'rounded to int8, on cpu;' in (tmp_path / 'p.html').read_text()


@pytest.mark.parametrize(
  'change, words',
  [
    ({'verifier': 'other'}, ['verifier', "'other'", 'gsm8k.json']),
    ({'simulated_acceptance': 0.5}, ['simulated_acceptance is 0.5']),
    ({'dtype': 'bfloat16'}, ['dtype', 'bfloat16', 'gsm8k.json']),
    ({'settings': _INT8}, ['int8 verifier is True', 'gsm8k.json', 'False']),
    ({'settings': {'int8': 'both'}}, ['int8 verifier is True']),
    ({'schema': 2}, ['schema is 2']),
    ({'systems': []}, ['specdiff bench']),
    ({'systems': [{'system': 'ar'}]}, ["without 'tokens_per_s'"]),
    ({'systems': [3]}, ['without']),
    ({'systems': [row('ar', 1) | {'tau': 'x'}]}, ['tau', "'x'"]),
    ({'systems': [row('ar', 1, graded=[3])]}, ['graded', "'correct'"]),
    ({'systems': [row('ar', 1, graded=graded((1, 2)))]}, ['correct is 1']),
    ({'systems': [row('ar', 1, graded=graded((True, 0)))]}, ['seconds is 0']),
    ({'example': 'no'}, ['example is no list']),
    ({'example': [{'id': 'a'}]}, ["example has an entry without 'system'"]),
    ({'example': example('ar', pieces=[])}, ['trace of ar is no list']),
    (
      {
        'example': example(
          'ar', pieces=[{'text': 'a', 'cycle': -1, 'depth': 0}]
        )
      },
      ['trace of ar', 'cycle is -1'],
    ),
  ],
)
def test_results_that_do_not_go_together(files, tmp_path, change, words):
  path = tmp_path / 'other.json'
  path.write_text(json.dumps(copy.deepcopy(bench()) | change))
  with pytest.raises(errors.InputError) as error:
    results.read([files[0], str(path)])
  for word in ['other.json', *words]:
    assert word in str(error.value), word


@pytest.mark.parametrize(
  'key, value',
  [
    ('temperature', None),
    ('temperature', float('nan')),
    ('rounds', 'a'),
    ('simulated_acceptance', 'a'),
    ('settings', None),
    ('fingerprint', 3),
    ('verifier', None),
  ],
)
def test_a_damaged_field_of_a_result(tmp_path, key, value):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps(bench(**{key: value})))
  words = rf'x.json: this is a result whose {key} is {value!r}; .* damaged'
  with pytest.raises(errors.InputError, match=words):
    results.read([str(path)])


_GONE = object()


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('tau', 10**400, 'whose tau is 1000'),
    ('speedup', True, 'whose speedup is True'),
    ('cond', 3, 'whose cond is 3'),
    ('cond', [0.5, 'a'], 'whose cond is '),
    ('ends', [1], 'whose ends is '),
    ('ends', {'end': [0, None]}, 'whose ends is '),
    ('cycles', _GONE, "without 'cycles'"),
    ('r', 'a', "whose r is 'a'"),
    ('c_draft', _GONE, "without 'c_draft'"),
    ('c_draft', None, 'whose c_draft is None'),
    ('cycle_overhead', _GONE, "without 'cycle_overhead'"),
    ('predicted_speedup', float('inf'), 'whose predicted_speedup is inf'),
    ('break_even_tau', 'a', "whose break_even_tau is 'a'"),
    ('drafts', 'a', "whose drafts is 'a'"),
    ('drafts', 10**400, 'whose drafts is 1000'),
    ('correct', None, 'whose correct is None'),
    ('interval', [1.1, 1.2, 1.3], 'whose interval is '),
    ('interval', [None, 1.0], 'whose interval is '),
    ('speedup_over_fastest_ar', {}, 'whose speedup_over_fastest_ar is '),
    ('mismatched_rows', None, 'whose mismatched_rows is None'),
    ('excused_rows', -1, 'whose excused_rows is -1'),
    ('prompts', [], 'whose prompts is '),
  ],
)
def test_a_damaged_field_of_a_system(tmp_path, key, value, words):
  told = copy.deepcopy(bench())
  told['systems'][1][key] = value
  if value is _GONE:
    del told['systems'][1][key]
  path = tmp_path / 'x.json'
  path.write_text(json.dumps(told))
  words = f'x.json: systems has an entry {words}.*; .* damaged'
  with pytest.raises(errors.InputError, match=words):
    results.read([str(path)])


@pytest.mark.parametrize(
  'line, words',
  [
    ('{"step": 1e999, "eval": {"tau": 1}}', 'whose step is inf'),
    ('{"step": %d}' % 10**400, 'whose step is 1000'),
    ('{"step": 2, "eval": {"tau": %d}}' % 10**400, 'whose eval is '),
    ('{"step": 2, "eval": {"tau": NaN}}', 'whose eval is '),
    ('{"step": 2, "eval": {}}', 'whose eval is '),
    ('{"step": 2, "eval": 3}', 'whose eval is 3'),
    ('{"eval": {"tau": 1}}', "without 'step'"),
    ('[]', "without 'step'"),
  ],
)
def test_damaged_metrics(tmp_path, line, words):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(f'{{"step": 1}}\n{line}\n')
  with pytest.raises(errors.InputError, match=f'line 2: .* {words}'):
    results.read([str(tmp_path)])


def test_a_tau_that_was_no_number_is_left_out(tmp_path):
  lines = [{'step': i, 'eval': {'tau': t}} for i, t in ((1, 2), (2, None))]
  lines += [{'step': 3, 'eval': None}, {'step': 4, 'eval': {'tau': 1.5}}]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text)
  [run] = results.read([str(tmp_path)]).runs
  assert run.curve == [(1, 2), (4, 1.5)]


def test_a_verifier_is_told_by_its_fingerprint(tmp_path):
  """Where two results have it: files may have moved, older ones lack it."""
  paths = [tmp_path / f'{i}.json' for i in range(3)]
  for path, own in zip(paths, ({}, {'fingerprint': 'a'}, {'fingerprint': 'b'})):
    path.write_text(json.dumps(bench(**own)))
  assert len(results.read([str(path) for path in paths[:2]]).benches) == 2
  words = r"2.json: fingerprint is 'b', but in .*1.json it is 'a'"
  with pytest.raises(errors.InputError, match=words):
    results.read([str(path) for path in paths])


@pytest.mark.parametrize('own', [{}, {'fingerprint': 'a1'}])
def test_a_result_has_the_fingerprint_of_its_verifier(own):
  made = result.BenchResult(
    rows=(), verifier='v', device='cpu', dtype='float32', temperature=0.0,
    rounds=1, exact=True, settings={}, ar_tokens_per_s=1.0,
    fastest_ar_tokens_per_s=1.0, fastest_ar_dtype='float32',
    ar_rows_unlike_reference=0, **own,
  ).to_json()  # fmt: skip
  assert {key: made[key] for key in made if key == 'fingerprint'} == own


def test_a_run_is_called_as_its_folder(tmp_path, monkeypatch):
  (tmp_path / 'run').mkdir()
  monkeypatch.chdir(tmp_path / 'run')
  (tmp_path / 'run/metrics.jsonl').write_text('{"step": 1}\n')
  for path in '.', 'metrics.jsonl', '../run':
    assert [one.name for one in results.read([path]).runs] == ['run']


def test_a_folder_stands_for_its_results(files, tmp_path):
  folder = tmp_path / 'grid'
  folder.mkdir()
  with pytest.raises(errors.InputError, match='grid: .* neither metrics.jsonl'):
    results.read([str(folder)])
  for name in ('gamma-4', 'gamma-2_temperature-0.0'):
    (folder / f'{name}.json').write_text(json.dumps(bench()))
  (folder / 'notes.txt').write_text('no result')
  found = results.read([files[0], str(folder), files[2]])
  assert [one.name for one in found.benches] == [
    'gsm8k', 'gamma-2_temperature-0.0', 'gamma-4'
  ]  # fmt: skip
  assert [one.name for one in found.runs] == ['run']


@pytest.mark.parametrize(
  'name, shown',
  [
    (b'a$b_$c^', 'a$b_$c^'),  # is no mathematics
    (b'a$b$', 'a$b$'),  # could be
    (b'caf\xe9', 'caf\\udce9'),
    (b'a\x1b[2J', 'a\\x1b[2J'),
    (b'_a', '_a'),
  ],
)
def test_names_are_shown_as_they_are(tmp_path, name, shown):
  paths = [os.fsencode(tmp_path) + b'/%b' % name + e for e in (b'.json', b'')]
  os.mkdir(paths[1])
  with open(paths[0], 'w') as file:
    json.dump(bench(), file)
  with open(paths[1] + b'/metrics.jsonl', 'w') as file:
    file.write('{"step": 1, "eval": {"tau": 2}}\n')
  for path in map(os.fsdecode, paths):
    out, found = tmp_path / 'p.html', results.read([path])
    page.write(found, str(out))
    assert not found.benches or f'<h2>{shown}</h2>' in out.read_text()
    one = figures.of(found)[0]
    with plots.canvas(str(tmp_path / 'f.svg'), path, 4, 3) as canvas:
      one.draw(canvas)
    texts = canvas.findobj(text_lib.Text)
    told = [text for text in texts if text.get_text().strip() == shown]
    assert told and not any(text.get_parse_math() for text in told)


@pytest.mark.parametrize('text', ['', 'no json', '[1]', '{"a": 1}', '\xff'])
def test_files_that_are_no_results(tmp_path, text):
  path = tmp_path / 'x.json'
  path.write_text(text, encoding='latin1')
  with pytest.raises(errors.InputError, match='x.json'):
    results.read([str(path)])
  with pytest.raises(errors.InputError, match='missing'):
    results.read([str(tmp_path / 'missing')])
  os.mkfifo(tmp_path / 'pipe.json')  # not waited for
  with pytest.raises(errors.InputError, match='not a regular file'):
    results.read([str(tmp_path / 'pipe.json')])
  bad = tmp_path / 'metrics.jsonl'
  bad.write_text('{"step": 1}\nno\n{"step": 2}\n')
  with pytest.raises(errors.InputError, match='metrics.jsonl, line 2'):
    results.read([str(tmp_path / 'metrics.jsonl')])


class _Wide(html.parser.HTMLParser):
  """Collects the texts of a page that a browser has run."""

  text = ''

  def handle_data(self, data):
    self.text += data


def contrast(ink: str, *layers: str) -> float:
  """Returns WCAG's contrast of an ink on layers of colour, as CSS has them."""

  def parts(colour):
    found = [float(x) for x in re.findall(r'[\d.]+', colour)]
    return found[:3], (found + [1.0])[3]

  def luminance(colour):
    parted = [x / 255 for x in colour]
    linear = [
      x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
      for x in parted
    ]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear))

  below = [0.0] * 3
  for layer in layers:
    colour, alpha = parts(layer)
    below = [alpha * x + (1 - alpha) * y for x, y in zip(colour, below)]
  low, high = sorted([luminance(parts(ink)[0]), luminance(below)])
  return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize('width, dark', [(500, True), (1200, False)])
def test_a_browser_shows_it(files, tmp_path, width, dark):
  """All figures load, and nothing is wider than a phone but in its own box.

  Tokens can be read on their colours, by day and by night.
  """
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  if not browser:
    pytest.skip('there is no Chromium here')
  path = tmp_path / 'p.html'
  page.write(results.read(files), str(path))
  probe = (
    '<script>addEventListener("load",()=>{'
    'const s=getComputedStyle,b=s(document.body);'
    'document.title=JSON.stringify(['
    '[...document.images].map(i=>i.naturalWidth>0),'
    'document.documentElement.scrollWidth,innerWidth,'
    'matchMedia("(prefers-color-scheme: dark)").matches,'
    'b.color,b.backgroundColor,'
    '[...document.querySelectorAll(".trace b,.trace u")]'
    '.map(e=>s(e).backgroundColor)])})</script>'
  )
  path.write_text(path.read_text() + probe)
  done = subprocess.run(
    [browser, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
     f'--window-size={width},900', f'--user-data-dir={tmp_path}/b',
     f'--blink-settings=preferredColorScheme={0 if dark else 1}',
     path.as_uri()], capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  parser = _Wide()
  parser.feed(done.stdout.split('<title>')[1].split('</title>')[0])
  loaded, wide, window, night, ink, ground, colours = json.loads(parser.text)
  assert loaded == [True] * 8
  assert wide <= window and night == dark
  assert len(set(colours)) == 3  # the verifier's, and two depths
  assert min(contrast(ink, ground, colour) for colour in colours) >= 4.5
