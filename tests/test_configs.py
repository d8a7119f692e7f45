"""Every recipe is complete, says what it should, and its small run works."""

import ast
import dataclasses
import pathlib
import re
import shlex

import pytest

from specdiff_jax.cli import aot
from specdiff_jax.cli import bench
from specdiff_jax.cli import collect
from specdiff_jax.cli import distill
from specdiff_jax.cli import ngram
from specdiff_jax.cli import sweep
from specdiff_jax.cli import verify
from specdiff_jax.core import errors
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = sorted(
  str(path.relative_to(ROOT / 'configs').with_suffix(''))
  for path in (ROOT / 'configs').rglob('*.py')
)
PROGRAMS = {
    'aot': aot, 'bench': bench, 'collect': collect, 'distill': distill,
    'sweep': sweep, 'verify': verify, 'ngram': ngram,
}  # fmt: skip

# Names that the issue promises of every config for decoding, for training.
DECODING = (
    'verifier', 'drafter', 'system', 'dtype', 'exact', 'batch', 'temperature',
    'top_k', 'top_p', 'seed', 'max_new_tokens', 'gamma', 'chat',
)  # fmt: skip
TRAINING = (
    'verifier', 'data', 'loss', 'steps', 'batch', 'learning_rate', 'seed',
    'mesh',
)  # fmt: skip


def own(name: str):
  """Returns the config as its file gives it, without defaults."""
  return recipe_file.load_config(f'{ROOT}/configs/{name}.py')


def test_there_are_the_promised_recipes():
  assert {'quickstart', 'distill_smollm2', 'tiny'} <= set(RECIPES)


LARGE = (
    'distill_smollm2', 'distill_sps_smollm2', 'distill_dflash_smollm2',
    'distill_eagle_smollm2', 'ablations/losses_smollm2',
)  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'variant'),
  [(name, variant) for name in RECIPES for variant in ('', ':smoke')]
  + [(name, ':gpu') for name in LARGE],
)
def test_recipe_is_valid(name, variant):
  config = recipe_file.load_recipe(f'{ROOT}/configs/{name}.py{variant}')
  decoding.check(config)
  assert set(DECODING) <= set(own(name))
  if 'steps' in own(name):
    assert set(TRAINING) <= set(own(name))


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_teaches(name):
  tree = ast.parse((ROOT / 'configs' / f'{name}.py').read_text())
  text = ast.get_docstring(tree)
  for part in ('Why:', 'Cost:', 'Expected', 'COMMAND'):
    assert part in text, part
  joined = text.replace('\\\n', ' ')
  lines = re.findall(r'python -m specdiff_jax (.*)', joined)
  assert lines
  for line in lines:
    program, *argv = shlex.split(line)
    argv = [a.replace('=configs/', f'={ROOT}/configs/') for a in argv]
    call = PROGRAMS[program].COMMAND.parse(argv)
    if program == 'sweep':
      assert len(sweep.points(argv, call.options.grid)) > 1


def test_unknown_variant_is_refused():
  with pytest.raises(errors.InputError, match='smoke'):
    recipe_file.load_recipe(f'{ROOT}/configs/tiny.py:large')


def test_tiny_bench(specdiff, tiny, tmp_path):
  run = specdiff('bench', tiny, f'--plot={tmp_path}/plot.svg')
  assert run.code == 0, run.err
  assert (tmp_path / 'plot.svg').exists()
  line = run.json
  assert line['schema'] == 1 and line['verifier'] == 'random:tiny'
  assert [s['system'] for s in line['systems']] == ['ar', 'lookup', 'specdiff']
  for row in line['systems']:
    assert row['exact'] is True and row['recompiles'] == 0
    assert row['prompts'] == 2 and row['cycles'] > 0
    assert row['host_looks'] == 2  # one a prompt: none while it is decoded
    assert row['tokens_per_s'] > 0 and row['tau'] >= 1
  assert line['systems'][0]['speedup'] == 1.0


def test_bench_sees_a_wrong_output(specdiff, tiny, monkeypatch):
  """The control: a system that changes a token is reported, exit code 1."""
  real = session_lib.Session.decode

  def lying(self, requests, **kwargs):
    completions = real(self, requests, **kwargs)
    change = int(self.name == 'lookup')
    return [
      dataclasses.replace(c, tokens=c.tokens + change) for c in completions
    ]

  monkeypatch.setattr(session_lib.Session, 'decode', lying)
  run = specdiff('bench', tiny, '--systems=ar,lookup')
  assert run.code == 1
  ar, lookup = run.json['systems']
  assert ar['exact'] is True and lookup['exact'] is False
  assert lookup['mismatched_rows'] == lookup['prompts']
  assert 'NO' in run.out


@pytest.mark.parametrize(
  'name, system',
  [
    ('distill_smollm2', 'specdiff'),
    ('distill_sps_smollm2', 'sps'),
    ('distill_dflash_smollm2', 'best_first'),
    ('distill_eagle_smollm2', 'eagle'),
  ],
)
def test_distill_smoke_of_the_real_recipe(
  specdiff, root, tmp_path, name, system
):
  recipe = f'--config={root}/configs/{name}.py:smoke'
  run = specdiff('distill', recipe, f'--workdir={tmp_path}')
  assert run.code == 0, run.err
  assert run.json['steps'] == 3
  assert run.json['tau_eval'] >= 1
  drafter = f'--config.drafters.{system}={tmp_path}/drafter.safetensors'
  more = (drafter, f'--config.system={system}')
  run = specdiff('decode', recipe, '--prompt=a', *more)
  assert run.code == 0, run.err
