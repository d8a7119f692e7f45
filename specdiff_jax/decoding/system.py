"""A ready system: an engine with its weights and settings."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.decoding import generate
from specdiff_jax.drafters import adaptive


@dataclasses.dataclass(frozen=True)
class Request(generate.Request):
  """A prompt in tokens, as a user names it."""

  id: str = ''


def request(name: str, prompt: Sequence[int]) -> Request:
  """Returns the request whose noise is keyed by its id alone.

  So its draws do not change with the other prompts of a file. (The number of
  rows decoded together may change the last bits of what they are drawn from,
  which in bf16 can turn a near-tie.) The number is 64 bits of the id's SHA-256,
  which no two ids share by chance.
  """
  digest = hashlib.sha256(name.encode('utf-8', 'surrogatepass')).digest()
  return Request(int.from_bytes(digest[:8], 'big'), prompt, name)


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
  settled_text: Callable[[Sequence[int]], str]  # what no later token changes
  size: Mapping[str, int]  # gamma, drafts, verify_tokens

  def __call__(
    self,
    requests: Sequence[generate.Request],
    *,
    on_tokens: Callable[[int, np.ndarray], bool] | None = None,
    on_done: Callable[[Any, generate.Completion], None] | None = None,
    clock: generate.Clock | None = None,
  ) -> list[generate.Completion]:
    """Decodes requests; the host looks when rows are done, or if it has to.

    Raises InputError where two have one id or number: their noise would be the
    same. Further completions of a prompt need ids of their own.
    """
    numbers = collections.Counter(request.number for request in requests)
    for request in requests:
      if numbers[request.number] > 1:
        name = getattr(request, 'id', '') or request.number
        raise errors.InputError(
          f'{numbers[request.number]} requests have the id {name!r}, which '
          'keys their draws: they would be the same. Give each its own.'
        )
    looks = {'cycles_per_call': self.cycles_per_call} if on_tokens else {}
    return generate.generate(
      self.engine,
      self.params,
      self.drafter_params,
      requests,
      self.settings,
      self.batch,
      self.buckets,
      on_tokens=on_tokens,
      on_done=on_done,
      clock=clock,
      **looks,
    )

  def warm_up(self, requests: Sequence[generate.Request]) -> None:
    """Compiles all that decoding requests of such lengths needs."""
    generate.warm_up(
      self.engine,
      self.params,
      self.drafter_params,
      requests,
      self.settings,
      self.batch,
      self.buckets,
    )

  def start(self, requests: Sequence[generate.Request]) -> types.DecodeState:
    """Returns the prefilled state of up to `batch` requests."""
    return generate.start(
      self.engine,
      self.params,
      self.drafter_params,
      requests[: self.batch],
      self.settings,
      self.batch,
      self.buckets,
    )

  def calibrated(self, requests: Sequence[generate.Request]) -> 'System':
    """Returns the system with its costs measured, if it chooses by costs."""
    drafter = self.engine.drafter
    if not isinstance(drafter, adaptive.Adaptive):
      return self

    every_row = jnp.int32(self.batch)  # `run` gives it too: one program

    def decode(drafter_params, state, cycles):
      return self.engine.decode(
        self.params, drafter_params, state, jnp.int32(cycles), every_row
      )

    params = adaptive.calibrate(
      drafter, self.drafter_params, lambda: self.start(requests), decode
    )
    return dataclasses.replace(self, drafter_params=params)
