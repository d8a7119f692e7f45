"""What README and docs say can be typed, runs; what they name, exists."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import specdiff_jax as sd
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
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PROGRAMS = {
    'decode': decode, 'bench': bench, 'collect': collect, 'distill': distill,
    'verify': verify, 'inspect': inspect, 'convert': convert, 'aot': aot,
    'sweep': sweep, 'prompts': prompts, 'ngram': ngram,
    'report': report,
}  # fmt: skip
NAMES = [page.name for page in PAGES]


def blocks(page: pathlib.Path, language: str) -> list[str]:
  """Returns the fenced blocks of a language."""
  found = re.findall(r'^```(\w*)\n(.*?)^```$', page.read_text(), re.M | re.S)
  return [block for name, block in found if name == language]


def lines(page: pathlib.Path) -> list[str]:
  """Returns the lines of a page's bash, those that go on joined."""
  text = '\n'.join(blocks(page, 'bash'))
  return re.sub(r' *\\\n *', ' ', text).splitlines()


def commands() -> list[list[str]]:
  """Returns every `python -m specdiff_jax ...`, in order, each once."""
  prefix = 'python -m specdiff_jax '
  found = [l for page in PAGES for l in lines(page) if l.startswith(prefix)]
  return [shlex.split(line[len(prefix) :]) for line in dict.fromkeys(found)]


def prose(page: pathlib.Path) -> str:
  """Returns a page without its code."""
  text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)
  return re.sub(r'`[^`\n]*`', '', text)


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) < 200


def test_they_show_every_subcommand():
  assert {argv[0] for argv in commands()} >= set(PROGRAMS)


@pytest.mark.parametrize('argv', commands(), ids=' '.join)
def test_commands_parse(argv, monkeypatch):
  monkeypatch.chdir(ROOT)
  if argv != ['--help']:
    PROGRAMS[argv[0]].COMMAND.parse(argv[1:])


def test_commands_of_the_tiny_recipe_run(specdiff, tmp_path):
  mine = [argv for argv in commands() if '--config=configs/tiny.py' in argv]
  # What others take, first: drafters and trajectories of `distill`.
  mine.sort(key=lambda argv: argv[0] != 'distill')
  for argv in mine:
    small = [
      arg.replace('configs/tiny.py', f'{ROOT}/configs/tiny.py:smoke').replace(
        'runs/tiny', f'{tmp_path}/tiny'
      )
      for arg in argv
    ]
    run = specdiff(*small)
    assert run.code == 0, run.err
  assert {argv[0] for argv in mine} == {'decode', 'bench', 'distill', 'sweep'}


@pytest.mark.parametrize('name', ['README.md', 'docs/start.md'])
def test_python_runs(monkeypatch, capsys, name):
  """With a verifier that is always there, for which no drafter is shipped."""
  monkeypatch.chdir(ROOT)
  found = blocks(ROOT / name, 'python')
  assert found
  for block in found:
    here = block.replace("'quickstart'", "'random:tiny'")
    here = here.replace("'specdiff', verifier", "'lookup', verifier")
    assert here.count('random:tiny') == here.count('lookup') == 1
    exec(compile(here, name, 'exec'), {})
  assert capsys.readouterr().out.strip()


def test_scripts_and_files_exist():
  for page in PAGES:
    for line in lines(page):
      script = re.match(r'(?:[A-Z]+=\S+ )*(\./\S+)', line)
      if script:
        assert (ROOT / script[1]).stat().st_mode & 0o100, line
  tree = blocks(ROOT / 'README.md', '')[-1]
  folder = ROOT
  for line in tree.splitlines():
    name = line.split()[0]
    if not line.startswith(' '):
      folder = ROOT / name
      assert folder.is_dir(), name
    else:
      assert (folder / name).exists(), name


def anchors(page: pathlib.Path) -> set[str]:
  """Returns what a page's headings are linked by."""
  heads = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
  plain = [re.sub(r'[^\w\- ]', '', head.lower()) for head in heads]
  return {head.strip().replace(' ', '-') for head in plain}


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
    if link.startswith('https://'):
      continue
    path, _, anchor = link.partition('#')
    to = (page.parent / path).resolve() if path else page
    assert to.is_file(), f'{page.name}: {link}'
    assert not anchor or anchor in anchors(to), f'{page.name}: {link}'


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_recipes_and_programs_that_are_named_exist(page):
  named = re.findall(
    r'(?:configs|benchmarks|examples|launch|tests|specdiff_jax|docs)/[\w./-]*'
    r'\.(?:py|sh|md|yml|sbatch|ipynb|png)',
    page.read_text(),
  )
  for name in named:
    assert (ROOT / name).exists(), f'{page.name}: {name}'


def test_every_page_is_in_the_index():
  config = (ROOT / 'docs' / 'site' / 'mkdocs.yml').read_text()
  nav = re.findall(r': (\w+\.md)$', config, re.M)
  assert sorted(nav) == sorted(page.name for page in PAGES[1:])
  index = (ROOT / 'docs' / 'index.md').read_text()
  systems = (ROOT / 'docs' / 'systems.md').read_text()
  for name in set(nav) - {'index.md'}:
    assert f']({name})' in index + systems, name


def test_the_api_page_has_every_public_name():
  text = (ROOT / 'docs' / 'api.md').read_text()
  found = re.findall(r'^::: (\S+)\n.*\n +heading: sd\.(\w+)\n', text, re.M)
  where = {
    name: 'specdiff_jax.' + (path if ':' in path else f'{path}:{name}')
    for name, path in sd._NAMES.items()
  }
  assert {name: path.replace(':', '.') for name, path in where.items()} == {
    name: path for path, name in found
  }
  assert [name for _, name in found] == list(sd.__all__)


@pytest.fixture
def sources(tmp_path):
  """A copy of what the site is built from, or the test is skipped."""
  for name in ('mkdocs', 'material', 'mkdocstrings_handlers'):
    if not importlib.util.find_spec(name):
      pytest.skip("mkdocs is not here: pip install '.[docs]'")
  for name in ('docs', 'specdiff_jax', 'configs'):
    shutil.copytree(
      ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('*.pyc')
    )
  return tmp_path


def build(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
  """Builds the site; not with --quiet, under which warnings pass."""
  return subprocess.run(
    [
      sys.executable, '-m', 'mkdocs', 'build', '--strict',
      '--config-file', str(folder / 'docs' / 'site' / 'mkdocs.yml'),
    ],
    capture_output=True, text=True,
    env=os.environ | {'NO_MKDOCS_2_WARNING': '1'},
  )  # fmt: skip


def test_the_site_builds(sources):
  """Strictly: a link, a page or a docstring that is amiss is an error."""
  done = build(sources)
  assert done.returncode == 0, done.stderr
  site = sources / 'runs' / 'site'
  assert (site / 'losses_smollm2.png').is_file()
  page = (site / 'api.html').read_text()
  assert 'sd.load_verifier' in page and 'Loads a verifier' in page
  for built in site.glob('*.html'):  # read without a network, too
    text = built.read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]*"https?://[^"]*"', text)


@pytest.mark.parametrize(
  'page, right, wrong',
  [
    ('systems.md', '(trees.md)', '(tree.md)'),
    ('systems.md', 'index.md#the-loop', 'index.md#a-loop'),
    ('api.md', '::: specdiff_jax.core.protocols.Drafter\n', '::: specdiff_jax.Its\n'),
  ],
)  # fmt: skip
def test_a_site_with_an_error_does_not_build(sources, page, right, wrong):
  path = sources / 'docs' / page
  assert right in path.read_text()
  path.write_text(path.read_text().replace(right, wrong))
  assert build(sources).returncode
