"""The verifier's likeliest tokens beside each completion token."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from specdiff_jax.data import trajectories
from specdiff_jax.models import top_k as top_k_lib


@dataclasses.dataclass(frozen=True, eq=False)
class TopK:
  """Adds `top_ids` and `top_log_p` to trajectories.

    extend = TopK(model, params, 8, 1.0, 4, (192, 384), count=128)
    records = extend(records)

  Attributes:
    model: network of the verifier.
    params: params of the verifier.
    k: tokens kept of each distribution.
    temperature: temperature of the distribution, above 0; top-k and top-p are
      left out of it.
    rows: trajectories in one pass, at most.
    sizes: tokens that trajectories are padded to, each compiled once.
    count: tokens of the longest completion.
  """

  model: Any
  params: Any
  k: int
  temperature: float
  rows: int
  sizes: Sequence[int]
  count: int

  def __call__(
    self, records: Sequence[trajectories.Trajectory]
  ) -> list[trajectories.Trajectory]:
    """Returns the records, at most `rows`, with the top k of each place."""
    longest = max(len(r.prompt) + len(r.completion) for r in records)
    size = min(size for size in self.sizes if size >= longest)
    tokens = np.zeros((self.rows, size), np.int32)
    length = np.ones(self.rows, np.int32)
    first = np.zeros(self.rows, np.int32)
    for row, record in enumerate(records):
      whole = np.concatenate([record.prompt, record.completion])
      tokens[row, : len(whole)] = whole
      length[row] = len(whole)
      first[row] = len(record.prompt) - 1
    ids, log_p = jax.device_get(
        top_k_lib.top_k(
            self.model, self.count, self.k, self.params,
            tokens, length, first, self.temperature,
        )
    )  # fmt: skip
    return [
      dataclasses.replace(
        record,
        top_ids=ids[row, : len(record.completion)],
        top_log_p=log_p[row, : len(record.completion)].astype(np.float16),
      )
      for row, record in enumerate(records)
    ]
