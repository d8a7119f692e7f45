"""The continuation of the latest earlier occurrence of a context's end."""

import jax
import jax.numpy as jnp


def continuation(
  tokens: jax.Array, length: jax.Array, gamma: int, ngram: int
) -> tuple[jax.Array, jax.Array]:
  """Copies what followed the longest, then latest, match of the last tokens.

  tokens a b c d a b with ngram 3 and gamma 3 match "a b" and yield c d a. A
  match that overlaps its own continuation repeats with its period.

  Args:
    tokens: [T] int32.
    length: how many of them count.
    gamma: how many tokens to copy.
    ngram: the longest match looked for.

  Returns:
    Copied tokens [G] and the length of the match, 0 to `ngram`; the tokens
    mean nothing where it is 0.
  """
  index = jnp.arange(tokens.shape[0])
  last = length - 1
  matched = jnp.zeros_like(index)
  alive = index < last
  for j in range(ngram):
    ours = tokens[jnp.maximum(last - j, 0)]
    theirs = jnp.roll(tokens, j)  # theirs[i] = tokens[i - j]
    alive &= (index >= j) & (last >= j) & (theirs == ours)
    matched += alive
  longest = jnp.max(matched)
  end = jnp.max(jnp.where(matched == longest, index, -1) * (longest > 0))
  period = jnp.maximum(last - end, 1)
  copied = tokens[(end + 1 + jnp.arange(gamma) % period) % tokens.shape[0]]
  return copied, longest
