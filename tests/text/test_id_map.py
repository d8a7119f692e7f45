"""Ids of a drafter with a tokenizer of its own."""

import hf_reference
import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.text import id_map
from specdiff_jax.text import tokenizer as tokenizer_lib

TOKENS = [f't{i}' for i in range(200)]


def test_the_same_vocabulary_is_the_identity():
  ids, fraction = id_map.match(TOKENS, TOKENS)
  np.testing.assert_array_equal(ids, np.arange(200))
  assert ids.dtype == np.int32 and fraction == 0


def test_ids_follow_the_strings():
  order = np.random.default_rng(0).permutation(200)
  drafter = [TOKENS[i] for i in order]
  ids, fraction = id_map.match(drafter, TOKENS + ['more'])
  np.testing.assert_array_equal(ids, order)
  assert fraction == 0


def test_what_the_verifier_lacks_is_masked():
  drafter = TOKENS[:199] + ['alien']
  ids, fraction = id_map.match(drafter, TOKENS)
  assert ids[199] == id_map.MASKED and fraction == 1 / 200
  np.testing.assert_array_equal(ids[:199], np.arange(199))


def test_ids_without_a_token_do_not_count():
  ids, fraction = id_map.match(['a', None, 'b'], [None, 'b', 'a'])
  assert ids.tolist() == [2, -1, 1] and fraction == 0


def test_of_equal_strings_the_lowest_id_stands_for_all():
  ids, _ = id_map.match(['a', 'b'], ['b', 'a', 'a', 'b'])
  assert ids.tolist() == [1, 0]
  # Two ids must not share one of the verifier's: q would lose one of them.
  ids, fraction = id_map.match(['a', 'a', 'b'], ['a', 'b'], allowed=0.5)
  assert ids.tolist() == [0, -1, 1] and fraction == 1 / 3


@pytest.mark.parametrize(
  'lost, allowed, good',
  [
    (2, 0.01, True),  # just 1 %
    (3, 0.01, False),
    (3, 0.02, True),  # asked for
    (200, 0.02, False),
  ],
)
def test_more_disagreement_than_allowed_is_refused(lost, allowed, good):
  drafter = [f'new{i}' for i in range(lost)] + TOKENS[lost:]
  if good:
    assert id_map.match(drafter, TOKENS, allowed)[1] == lost / 200
    return
  with pytest.raises(errors.InputError) as error:
    id_map.match(drafter, TOKENS, allowed)
  for word in ("'new0'", 'id 1)', f'{lost} of its 200', 'allow'):
    assert word in str(error.value), word


def test_no_tokens_at_all_are_refused():
  with pytest.raises(errors.InputError, match='no tokens'):
    id_map.match([None, None], TOKENS)


def test_vocabularies_are_spelled_alike():
  """Byte-level letters and SentencePiece's signs of the same text."""
  letters = {'Ġthe': 0, 'Ã©': 1, 'Ċ': 2, '<|end|>': 3, 'Ġ': 4, 'Ã': 5}
  pieces = {'▁the': 0, 'é': 1, '\n': 2, '<|end|>': 3, '▁': 4, '<0xC3>': 5}
  assert id_map.spelled(letters) == id_map.spelled(pieces)
  # The name of an ASCII byte is no second spelling of its character.
  assert id_map.spelled({'<0x41>': 0, 'A': 2}) == ['<0x41>', None, 'A']
  ids, _ = id_map.match(id_map.spelled(letters), id_map.spelled(pieces))
  assert ids.tolist() == list(range(6))


def test_tokens_behind_the_weights_are_no_part_of_it():
  whole = tokenizer_lib.Tokenizer.bytes(260)
  assert max(whole.tokens().values()) == 259
  barred = whole.within(258, 'the verifier')
  assert max(barred.tokens().values()) == 257
  ids, _ = id_map.match(
    id_map.spelled(whole.tokens()),
    id_map.spelled(barred.tokens()),
  )
  assert ids[-3:].tolist() == [257, id_map.MASKED, id_map.MASKED]


def test_a_vocabulary_without_a_tokenizer_json(tmp_path):
  """As Dream's and DiffuCoder's: vocab.json, and added tokens beside it."""
  settings = {'added_tokens_decoder': {'2': {'content': '<|mask|>'}}}
  write = hf_reference.write_json
  write(tmp_path, 'vocab.json', {'a': 0, 'b': 1})
  write(tmp_path, 'tokenizer_config.json', settings)
  tokens = id_map.tokens_in(str(tmp_path))
  assert tokens == {'a': 0, 'b': 1, '<|mask|>': 2}
  assert id_map.mask_id(tokens) == 2
  for wrong in ({'x': {'content': 'c'}}, {'3': 5}, [5]):
    write(tmp_path, 'tokenizer_config.json', {'added_tokens_decoder': wrong})
    with pytest.raises(errors.InputError, match='tokenizer_config.json'):
      id_map.tokens_in(str(tmp_path))
