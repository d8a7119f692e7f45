"""A ready system: an engine with its weights and settings."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any
import zlib

import numpy as np

from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import generate


@dataclasses.dataclass(frozen=True)
class Request(generate.Request):
  """A prompt in tokens, as a user names it."""

  id: str = ''


def request(name: str, prompt: Sequence[int]) -> Request:
  """Returns the request whose noise is keyed by its id alone.

  So its draws do not change with the other prompts of a file. (The shapes of
  its batch do, which in bf16 can turn a near-tie.)
  """
  number = zlib.crc32(name.encode()) & 0x7FFFFFFF
  return Request(number, prompt, name)


@dataclasses.dataclass(frozen=True, eq=False)
class System:
  """An engine with its weights and settings: requests in, completions out."""

  name: str
  engine: engine_lib.Engine
  params: Any
  drafter_params: Any
  settings: generate.Settings
  batch: int
  buckets: tuple[int, ...]
  cycles_per_call: int
  stop: tuple[str, ...]
  decode_text: Callable[[Sequence[int]], str]

  def __call__(
      self,
      requests: Sequence[generate.Request],
      *,
      on_tokens: Callable[[int, np.ndarray], bool] | None = None,
      clock: generate.Clock | None = None,
      max_new_tokens: int | None = None,
  ) -> list[generate.Completion]:
    """Decodes requests; the host looks in between only if it has to."""
    limits = self.settings
    if max_new_tokens is not None:
      limits = dataclasses.replace(limits, max_new_tokens=max_new_tokens)
    looks = {'cycles_per_call': self.cycles_per_call} if on_tokens else {}
    return generate.generate(
        self.engine,
        self.params,
        self.drafter_params,
        requests,
        limits,
        self.batch,
        self.buckets,
        on_tokens=on_tokens,
        clock=clock,
        **looks,
    )

  def warm_up(self, groups: Sequence[Sequence[generate.Request]]) -> None:
    """Compiles all that decoding these batches needs."""
    by_bucket = {}
    for group in groups:
      longest = max(len(request.prompt) for request in group)
      by_bucket[generate.bucket_for(longest, self.buckets)] = group
    for group in by_bucket.values():
      self(group, max_new_tokens=min(4, self.settings.max_new_tokens))
