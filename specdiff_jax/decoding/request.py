"""What goes into decoding on the host and what comes out of it."""

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import numbers
import time
from typing import Any

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import limits


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt; `number` keys its noise and is unique among the requests."""

  number: int
  prompt: Sequence[int]
  id: str = ''  # what a user calls it

  def __post_init__(self):
    if not 0 <= self.number < 2**64:
      raise errors.InputError(
        f'The number of a request is {self.number}, but it has to be at least '
        '0 and below 2**64.'
      )

  @property
  def name(self) -> str | int:
    """What a user knows it by."""
    return self.id or self.number


def named(id: str, prompt: Sequence[int]) -> Request:
  """Returns the request whose noise is keyed by its id alone.

  So its draws do not change with the other prompts of a file. (The number of
  rows decoded together may change the last bits of what they are drawn from,
  which in bf16 can flip a near-tie.) The number is 64 bits of the id's SHA-256,
  which no two ids share by chance.
  """
  digest = hashlib.sha256(id.encode('utf-8', 'surrogatepass')).digest()
  return Request(int.from_bytes(digest[:8], 'big'), prompt, id)


def check_distinct(requests: Sequence[Request]) -> None:
  """Raises InputError where two have one id or number: one noise."""
  numbers = collections.Counter(request.number for request in requests)
  for request in requests:
    if numbers[request.number] > 1:
      raise errors.InputError(
        f'{numbers[request.number]} requests have the id {request.name!r}, '
        'which keys their draws: they would be the same. Give each its own.'
      )


# What becomes no other value on the device: float32 there, int32, and seeds of
# 32 bits.
_LEAST_TOP_P = float(np.finfo(np.float32).tiny)  # less counts as 0
_LIMITS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
  'temperature': (
    numbers.Real,
    lambda x: (
      x == 0 or limits.LEAST_TEMPERATURE <= x <= limits.MOST_TEMPERATURE
    ),
    f'0 (greedy) or {limits.LEAST_TEMPERATURE:g} to {limits.MOST_TEMPERATURE:g}',
  ),
  'top_k': (
    numbers.Integral,
    lambda x: 0 <= x < 2**31,
    f'an integer: 0 (off), or 1 to {2**31 - 1}',
  ),
  'top_p': (
    numbers.Real,
    lambda x: x == 1 or _LEAST_TOP_P <= x and float(np.float32(x)) < 1,
    f'1 (off), or {_LEAST_TOP_P:.3g} to 0.9999999: others are 0 or 1 in '
    'float32',
  ),
  'seed': (
    numbers.Integral,
    lambda x: 0 <= x < 2**32,
    f'an integer of 32 bits, 0 to {2**32 - 1}',
  ),
  'max_new_tokens': (
    numbers.Integral,
    lambda x: 1 <= x <= limits.MOST_TOKENS,
    f'an integer, 1 to {limits.MOST_TOKENS}',
  ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Sampling and limits, all dynamic: changing them never recompiles."""

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0
  max_new_tokens: int = 128
  end_ids: tuple[int, ...] = ()

  def __post_init__(self):
    for name, (kind, good, wanted) in _LIMITS.items():
      value = getattr(self, name)
      # A truth value is a number to Python.
      if (
        isinstance(value, bool)
        or not isinstance(value, kind)
        or (not good(value))
      ):
        raise errors.InputError(f'{name}={value!r}, but it has to be {wanted}.')


@dataclasses.dataclass(frozen=True)
class Completion:
  """What one request yielded."""

  number: int
  tokens: np.ndarray  # [C] int32, with the end token if it came
  cycles: int  # verifier calls in which the row was live, prefill excluded
  emitted: int  # tokens of those calls
  accepted: np.ndarray  # [D+1] histogram of accepted draft tokens
  logprobs: np.ndarray | None = None  # [C] float32, where the engine keeps them
  ends: np.ndarray | None = None  # [D+1, 4] `accepted` by `core.types.ENDS`
  # [C, 2] the cycle of each token and its depth in the draft, as
  # `core.types.DecodeState.trace`, where the engine keeps them.
  trace: np.ndarray | None = None

  @property
  def tau(self) -> float:
    """Tokens emitted per verifier call, the bonus token included."""
    return self.emitted / max(self.cycles, 1)


@dataclasses.dataclass
class Clock:
  """Seconds spent, summed over requests, without those of the caller.

  And how often the host looked at what was decoded, one fetch each: never within
  a call of the loop.
  """

  prefill: float = 0.0
  decode: float = 0.0
  looks: int = 0

  @contextlib.contextmanager
  def adding(self, name: str) -> Iterator[None]:
    """Adds what the block takes."""
    begin = time.perf_counter()
    yield
    setattr(self, name, getattr(self, name) + time.perf_counter() - begin)


def bucket_for(length: int, buckets: Sequence[int]) -> int:
  """Returns the smallest bucket that holds a prompt of `length` tokens."""
  for bucket in sorted(buckets):
    if length <= bucket:
      return bucket
  raise errors.InputError(
    f'a prompt of {length} tokens is longer than the largest buffer, '
    f'{max(buckets)} tokens; raise prompt_buckets or shorten the prompt.'
  )


def by_bucket(
  requests: Sequence[Request], buckets: Sequence[int]
) -> list[collections.deque[int]]:
  """Returns the indices of the requests of each bucket that occurs."""
  queues = {}
  for index, request in enumerate(requests):
    bucket = bucket_for(len(request.prompt), buckets)
    queues.setdefault(bucket, collections.deque()).append(index)
  return list(queues.values())
