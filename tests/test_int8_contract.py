"""The int8 verifier is the verifier: systems reproduce its plain decoding."""

import functools
import pathlib

import jax
import pytest

from specdiff_jax.core import errors
from specdiff_jax.models import int8
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe_file
from specdiff_jax.recipes import training as build_training

_RECIPE = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'tiny.py'


def config_of(kind, temperature=0.0):
  return recipe_file.load_recipe(
    f'{_RECIPE}:smoke',
    int8=kind,
    temperature=temperature,
    max_new_tokens=48,
    prompt_buckets=(128,),
    batch=1,
  )


@functools.lru_cache
def texts(kind, system, temperature):
  """Returns the tokens of every prompt."""
  config = config_of(kind, temperature)
  checkpoint = decoding.verifier(config)
  prompts = decoding.prompts(config, None, 4)
  rows = decoding.requests(config, checkpoint, prompts)
  done = {}
  decoding.system(config, checkpoint, system).decode(
    rows, on_done=lambda row, made: done.update({row.id: list(made.tokens)})
  )
  return [done[row.id] for row in rows]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize(
  ('kind', 'system'), [('verifier', 'lookup'), ('both', 'specdiff')]
)
def test_systems_emit_what_the_int8_verifier_emits(kind, system, temperature):
  plain = texts('verifier', 'ar', temperature)
  assert texts(kind, system, temperature) == plain


def test_it_is_another_verifier():
  """The control of the tests above: rounding is seen in the output."""
  rounded = [texts('verifier', 'ar', t) for t in (0.0, 1.0)]
  assert rounded != [texts('', 'ar', t) for t in (0.0, 1.0)]


def test_whose_weights_are_int8():
  for kind in ('', 'verifier', 'drafter', 'both'):
    config = config_of(kind)
    checkpoint = decoding.verifier(config)
    system = decoding.system(config, checkpoint, 'specdiff')
    for params, name in (
      (system.params, 'verifier'),
      (system.drafter_params.network, 'drafter'),
    ):
      found = any(x.dtype == 'int8' for x in jax.tree.leaves(params))
      assert found == (kind in (name, 'both')), (kind, name)


def test_it_is_refused_where_it_means_nothing():
  with pytest.raises(errors.InputError, match="int8 is 'all'.*drafter, both"):
    decoding.check(config_of('all'))
  with pytest.raises(errors.InputError, match='learns from weights'):
    build_training.check(config_of('verifier'))


def test_a_drafter_may_share_the_int8_head():
  config = config_of('verifier')
  checkpoint = decoding.verifier(config)
  system = decoding.system(config, checkpoint, 'specdiff')
  assert isinstance(system.drafter_params.head, int8.Int8)
