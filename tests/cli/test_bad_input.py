"""Bad input ends in one paragraph that names the culprit, and exit code 2."""

import json
import os

import numpy as np
import pytest

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.recipes import recipe_file


@pytest.fixture
def bad(specdiff, tiny):
  """Runs a program that must refuse, and checks the words of its message."""

  def run(words, name, *argv):
    done = specdiff(name, tiny, *argv)
    assert done.code == 2, done
    assert done.out == '' and 'Traceback' not in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    for word in words:
      assert str(word) in done.err, (word, done.err)

  return run


def prompts_file(tmp_path, *lines):
  path = tmp_path / 'prompts.jsonl'
  path.write_text(''.join(line + '\n' for line in lines))
  return path


GOOD = json.dumps({'id': 'good', 'prompt': 'hello'})


@pytest.mark.parametrize(
  'lines, words',
  [
    ((), ['empty']),
    ((GOOD, '{"id": "torn'), ['line 2', 'JSON']),
    ((GOOD, '{"id": "x"}'), ['line 2', 'prompt']),
    ((GOOD, GOOD), ['line 2', 'good']),
    (
      (GOOD, '{"id": "long", "prompt": "%s"}' % ('x' * 999)),
      ["'long'", '999', 'prompt_buckets'],
    ),
  ],
)
@pytest.mark.parametrize('name', ['decode', 'bench', 'collect'])
def test_prompt_files(bad, tmp_path, name, lines, words):
  path = prompts_file(tmp_path, *lines)
  more = [f'--workdir={tmp_path}/w'] if name == 'collect' else []
  bad(words, name, f'--prompts={path}', '--config.system=ar', *more)


def test_prompts(bad, tmp_path):
  bad(['either'], 'decode')
  bad(['either'], 'decode', '--prompt=a', '--prompts=b')
  bad(['--prompt', 'empty'], 'decode', '--prompt= ')
  bad(['prompt', 'UTF-8'], 'decode', '--prompt=caf\udce9')  # a byte E9
  bad(['nowhere.jsonl'], 'decode', '--prompts=nowhere.jsonl')
  bad(['no prompts'], 'bench', '--config.prompts=')
  bad(['--workdir'], 'collect', '--prompts=x')
  bad(['--workdir'], 'distill')


def test_flags_that_nothing_would_read(bad, tmp_path):
  bad(['--limit', '--prompt is one'], 'decode', '--prompt=a', '--limit=1')
  bad(['--overwrite', 'no --out'], 'decode', '--prompt=a', '--overwrite')
  workdir = f'--workdir={tmp_path}'
  bad(['--from', '--refresh'], 'collect', workdir, '--prompts=x', '--from=y')
  bad(['--limit'], 'collect', workdir, '--refresh=x', '--from=y', '--limit=1')
  bad(['--tolerance', 'nan'], 'verify', '--tolerance=nan')


@pytest.mark.parametrize(
  'mesh', ['', 'data', 'data=0', f'data={"9" * 20}', 'data=2,data=4', 'x=1']
)
def test_meshes_of_inspect(specdiff, mesh):
  run = specdiff('inspect', 'preset:llama2_7b', f'--mesh={mesh},model=1')
  assert run.code == 2 and '--mesh has the part' in run.err
  run = specdiff('inspect', 'preset:llama2_7b', '--dtype=float32')
  assert run.code == 2 and '--dtype' in run.err


@pytest.mark.slow
def test_outputs(bad, tmp_path):
  never = '--config.verifier=nowhere.gguf'
  bad([tmp_path, 'Is a directory'], 'bench', f'--out={tmp_path}', never)
  grid = '--grid=gamma=4,0', f'--out={tmp_path}/g'
  bad(['gamma is 0'], 'bench', *grid, never)
  where = f'--out={tmp_path}/nowhere/out.jsonl'
  bad(['nowhere'], 'decode', '--prompt=a', '--config.system=ar', where)
  full = '--out=/dev/full'
  argv = 'decode', '--prompt=a', '--config.system=ar', full
  bad(['/dev/full', 'space'], *argv)


def test_weights(bad, tmp_path):
  def decode(words, verifier):
    bad(words, 'decode', '--prompt=a', f'--config.verifier={verifier}')

  decode(['nowhere.gguf'], 'nowhere.gguf')
  decode(['verifier', 'small', 'tiny'], 'random:small')
  torn = tmp_path / 'torn.gguf'
  torn.write_bytes(b'GGUF' + bytes(100))
  decode(['torn.gguf'], torn)


def write_drafter(tmp_path, root, **changes):
  """Writes an untrained drafter, then changes its metadata or a tensor."""
  from specdiff_jax.drafters import drafter_file
  from specdiff_jax.recipes import decoding
  from specdiff_jax.recipes import drafters as build_drafters

  config = recipe_file.load_recipe(f'{root}/configs/tiny.py:smoke')
  checkpoint = decoding.verifier(config)
  options = config.systems['specdiff']
  one = build_drafters.load(options, checkpoint, 'diffusion')
  path = str(tmp_path / 'drafter.safetensors')
  drafter_file.save(path, one.config, one.params, one.vocab, checkpoint, {})
  tensors, metadata = safetensors_io.load(path)
  shape, vocab = changes.pop('shape', None), changes.pop('vocab', None)
  if changes.pop('nan', None):
    tensors['network']['expand'][0] = np.nan
  if shape:
    tensors['network']['expand'] = np.zeros(shape, np.float32)
  if vocab:
    tensors['vocab'][0] = vocab
  safetensors_io.save(path, tensors, metadata | changes)
  return path


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes, words',
  [
    ({'verifier': '0123456789abcdef'}, ['0123456789abcdef', 'fingerprint']),
    ({'vocab_size': '999'}, ['999', '320', 'vocabulary']),
    ({'format': 'other'}, ['other']),
    ({'kind': 'autoregressive'}, ["'autoregressive'", "'diffusion'"]),
    ({'shape': (3, 5)}, ['network.expand', '(3, 5)']),
    ({'vocab': 320}, ["'vocab'", '319']),
    ({'nan': True}, ['network.expand', 'drafter', 'NaN']),
    ({'config': '{}'}, ['sizes']),
  ],
)
def test_drafters_of_another_kind(bad, tmp_path, root, changes, words):
  path = write_drafter(tmp_path, root, **changes)
  words = [*words, 'drafter.safetensors']
  bad(words, 'decode', '--prompt=a', f'--config.drafter={path}')


def test_a_diffusion_drafter_is_none_for_sps(bad, tmp_path, root):
  path = write_drafter(tmp_path, root)
  words = ["'autoregressive'", "'diffusion'", 'drafter.safetensors', 'drafters']
  more = ('--config.system=sps', f'--config.drafters.sps={path}')
  bad(words, 'decode', '--prompt=a', *more)


def test_arms_that_draft_nothing(bad):
  more = ('--config.system=adaptive', '--config.gammas=()')
  words = ['config.gammas is ()', 'config.budgets ()', '1 tokens']
  bad(words, 'decode', '--prompt=a', *more)


def test_an_exit_that_is_no_exit(bad):
  for layer in (-1, 99):
    more = ('--config.system=early_exit', f'--config.exit_layer={layer}')
    bad(['exit_layer', str(layer)], 'decode', '--prompt=a', *more)


@pytest.mark.slow
def test_a_good_drafter_is_taken(specdiff, tiny, root, tmp_path):
  path = write_drafter(tmp_path, root)
  run = specdiff('decode', tiny, '--prompt=a', f'--config.drafter={path}')
  assert run.code == 0, run.err


def test_drafter_files(bad, tmp_path):
  def decode(words, drafter):
    bad(words, 'decode', '--prompt=a', f'--config.drafter={drafter}')

  decode(['drafter'], '')
  decode(['nowhere.safetensors'], 'nowhere.safetensors')
  torn = tmp_path / 'torn.safetensors'
  torn.write_bytes(bytes(20))
  decode(['torn.safetensors'], torn)


def test_buffers_beyond_the_verifier(bad):
  more = ('--config.system=ar', '--config.max_new_tokens=100000')
  bad(['max_new_tokens'], 'decode', '--prompt=a', *more)


@pytest.mark.parametrize(
  'fields, words',
  [
    (['gamma=0'], ['config.gamma', '0', 'at least 1']),
    (['drafts=0'], ['config.drafts', '0', 'at least 1']),
    (['budget=1'], ['config.budget', '1', 'at least 2']),
    (['budget=-5'], ['config.budget', '-5', 'at least 2']),
    (['frontier=0'], ['config.frontier', '0', 'at least 1']),
    (['candidates=0'], ['config.candidates', '0', 'at least 1']),
    (['rule=typical'], ['config.rule', 'typical', 'match', 'rejection']),
    (['draft=beam'], ['config.draft', 'beam', 'shared_noise']),
  ],
)
@pytest.mark.parametrize('name', ['decode', 'bench', 'verify'])
def test_drafting_out_of_range(bad, name, fields, words):
  more = ['--prompt=a'] if name == 'decode' else []
  bad(words, name, *more, *(f'--config.{field}' for field in fields))


@pytest.mark.slow
@pytest.mark.parametrize(
  'system, fields, words',
  [
    ('best_first', ['budget=999'], ['999', 'budget', 'cache', '264']),
    ('specdiff2', ['drafts=99'], ['397', 'drafts=99', 'cache', '264']),
    ('lookup', ['gamma=500'], ['501', 'gamma=500', 'cache', '264']),
  ],
)
@pytest.mark.parametrize('name', ['decode', 'bench', 'verify'])
def test_trees_that_the_cache_cannot_hold(bad, name, system, fields, words):
  more = [f'--systems={system}']
  if name == 'decode':
    more = ['--prompt=a', f'--config.system={system}']
  more += [f'--config.{field}' for field in fields]
  bad([system, *words], name, *more)


def test_a_window_longer_than_the_drafters(bad, tmp_path, root):
  path = write_drafter(tmp_path, root)
  more = (f'--config.drafter={path}', '--config.gamma=5')
  words = ['config.gamma', '5', '4', 'drafter.safetensors', 'Lower gamma']
  bad(words, 'decode', '--prompt=a', *more)
  bad(words, 'bench', '--systems=specdiff', *more)
  bad(words, 'verify', '--systems=specdiff', *more)


@pytest.mark.parametrize(
  'system, rule, draft, words',
  [
    ('specdiff', 'rejection', 'shared_noise', ["'deterministic'", "'iid'"]),
    ('specdiff', 'block', 'argmax', ["'deterministic'", "'iid'"]),
    ('specdiff', 'without_replacement', 'sample', ["'iid'", "'distinct'"]),
    ('specdiff2', 'rejection', 'sample', ['selected', 'distribution']),
    ('best_first', 'block', 'sample', ["'deterministic'", "'iid'"]),
    ('tree', 'block', 'sample', ['single chain', 'trees']),
    ('lookup', 'rejection', 'sample', ["'deterministic'", "'iid'"]),
    ('adaptive', 'rejection', 'sample', ["'unknown'", "'iid'"]),
    ('adaptive', 'block', 'sample', ["'unknown'", "'iid'"]),
  ],
)
def test_rules_that_the_drafts_cannot_serve(bad, system, rule, draft, words):
  words = [f"config.rule='{rule}'", system, draft, 'rule=match', *words]
  more = (f'--config.rule={rule}', f'--config.draft={draft}')
  bad(words, 'decode', '--prompt=a', f'--config.system={system}', *more)
  bad(words, 'bench', f'--systems={system}', *more)


def test_plots_that_cannot_be_written(bad, tmp_path, monkeypatch):
  """Before anything is loaded."""
  never = '--config.verifier=nowhere.gguf'
  bad(['x.png', 'no folder'], 'bench', f'--plot={tmp_path}/no/x.png', never)
  bad(['x.txt', '.svg'], 'bench', f'--plot={tmp_path}/x.txt', never)
  (tmp_path / 'x.pdf').mkdir()
  bad(['x.pdf', 'is a folder'], 'bench', f'--plot={tmp_path}/x.pdf', never)

  bad(['nowhere.gguf'], 'bench', f'--plot={tmp_path}/x.png', never)
  monkeypatch.setattr(os, 'access', lambda *_: False)
  bad(['x.png', 'not writable'], 'bench', f'--plot={tmp_path}/x.png', never)
