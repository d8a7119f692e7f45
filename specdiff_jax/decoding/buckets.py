"""Cycles of a drafter that chooses among several sizes of trees."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import protocols
from specdiff_jax.core import types

Carry = tuple[jax.Array, types.DecodeState]  # cycles so far, state


def run(
  drafter: protocols.AdaptiveDrafter,
  drafter_params: types.Params,
  cycle: Callable[[int, types.DecodeState], types.DecodeState],
  enter: Callable[[int, types.DecodeState], types.DecodeState],
  live: Callable[[Carry], jax.Array],
  max_cycles: jax.Array,
  state: types.DecodeState,
) -> types.DecodeState:
  """Runs cycles while `live`, each in the bucket that the batch wants.

  The largest that a live row wants, for a stretch of cycles: then it is asked
  anew. Two loops: a switch copies the caches that go through it, so that cycles
  of one bucket run inside it.

  Args:
    drafter: says what each row wants.
    drafter_params: params of the drafter.
    cycle: (slots, state) -> state, one cycle.
    enter: (slots, state) -> state, before cycles of these slots that follow
      others.
    live: whether to go on.
    max_cycles: [] the longest stretch.
    state: state of the decode loop.
  """

  def choice(count, state):
    """Returns the bucket that is wanted, and until which cycle."""
    index, cycles = drafter.wanted(drafter_params, state.drafter)
    index = jnp.max(jnp.where(state.done, 0, index))
    cycles = jnp.min(cycles, where=~state.done, initial=max_cycles)
    return index, count + cycles

  def stay(index, slots):
    """Returns a function that runs cycles of a bucket while it is wanted."""

    def body(carry):
      (count, state), chosen = carry
      count, state = count + 1, cycle(slots, state)
      chosen = lax.cond(
        count < chosen[1], lambda: chosen, lambda: choice(count, state)
      )
      return (count, state), chosen

    def stretch(carry):
      (count, state), chosen = carry
      return lax.while_loop(
        lambda carry: live(carry[0]) & (carry[1][0] == index),
        body,
        ((count, enter(slots, state)), chosen),
      )

    return stretch

  runs = [stay(i, slots) for i, slots in enumerate(drafter.buckets)]
  begin = jnp.int32(0)
  (_, state), _ = lax.while_loop(
    lambda carry: live(carry[0]),
    lambda carry: lax.switch(carry[1][0], runs, carry),
    ((begin, state), choice(begin, state)),
  )
  return state
