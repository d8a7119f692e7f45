"""The command line: help, configs, overrides, and what is wrong with them."""

import subprocess
import sys

import pytest

import specdiff_jax
from specdiff_jax import __main__
from specdiff_jax.cli import aot
from specdiff_jax.cli import bench
from specdiff_jax.cli import collect
from specdiff_jax.cli import command
from specdiff_jax.cli import convert
from specdiff_jax.cli import decode
from specdiff_jax.cli import distill
from specdiff_jax.cli import inspect
from specdiff_jax.cli import ngram
from specdiff_jax.cli import prompts
from specdiff_jax.cli import report
from specdiff_jax.cli import sweep
from specdiff_jax.cli import verify
from specdiff_jax.core import errors
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe
from specdiff_jax.recipes import recipe_file

PROGRAMS = {
    'decode': decode, 'bench': bench, 'collect': collect, 'distill': distill,
    'verify': verify, 'convert': convert, 'inspect': inspect, 'aot': aot,
    'sweep': sweep, 'ngram': ngram, 'prompts': prompts, 'report': report,
}  # fmt: skip


def test_top_level_help_has_a_line_for_each_subcommand(specdiff):
  run = specdiff('--help')
  assert run.code == 0
  assert set(__main__.SUBCOMMANDS) == set(PROGRAMS)
  for name, line in __main__.SUBCOMMANDS.items():
    assert f'  {name:<9}{line}\n' in run.out


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_teaches(specdiff, name):
  run = specdiff(name, '--help')
  assert run.code == 0
  command = PROGRAMS[name].COMMAND
  parts = ['Flags:', 'Examples:', 'Exit codes:', f'specdiff_jax {name} ']
  parts += ['Config fields', '--config'] if command.recipe else [command.takes]
  for part in parts:
    assert part in run.out
  for field, (_, meaning) in command.fields.items():
    assert (f'  {field} = ' in run.out) == bool(meaning)


def test_help_starts_without_jax(root):
  code = (
    'import sys; from specdiff_jax import __main__;'
    '[__main__.main([n, "--help"]) for n in __main__.SUBCOMMANDS];'
    'sys.exit("jax" in sys.modules)'
  )
  argv = [sys.executable, '-c', code]
  done = subprocess.run(argv, capture_output=True, cwd=root)
  assert done.returncode == 0, done.stderr


def test_the_examples_of_help_parse(root, monkeypatch):
  import shlex

  monkeypatch.chdir(root)
  for name, program in PROGRAMS.items():
    for line in program.COMMAND.examples:
      first, *argv = shlex.split(line)
      assert first == name
      program.COMMAND.parse(argv)


def test_overrides_have_the_type_of_the_field(tiny):
  call = bench.COMMAND.parse([
      tiny,
      '--config.temperature=1',
      '--noconfig.exact',
      '--config.prompt_buckets=(8, 16)',
      '--config.stop=("a", "b")',
      '--config.ar_slots.float32=3',
      '--config.verifier', 'some/where',
      '--systems=ar,lookup',
  ])  # fmt: skip
  config = call.config
  temperature, plain = config.sampling.temperature, config.systems['ar']
  assert temperature == 1.0 and isinstance(temperature, float)
  assert plain.exact is False
  assert config.decoding.prompt_buckets == (8, 16)
  assert config.decoding.stop == ('a', 'b')
  assert plain.ar_slots.float32 == 3
  assert config.model.verifier == 'some/where'
  assert call.options.systems == ['ar', 'lookup']
  assert call.recipe.endswith('tiny.py:smoke')
  # The next parse starts afresh.
  again = bench.COMMAND.parse([tiny]).config
  assert again.systems['ar'].ar_slots.float32 == 0


def test_defaults_fill_what_a_recipe_leaves_out(tmp_path):
  path = tmp_path / 'short.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config():\n'
    '  return ml_collections.ConfigDict({"gamma": 5})\n'
  )
  config = recipe_file.load_recipe(str(path))
  assert all(one.gamma == 5 for one in config.systems.values())
  assert config.flat() == fields.typed({}).flat() | {'gamma': 5}


def broken(tmp_path, text):
  path = tmp_path / 'mine.py'
  path.write_text('import ml_collections\n' + text)
  return f'--config={path}'


@pytest.mark.parametrize(
  'text, words',
  [
    ('def get_config(:\n', ['mine.py', 'line 2']),
    ('x = 1\n', ['mine.py', 'get_config']),
    ('def get_config():\n  return {}\n', ['mine.py', 'ConfigDict']),
    ('def get_config():\n  return 1 / 0\n', ['mine.py', 'division']),
    (
      'def get_config():\n'
      '  return ml_collections.ConfigDict({"temprature": 1.0})\n',
      ['mine.py', "'temprature'", 'temperature'],
    ),
    (
      'def get_config():\n'
      '  return ml_collections.ConfigDict({"gamma": "four"})\n',
      ['mine.py', 'gamma', 'int'],
    ),
    (
      'def get_config():\n'
      '  return ml_collections.ConfigDict({"gamma": True})\n',
      ['mine.py', "'gamma' to True", 'an integer'],
    ),
    (
      'def get_config():\n  return ml_collections.ConfigDict({"stop": "ab"})\n',
      ['mine.py', "'stop' to 'ab'", 'a tuple', "('a', 'b')"],
    ),
    (
      'def get_config():\n  return ml_collections.ConfigDict({"network": 3})\n',
      ['mine.py', "'network' to 3", 'layers'],
    ),
  ],
)
def test_broken_recipes(specdiff, tmp_path, text, words):
  run = specdiff('bench', broken(tmp_path, text))
  bad(run, words)


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--config.temprature=1'], ["'temprature'", 'temperature', 'tiny.py']),
    (['--config.network.depht=1'], ["'network.depht'", 'tiny.py']),
    (['--config.gamma.deep=1'], ["'gamma.deep'", 'tiny.py']),
    (['--config.gamma=four'], ['gamma', 'four']),
    (['--config.top_p=x'], ['top_p', 'x']),
    (['--promts=x'], ["'promts'", 'prompts']),
    (['--rounds=0'], ['rounds', '0']),
    (['--limit=-1'], ['limit', '-1']),
    (['extra'], ['positional', 'extra']),
    (['--config.dtype=float16'], ['dtype', 'float16', 'bfloat16']),
    (['--config.temperature=-0.5'], ['temperature', '-0.5']),
    (['--config.top_p=0'], ['top_p', '0']),
    (['--config.gamma=0'], ['gamma', '0']),
    (['--config.batch=0'], ['batch', '0']),
    (['--config.max_new_tokens=0'], ['max_new_tokens', '0']),
    (['--systems=ar,fast'], ['systems', 'fast', 'lookup']),
    (['--config.system=fast'], ['system', 'fast', 'lookup']),
    (['--config.loss=hinge'], ['bench does not read config.loss', '--help']),
    (['--noconfig.fsdp'], ['bench does not read config.fsdp']),
    (['--config.stop={1}'], ["'stop'", 'a tuple']),
    (['--config.ar_slots.float32=-1'], ['ar_slots', '-1']),
  ],
)
def test_bad_command_lines(specdiff, tiny, argv, words):
  bad(specdiff('bench', tiny, *argv), words)


@pytest.mark.parametrize(
  'name, read, not_read',
  [
    ('decode', 'network.layers=1', 'prompts=x'),
    ('bench', "network={'layers': 1}", 'learning_rate=0.1'),
    ('verify', 'limit=1', 'rounds=1'),
    ('collect', 'join_timeout=9', 'loss=ce'),
    ('distill', 'completions=2', 'refresh_accepted=1'),
    ('sweep', 'windows=2', 'systems=ar'),
    ('aot', 'batch=8', 'limit=1'),
  ],
)
def test_fields_that_a_program_does_not_read(tiny, name, read, not_read):
  command = PROGRAMS[name].COMMAND
  command.parse([tiny, f'--config.{read}'])  # though the recipe sets others
  words = f'{name} does not read config.{not_read.partition("=")[0]}, '
  with pytest.raises(errors.InputError, match=words):
    command.parse([tiny, f'--config.{not_read}'])


def test_a_grid_of_what_no_run_reads(tiny):
  with pytest.raises(errors.InputError, match='does not read config.rounds'):
    sweep.points([tiny], ['rounds=1,2'])


def test_version(specdiff, root):
  run = specdiff('--version')
  assert run.code == 0
  assert run.out.startswith(f'specdiff_jax {specdiff_jax.__version__} (Python ')
  assert (
    f'\nversion: {specdiff_jax.__version__}\n'
    in (root / 'CITATION.cff').read_text()
  )


@pytest.mark.parametrize(
  'name, value',
  [
    ('loss', 'hinge'),
    ('eval_limit', '0'),
    ('eval_fraction', '1.5'),
    ('decay', '0.0'),
    ('network.vocab', '0'),
    ('network.ngram', '-1'),
  ],
)
def test_bad_training_settings(specdiff, tiny, tmp_path, name, value):
  run = specdiff(
    'distill', tiny, f'--workdir={tmp_path}/w', f'--config.{name}={value}'
  )
  bad(run, [name, value])


@pytest.mark.parametrize(
  'argv, words',
  [
    (['bensh'], ["specdiff: You gave the subcommand 'bensh'", 'bench?']),
    (['bench'], ['--config']),
    (['bench', '--config'], ['--config']),
    (['bench', '--config=nowhere.py'], ['nowhere.py', 'not exist']),
    (['bench', '--config={root}/configs/tiny.py:big'], ['big', 'smoke']),
    (['bench', '--config={root}/README.md'], ['README.md', 'Python']),
  ],
)
def test_bad_starts(specdiff, root, argv, words):
  bad(specdiff(*(arg.format(root=root) for arg in argv)), words)


def test_bad_input_in_a_process_of_its_own(tiny, root):
  argv = '-m', 'specdiff_jax', 'bench', tiny, '--config.gama=1'
  done = subprocess.run(
    [sys.executable, *argv], capture_output=True, text=True, cwd=root
  )
  assert done.returncode == 2
  assert done.stdout == '' and 'Traceback' not in done.stderr
  assert "'gama'" in done.stderr and 'gamma' in done.stderr


def reader(field: str) -> command.Command:
  """Returns a program that reads a field, or a part of it."""
  every = (program.COMMAND for program in PROGRAMS.values())
  first = field.partition('.')[0].partition('[')[0]
  return next(
    one
    for one in every
    if any(name.partition('.')[0] == first for name in one.fields)
  )


def bad(run, words) -> None:
  """Asserts exit code 2 and a one-paragraph message that has the words."""
  assert run.code == 2, run
  assert run.out == ''
  assert 'Traceback' not in run.err
  assert len(run.err.strip().splitlines()) == 1, run.err
  for word in words:
    assert word in run.err, (word, run.err)


@pytest.mark.parametrize(
  'value, words',
  [
    ('stop=7', ["'stop' to (7,)", 'a text']),
    ('stop=(1,)', ["'stop' to (1,)", 'a text']),
    ('stop=("a",None)', ["'stop' to ('a', None)", 'a text']),
    ('prompt_buckets=(64.5,)', ["'prompt_buckets' to (64.5,)", 'integer']),
    ("prompt_buckets=('64',)", ["'prompt_buckets' to ('64',)", 'integer']),
    ('prompt_buckets=(True,)', ["'prompt_buckets' to (True,)", 'integer']),
    ('gammas=1.5', ["'gammas' to (1.5,)", 'integer']),
    ('budgets=(1.0,)', ["'budgets' to (1.0,)", 'integer']),
    ('systems=(1,)', ["'systems' to (1,)", 'a text']),
    ('ar_dtypes=(1,)', ["'ar_dtypes' to (1,)", 'a text']),
    ('eval_prompts=7', ["'eval_prompts' to (7,)", 'a text']),
    ('decode_mesh=("1",1)', ["'decode_mesh' to ('1', 1)", 'integer']),
    ('mesh=x', ["'mesh' to ('x',)", 'integer']),
    ('network.features=(1.5,)', ["'network.features' to (1.5,)"]),
    ('network.start=a', ["'network.start' to ('a',)", 'integer']),
    ("network={'layers':'x'}", ["'network.layers' to 'x'", 'integer']),
    ("network={'layer':3}", ["'network.layer'", 'layers']),
    ("drafters={'tree':7}", ["'drafters.tree' to 7", 'a text']),
    ('masked_lm.unknown=nan', ["'masked_lm.unknown' to nan", 'finite']),
    ('stop[3]=a', ['cannot be read', 'index']),
    ('gamma=99999999999999999999', ["'gamma'", '32 bits']),
  ],
)
def test_values_of_another_kind_than_the_field(tiny, value, words):
  with pytest.raises(errors.InputError) as caught:
    reader(value.partition('=')[0]).parse([tiny, f'--config.{value}'])
  for word in words:
    assert word in str(caught.value)


def test_no_field_takes_a_number_that_is_none(tiny):
  for name, default, _ in recipe.leaves(recipe.GROUPS):
    for value in ('nan', 'inf', '-inf') if isinstance(default, float) else ():
      with pytest.raises(errors.InputError, match=f'{name}.*finite'):
        reader(name).parse([tiny, f'--config.{name}={value}'])


def test_a_nested_field_set_as_a_whole_gets_its_defaults(tiny):
  config = bench.COMMAND.parse([tiny, "--config.network={'layers': 3}"]).config
  network = config.training.network
  assert network.layers == 3 and network.features == ()


def test_tuples_that_are_empty_say_what_they_hold():
  found = list(recipe.leaves(recipe.GROUPS))
  told = {name for name, _, about in found if about.element}
  assert {name for name, default, _ in found if default == ()} == told


@pytest.mark.parametrize(
  'value, words',
  [
    ('top_p=1e-44', ['1e-44', '1.18e-38']),
    ('top_p=0.99999999', ['0.99999999', '0.9999999:', 'off']),
    ('temperature=1e-46', ['1e-46', '0 (greedy)', '1e-20']),
    ('temperature=1e39', ['1e+39', '1e+20']),
    ('top_k=2147483648', ['2147483648', '2147483647']),
    ('top_k=-1', ['top_k=-1']),
    ('seed=-1', ['seed=-1', '4294967295']),
    ('seed=4294967296', ['4294967296', '32 bits']),
    ('max_new_tokens=16777217', ['16777217', '16777216']),
    ('cycles_per_call=2147483647', ['cycles_per_call', '1073741824']),
    ('ngram=1000', ['config.ngram is 1000', '64']),
    ('network.ngram=1000', ['config.network.ngram is 1000', '64']),
    ('network.layers=1000000000', ['config.network.layers', '1024']),
    ('gamma=513', ['config.gamma is 513', '512']),
    ('budget=1025', ['config.budget is 1025', '1024']),
    ('drafts=1025', ['config.drafts is 1025', '1024']),
    ('batch=65537', ['config.batch is 65537', '65536']),
    ('prompt_buckets=(16777217,)', ['config.prompt_buckets', '16777216']),
    ('gammas=(2,0)', ['config.gammas is 0', 'at least 1']),
    ('budgets=(1,)', ['config.budgets is 1', 'at least 2']),
    ('draft_temperature=1e-40', ['config.draft_temperature is 1e-40']),
    ('denoising_steps=65', ['config.denoising_steps is 65', '64']),
  ],
)
def test_values_that_would_become_others(tiny, value, words):
  """On the device they are float32 and int32; programs have a size."""
  from specdiff_jax.recipes import decoding

  decoding.check(bench.COMMAND.parse([tiny]).config)
  with pytest.raises(errors.InputError) as caught:
    decoding.check(bench.COMMAND.parse([tiny, f'--config.{value}']).config)
  for word in words:
    assert word in str(caught.value)


def test_every_field_is_explained():
  for name, _, about in recipe.leaves(recipe.GROUPS):
    assert len(about.help) > 10, name


def test_unknown_names_come_with_near_ones():
  error = fields.unknown('here is', 'bacth', fields.ALL)
  assert isinstance(error, errors.InputError) and 'batch' in str(error)
