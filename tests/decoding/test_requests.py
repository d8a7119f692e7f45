"""What asks for a completion: ids that key its noise, and settings."""

import numpy as np
import pytest

from specdiff_jax.core import errors
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib


def test_ids_of_one_crc32_have_numbers_of_their_own():
  import zlib

  one, other = 'plumless', 'buckeroo'  # the classic pair
  assert zlib.crc32(one.encode()) == zlib.crc32(other.encode())
  numbers = [request_lib.named(name, [1]).number for name in (one, other)]
  assert numbers[0] != numbers[1]
  assert all(0 <= number < 2**64 for number in numbers)
  assert max(numbers) >= 2**32  # both halves are used
  again = request_lib.named(one, [2, 3])
  assert again.number == numbers[0] and again.id == one
  assert request_lib.named('\ud800', [1]).number != numbers[0]


@pytest.mark.parametrize('number', [-1, 2**64])
def test_numbers_have_64_bits(number):
  with pytest.raises(errors.InputError, match=str(number)):
    request_lib.Request(number, [1])


def test_two_requests_of_one_id_are_refused():
  """The check comes before anything of the system is used."""
  system = session_lib.Session(
    None, None, None, request_lib.Settings(), 1, (8,)
  )
  one = request_lib.named('mine', [1])
  for twice in ([one, one], [one, request_lib.named('mine', [2])]):
    with pytest.raises(errors.InputError, match="2 requests.*'mine'"):
      system.decode(twice)
  with pytest.raises(errors.InputError, match='2 requests.*7'):
    system.decode([request_lib.Request(7, [1]), request_lib.Request(7, [1])])
  assert system.decode([]) == []


BAD = {
  'temperature': (
    float('nan'),
    float('inf'),
    -1.0,
    1e-46,
    1e-30,
    1e39,
    True,
    '1',
    None,
  ),
  'top_k': (-1, 2**31, 1.0, True, None),
  'top_p': (0, -1.0, 1e-44, 1e-38, 0.99999999, 1.1, float('nan'), True),
  'seed': (-1, 2**32, 2**63, 1.5, True, None),
  'max_new_tokens': (0, -1, 2**24 + 1, 2**31, 2.0, True),
}
GOOD = {
  'temperature': (0, 0.0, 1e-20, 1, np.float32(0.7), 1e20),
  'top_k': (0, 1, 2**31 - 1, np.int64(5)),
  'top_p': (1, 1.0, 0.9999999, np.float32(0.5), 1e-30, 1.2e-38),
  'seed': (0, 2**32 - 1, np.int32(4)),
  'max_new_tokens': (1, 2**24),
}


@pytest.mark.parametrize('name', BAD)
def test_settings_that_would_become_others_are_refused(name):
  for value in BAD[name]:
    with pytest.raises(errors.InputError, match=f'{name}=.*it has to be'):
      request_lib.Settings(**{name: value})
  for value in GOOD[name]:
    assert getattr(request_lib.Settings(**{name: value}), name) == value


def test_what_is_taken_stays_what_it_is_on_the_device():
  for value in GOOD['top_p'] + GOOD['temperature']:
    assert (np.float32(value) == 0) == (value == 0)
    assert value == 1 or np.float32(value) != 1
  for value in GOOD['temperature']:  # logits over it are numbers
    assert np.isfinite(np.float32(1e9) / np.float32(value or 1))
