"""The tokens of a draft vocabulary: those that trajectories have most."""

import numpy as np

from specdiff_jax.data import windows


def tokens(source: windows.Source, size: int, vocab_size: int) -> np.ndarray:
  """Returns the `size` most frequent completion tokens, most frequent first.

  Ties, and tokens that no completion has, go by their count in the prompts
  (names, numbers), then by id.
  """
  completions, prompts = np.zeros((2, vocab_size), np.int64)
  for index in range(len(source)):
    np.add.at(completions, source[index].completion, 1)
    np.add.at(prompts, source[index].prompt, 1)
  order = np.lexsort((np.arange(vocab_size), -prompts, -completions))
  return order[:size].astype(np.int32)
