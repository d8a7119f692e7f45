"""Paths on command lines and in recipes: `~` expanded, addresses refused."""

import os

import pytest

from specdiff_jax.cli import decode
from specdiff_jax.cli import distill
from specdiff_jax.cli import inspect
from specdiff_jax.core import errors
from specdiff_jax.recipes import training as build_training


@pytest.fixture(autouse=True)
def home(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')


def test_a_tilde_is_the_home(tiny):
  call = distill.COMMAND.parse([
      tiny, '--workdir=~/x', '--config.data=~/a,b,~/c', '--config.start_from=~',
      '--config.eval_prompts=("~/p.jsonl",)', '--config.cache_dir=~/cache',
      '--config.drafters.sps=~/d', '--config.masked_lm.tokenizer=~/t',
  ])  # fmt: skip
  config, training = call.config, call.config.training
  assert call.options.workdir == '/home/me/x'
  assert training.data == '/home/me/a,b,/home/me/c'
  assert training.start_from == '/home/me'
  assert training.eval_prompts == ('/home/me/p.jsonl',)
  assert config.model.cache_dir == '/home/me/cache'
  assert config.drafting.drafters.sps == '/home/me/d'
  assert training.masked_lm.tokenizer == '/home/me/t'
  assert config.model.verifier == 'random:tiny'  # as it was
  call = decode.COMMAND.parse(
    [tiny, '--prompt=~/x', '--out=~/x', '--prompts=a~']
  )
  assert call.options.prompt == '~/x'  # a text
  assert call.options.out == '/home/me/x' and call.options.prompts == 'a~'
  assert inspect.COMMAND.parse(['~/m']).argument == '/home/me/m'
  with pytest.raises(errors.InputError, match='/home/me/no.py'):
    decode.COMMAND.parse(['--config=~/no.py'])


@pytest.mark.parametrize(
  'flag, where',
  [
    ('--workdir=gs://bucket/x', '--workdir'),
    ('--workdir=gs:/bucket/x', '--workdir'),
    ('--config.data=a,s3://bucket', 'config.data'),
    ('--config.start_from=https://host/x', 'config.start_from'),
    ('--config.drafters.tree=hdfs://x', 'config.drafters.tree'),
  ],
)
def test_addresses_are_refused(tiny, flag, where):
  with pytest.raises(errors.InputError, match=f'^{where} is .*addresses'):
    distill.COMMAND.parse([tiny, flag])


def test_commas_in_names_of_directories(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a', 'b', 'x{y,z}', '1,2,3'):
    os.mkdir(name)
  folders = build_training._folders
  assert folders('a,b') == ['a', 'b']
  assert folders('x{y,z}') == ['x{y,z}']
  assert folders('a,x{y,z},b,1,2,3') == ['a', 'x{y,z}', 'b', '1,2,3']
  assert folders('nowhere,a') == ['nowhere', 'a']
  os.mkdir('a,b')
  assert folders('a,b') == ['a,b']
  with pytest.raises(errors.InputError, match='no name'):
    folders('a,')
