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
  anew. Loops in turn, one for each bucket, in place of a switch: that would copy
  the caches that go through it.

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

  def turn(carry):
    """Returns a carry once each bucket has run while it was wanted."""
    for index, slots in enumerate(drafter.buckets):

      def wanted(carry, index=index):
        return live(carry[0]) & (carry[1][0] == index)

      def entered(pair, slots=slots):
        (count, state), chosen = pair[1]
        return False, ((count, enter(slots, state)), chosen)

      def body(carry, slots=slots):
        (count, state), chosen = carry
        count, state = count + 1, cycle(slots, state)
        chosen = lax.cond(
          count < chosen[1], lambda: chosen, lambda: choice(count, state)
        )
        return (count, state), chosen

      # Once at most: a condition would copy as well.
      _, carry = lax.while_loop(
        lambda pair: pair[0], entered, (wanted(carry), carry)
      )
      carry = lax.while_loop(wanted, body, carry)
    return carry

  begin = jnp.int32(0)
  (_, state), _ = lax.while_loop(
    lambda carry: live(carry[0]),
    turn,
    ((begin, state), choice(begin, state)),
  )
  return state
