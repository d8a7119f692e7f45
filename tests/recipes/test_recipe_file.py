"""Recipes by name and by file, from any folder, and where their paths lead."""

import configparser
import os
import shutil

import pytest

import specdiff_jax as sd
from specdiff_jax.cli import bench
from specdiff_jax.core import errors
from specdiff_jax.recipes import recipe_file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """A working directory with nothing in it."""
  folder = tmp_path / 'elsewhere'
  folder.mkdir()
  monkeypatch.chdir(folder)
  return folder


def names(root):
  files = (root / 'configs').rglob('*.py')
  return [f.relative_to(root / 'configs').with_suffix('') for f in files]


def write(path, **values):
  path.write_text(
    'import ml_collections\n'
    'def get_config():\n'
    f'  return ml_collections.ConfigDict({values!r})\n'
  )
  return str(path)


def test_recipes_are_found_by_name(root):
  for name in names(root):
    by_name = recipe_file.load_recipe(f'{name}:smoke')
    assert by_name == recipe_file.load_recipe(f'{root}/configs/{name}.py:smoke')
  tiny = recipe_file.load_recipe('tiny').flat()
  assert os.path.samefile(tiny['prompts'], root / 'configs/prompts/tiny.jsonl')


def test_the_wheel_holds_the_recipes(root):
  """By a link in the package, and patterns of what is packed."""
  setup = configparser.ConfigParser()
  setup.read(root / 'setup.cfg')
  patterns = setup['options.package_data']['specdiff_jax'].split()
  package = root / 'specdiff_jax'
  packed = {p.resolve() for x in patterns for p in package.glob(x)}
  wanted = [*(root / 'configs').rglob('*.py')]
  wanted += (root / 'configs').rglob('*.jsonl')
  assert set(wanted) <= packed


def test_a_file_goes_before_a_name(elsewhere):
  write(elsewhere / 'tiny', gamma=7)
  with pytest.raises(errors.InputError, match="'tiny' is not a Python file"):
    recipe_file.load_recipe('tiny')


@pytest.mark.parametrize(
  'spec, words',
  [
    ('quickstrat', ['quickstrat', 'Did you mean quickstart?']),
    ('configs/tiny.py', ['Did you mean tiny?']),
    ('loses_smollm2:gpu', ['Did you mean ablations/losses_smollm2']),
    ('mine', ['Did you mean mine.py?']),
    ('zzz', ['There are: ', 'quickstart, ', 'tiny, ', 'mine.py']),
  ],
)
def test_near_names_are_suggested(specdiff, elsewhere, spec, words):
  write(elsewhere / 'mine.py')
  run = specdiff('bench', f'--config={spec}')
  assert run.code == 2 and run.out == ''
  assert len(run.err.splitlines()) == 1
  for word in words:
    assert word in run.err, run.err


def test_copied_recipes_say_the_same(root, tmp_path):
  """Also those that change another recipe; no path leads into the copy."""
  for name in names(root):
    copy = tmp_path / f'{name.name}.py'
    shutil.copy(root / 'configs' / f'{name}.py', copy)
    for variant in ('', ':smoke'):
      want, got = (
        recipe_file.load_recipe(f'{x}{variant}').flat() for x in (name, copy)
      )
      assert got == want, name


def test_paths_are_looked_for_beside_the_recipe_first(elsewhere, tmp_path):
  for folder in (tmp_path, elsewhere):
    (folder / 'both.jsonl').touch()
  (tmp_path / 'beside').mkdir()
  (elsewhere / 'here.jsonl').touch()
  path = write(
      tmp_path / 'mine.py', prompts='both.jsonl', data='beside,here.jsonl',
      eval_prompts=('here.jsonl', 'prompts/tiny.jsonl', '~/x.jsonl'),
      drafter='nowhere.safetensors', verifier='org/name',
      drafters={'sps': 'beside'},
  )  # fmt: skip
  config = recipe_file.load_recipe(path).flat()
  assert config['prompts'] == str(tmp_path / 'both.jsonl')
  assert config['data'] == f'{tmp_path}/beside,here.jsonl'
  assert config['eval_prompts'] == (
      'here.jsonl', str(recipe_file.CONFIGS / 'prompts/tiny.jsonl'),
      os.path.expanduser('~/x.jsonl'),
  )  # fmt: skip
  # What is nowhere stays: names of the hub and the zoo, files of later.
  assert config['drafter'] == 'nowhere.safetensors'
  assert config['verifier'] == 'org/name'
  assert config['drafters']['sps'] == str(tmp_path / 'beside')
  assert config['cache_dir'] == 'runs/verifier'  # a default, not the recipe's


def test_paths_of_the_command_line_are_of_the_working_directory(tmp_path):
  (tmp_path / 'mine.jsonl').touch()
  path = write(tmp_path / 'mine.py', prompts='mine.jsonl')
  call = bench.COMMAND.parse(
    [f'--config={path}', '--config.prompts=mine.jsonl']
  )
  assert call.config.flat()['prompts'] == 'mine.jsonl'


def test_paths_of_the_working_directory_stay_as_written(elsewhere):
  """They decide runs that go on: the drafter that training starts from."""
  (elsewhere / 'd.safetensors').touch()
  path = write(elsewhere / 'mine.py', start_from='d.safetensors')
  assert (
    recipe_file.load_recipe(path).deciding('run')['start_from']
    == 'd.safetensors'
  )
  assert recipe_file.load_recipe('mine.py').deciding(
    'run'
  ) == recipe_file.load_recipe(path).deciding('run')


def test_names_of_models_are_no_files(tmp_path):
  for name in ('quickstart', 'random'):
    (tmp_path / name).mkdir()
  path = write(tmp_path / 'mine.py', verifier='quickstart', drafter='random')
  config = recipe_file.load_recipe(path).flat()
  assert (config['verifier'], config['drafter']) == ('quickstart', 'random')


def test_a_missing_path_of_a_recipe_says_where_it_was_looked_for(
  specdiff, elsewhere, tmp_path
):
  path = write(
    tmp_path / 'mine.py', prompts='my/p.jsonl', verifier='random:tiny'
  )
  run = specdiff('bench', f'--config={path}')
  assert run.code == 2 and len(run.err.splitlines()) == 1
  for word in (path, "'my/p.jsonl'", str(elsewhere), str(recipe_file.CONFIGS)):
    assert word in run.err, run.err
  run = specdiff('bench', f'--config={path}', '--config.prompts=my/q.jsonl')
  assert run.code == 2 and 'my/q.jsonl' in run.err
  assert 'The recipe' not in run.err  # the control: a flag's is here or nowhere


def test_a_recipe_begins_with_another(tmp_path):
  (tmp_path / 'p.jsonl').touch()
  write(tmp_path / 'base.py', gamma=3, prompts='p.jsonl')
  (tmp_path / 'inner').mkdir()
  path = tmp_path / 'inner' / 'mine.py'
  path.write_text(
    'import pathlib\n'
    'import specdiff_jax as sd\n'
    'def get_config():\n'
    '  folder = pathlib.Path(__file__).parent.parent\n'
    '  config = sd.load_config(folder / "base.py")\n'
    '  config.batch = 2\n'
    '  return config\n'
  )
  config = recipe_file.load_recipe(str(path)).flat()
  assert (config['gamma'], config['batch']) == (3, 2)
  assert config['prompts'] == str(tmp_path / 'p.jsonl')
  assert set(sd.load_config(tmp_path / 'base.py')) == {'gamma', 'prompts'}
