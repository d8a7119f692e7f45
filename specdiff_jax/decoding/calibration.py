"""What cycles of several sizes cost, measured on real prompts."""

from collections.abc import Callable
import time

import jax
import numpy as np

from specdiff_jax.core import protocols
from specdiff_jax.core import types


def measured(
  drafter: protocols.AdaptiveDrafter,
  params: types.Params,
  start: Callable[[], types.DecodeState],
  decode: Callable[[types.Params, types.DecodeState, int], types.DecodeState],
  cycles: int,
  rounds: int,
) -> types.Params:
  """Measures the time of a cycle of each bucket, and what it accepts.

  Args:
    drafter: chooses among its buckets.
    params: params of the drafter.
    start: returns a prefilled state.
    decode: (params, state, cycles) -> state; the first call may compile.
    cycles: cycles of each timed call.
    rounds: timings of each bucket; the median of its share of a round counts.
  """
  sizes = range(len(drafter.buckets))
  forced = [drafter.forced(params, index) for index in sizes]
  states = [jax.block_until_ready(decode(f, start(), 1)) for f in forced]
  seconds = np.full((rounds, len(sizes)), np.nan)  # of a cycle
  for turn in range(rounds):  # a slow moment of the machine meets all of them
    for index in sizes:
      if states[index].done.all():
        states[index] = jax.block_until_ready(start())
      before = int(states[index].stats.cycles.max())
      begin = time.perf_counter()
      states[index] = decode(forced[index], states[index], cycles)
      after = int(jax.block_until_ready(states[index]).stats.cycles.max())
      taken = time.perf_counter() - begin
      if after > before:  # fewer than asked where rows ended
        seconds[turn, index] = taken / (after - before)
      else:  # the cache has no room for the next tree
        states[index] = jax.block_until_ready(start())
  whole = seconds[np.isfinite(seconds).all(axis=1)]
  if not len(whole):  # every row ended at once
    return params
  shares = np.median(whole / whole.mean(axis=1, keepdims=True), axis=0)
  return drafter.calibrated(
    params, shares / shares[0], [state.drafter for state in states]
  )
