"""What of a drafter is trained, and what it starts from."""

import types

import pytest

from specdiff_jax.core import errors
from specdiff_jax.drafters import scores
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters
from specdiff_jax.recipes import tuning
from specdiff_jax.testing import models

_SIZES = {
  'gamma': 4,
  'drafter': 'random',
  'network': {'layers': 1, 'trunk': 24, 'vocab': 40, 'ngram': 2},
  'masked_lm': {'mask_id': 60},
}


@pytest.mark.parametrize('new', [40, 30])
@pytest.mark.parametrize(
  ('kind', 'free'),
  [
    ('diffusion', True),
    ('dflash', True),
    ('autoregressive', True),
    ('eagle', False),  # rows of its own head belong to its tokens
    ('masked_lm', False),  # it has all tokens
  ],
)
def test_who_gets_another_vocabulary(kind, free, new):
  verifier = models.tiny_verifier()
  recipe = decoding.told(['sps'], _SIZES)
  network = drafters.sizes(recipe.systems['specdiff'], verifier, kind)
  config = types.SimpleNamespace(new_vocab=new, start_from='here')
  if free:
    assert tuning._of_vocab(network, config, verifier).vocab == new
  else:
    with pytest.raises(errors.InputError, match='here has weights for each'):
      tuning._of_vocab(network, config, verifier)


def test_matrices_are_rounded_only_where_that_is_asked():
  params = models.tiny_verifier().params
  of = lambda dtype: scores.in_dtype(lambda p, x: p['embed'].dtype, dtype)
  assert of('float32')(params, 0) == 'float32'
  assert of('bfloat16')(params, 0) == 'bfloat16'
