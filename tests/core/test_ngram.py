"""Prompt lookup against a search in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specdiff_jax.core import ngram as ngram_lib

continuation = jax.jit(ngram_lib.continuation, static_argnums=(2, 3))
continuations = jax.jit(
  jax.vmap(ngram_lib.continuation, (0, 0, None, None)), static_argnums=(2, 3)
)


def brute(tokens, gamma, ngram):
  """Returns the copy and the length of the match by looking everywhere."""
  longest, end = 0, None
  last = len(tokens) - 1
  for i in range(last):
    matched = 0
    while matched < ngram and i - matched >= 0:
      if tokens[i - matched] != tokens[last - matched]:
        break
      matched += 1
    if matched and matched >= longest:
      longest, end = matched, i
  if not longest:
    return None, 0
  text = list(tokens)
  for j in range(gamma):  # a copy may read what it has just written
    text.append(text[end + 1 + j])
  return text[len(tokens) :], longest


@pytest.mark.parametrize('ngram, gamma', [(1, 4), (2, 1), (3, 9), (5, 4)])
@pytest.mark.parametrize('vocab', [2, 4, 30])
def test_continuation_is_that_of_brute_force(ngram, gamma, vocab):
  rng = np.random.default_rng(100 * ngram + 10 * gamma + vocab)
  size, rows = 24, 60
  tokens = rng.integers(0, vocab, (rows, size)).astype(np.int32)
  length = rng.integers(1, size + 1, rows).astype(np.int32)
  copied, matched = continuations(tokens, length, gamma, ngram)
  hits = 0
  for row in range(rows):
    wanted, longest = brute(tokens[row, : length[row]], gamma, ngram)
    assert int(matched[row]) == longest
    if longest:
      hits += 1
      np.testing.assert_array_equal(copied[row], wanted)
  assert hits > 10


def test_the_example_of_the_docstring():
  tokens = jnp.array([1, 2, 3, 4, 1, 2, 0, 0, 0])
  copied, matched = continuation(tokens, jnp.int32(6), 3, 3)
  assert copied.tolist() == [3, 4, 1] and int(matched) == 2


def test_longest_beats_latest_and_latest_breaks_ties():
  longest = jnp.array([1, 2, 3, 7, 2, 9, 1, 2])  # "1 2" against the later "2"
  assert int(continuation(longest, jnp.int32(8), 1, 3)[0][0]) == 3
  latest = jnp.array([2, 3, 7, 2, 9, 1, 2])
  assert int(continuation(latest, jnp.int32(7), 1, 3)[0][0]) == 9


@pytest.mark.parametrize('length', [1, 2, 5])
def test_tokens_past_the_length_play_no_part(length):
  tokens = np.array([[4, 4, 5, 4, 4, 0, 0, 0]] * 4, np.int32)
  tokens[1:, length:] = [[4], [5], [9]]
  copied, matched = continuations(tokens, np.full(4, length), 4, 3)
  assert len(set(matched.tolist())) == 1
  assert (matched[0] > 0) == (length > 1)
  if length > 1:
    np.testing.assert_array_equal(copied, np.tile(copied[0], (4, 1)))
