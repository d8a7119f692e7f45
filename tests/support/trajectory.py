"""One trajectory, for the tests of data, training and collecting."""

import numpy as np

from specdiff_jax.data import trajectories


def trajectory(prompt, completion, **fields):
  """Returns a trajectory of these tokens, whose other fields may be given."""
  usual = {
      'id': 'a', 'prompt_hash': '0' * 16, 'temperature': 1.0, 'top_k': 0,
      'top_p': 1.0, 'seed': 0,
  }  # fmt: skip
  return trajectories.Trajectory(
    prompt=np.asarray(prompt, np.int32),
    completion=np.asarray(completion, np.int32),
    **(usual | fields),
  )
