"""What a cycle costs, and what of it is neither drafter nor verifier.

The cost model of the field is S = tau / (r + c_draft + c_overhead), in units of
one plain step: r is the verifier's pass over the tree, c_draft the drafter's
pass and its reading of what was accepted, c_overhead the rest of the cycle:
acceptance, commit, the loop. Each of r, c_draft and the whole cycle runs alone,
many times inside one compiled loop, at the same cache fill; they take turns.
The prediction is tau over the whole cycle, and c_overhead what is left of it.
"""

from collections.abc import Callable
import dataclasses
import functools
import resource
import sys
import time
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import engine as engine_lib


@dataclasses.dataclass(frozen=True)
class Costs:
  """Times in units of one plain step."""

  r: float  # the verifier's pass over the tree
  c_draft: float  # the drafter's pass and its `observe`
  cycle: float  # a whole cycle
  plain_seconds: float = 0.0  # the unit

  @property
  def overhead(self) -> float:
    """The cycle's time over that of its forwards alone, less 1."""
    return self.cycle / (self.r + self.c_draft) - 1

  def predicted_speedup(self, tau: float) -> float:
    """The cost model's speed-up, without what the host adds."""
    return tau / self.cycle


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def _verify(engine, params, state, passes, slots):
  """Runs `passes` verifications of other tokens each, at one place."""

  def body(_, carry):
    state, token = carry
    slot = jnp.arange(slots)
    tokens = (token[:, None] + slot) % engine.verifier.vocab_size
    tree = tree_lib.chain(tokens, jnp.ones(tokens.shape, bool))
    logits, cache, _ = engine.verifier.score(
      params, state.cache, tree, state.length, engine.drafter.features
    )
    # The next pass waits for this one, head included.
    token = jnp.argmax(logits, axis=-1).max(axis=1).astype(jnp.int32)
    return state.replace(cache=cache), token

  start = (state, jnp.zeros(state.length.shape, jnp.int32))
  return lax.fori_loop(0, passes, body, start)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _draft(engine, params, drafter_params, state, passes):
  """Runs `passes` drafts, each with what it reads after a full acceptance."""
  drafter = engine.drafter
  slots = drafter.buckets[-1]
  depth = min(drafter.max_depth, slots - 1)
  batch = state.length.shape[0]
  path = jnp.broadcast_to(jnp.arange(depth + 1), (batch, depth + 1))
  verdict = types.Verdict(path, path[:, -1], path[:, 0])

  def body(_, state):
    context = engine.context(params, state)
    tree, drafted = drafter.draft(
      drafter_params,
      state.drafter,
      context,
      state.sampling,
      state.noise,
      slots,
    )
    # What is read comes from what was drafted, so that nothing is hoisted.
    salt = 1e-6 * tree.token[:, -1, None, None, None]
    shape = (batch, depth + 1, len(drafter.features), engine.verifier.width)
    features = jnp.ones(shape) + salt if drafter.features else None
    drafted = drafter.observe(
      drafter_params, drafted, context, verdict, features, slots
    )
    rows = jnp.arange(batch)
    last = (context.last + tree.token[:, -1]) % 7
    tokens = state.tokens.at[rows, state.length - 1].set(last)
    return state.replace(tokens=tokens, drafter=drafted)

  return lax.fori_loop(0, passes, body, state)


def measure(
  engine: engine_lib.Engine,
  params: types.Params,
  drafter_params: types.Params,
  start: Callable[[], types.DecodeState],
  plain_slots: int,
  passes: int = 16,
  rounds: int = 5,
) -> Costs:
  """Times the parts of a cycle in turns; each compiles once before.

  Args:
    engine: whose cycle it is, of one bucket.
    params: the verifier's.
    drafter_params: the drafter's.
    start: returns a prefilled state with room for all the cycles.
    plain_slots: of the plain step that is the unit.
    passes: in a timed call.
    rounds: of which the fastest counts.
  """
  slots = engine.drafter.buckets[-1]
  count = jnp.int32(passes)

  def verify(state, size):
    return _verify(engine, params, state, count, size)[0]

  parts: dict[str, Callable[[Any], Any]] = {
    'plain': lambda state: verify(state, plain_slots),
    'verify': lambda state: verify(state, slots),
    'draft': lambda state: _draft(engine, params, drafter_params, state, count),
    'cycle': lambda state: engine.decode(params, drafter_params, state, count),
  }
  best = dict.fromkeys(parts, float('inf'))
  for number in range(rounds + 1):
    for name, part in parts.items():
      state = jax.block_until_ready(start())
      begin = time.perf_counter()
      state = jax.block_until_ready(part(state))
      seconds = time.perf_counter() - begin
      ran = passes
      if name == 'cycle':  # an end token can come early
        ran = max(int(state.stats.cycles.max()), 1)
      if number:  # the first round compiles
        best[name] = min(best[name], seconds / ran)
  unit = best['plain']
  return Costs(
    r=best['verify'] / unit,
    c_draft=best['draft'] / unit,
    cycle=best['cycle'] / unit,
    plain_seconds=unit,
  )


def read_bandwidth(megabytes: int = 512, rounds: int = 5) -> float:
  """Returns the bytes a second that this device reads, of a sum over memory."""
  array = jnp.ones((megabytes, 1 << 18), jnp.float32)
  total = jax.jit(jnp.sum)
  best = float('inf')
  for number in range(rounds + 1):
    begin = time.perf_counter()
    jax.block_until_ready(total(array))
    if number:  # the first round compiles
      best = min(best, time.perf_counter() - begin)
  return array.nbytes / best


def weight_bytes(params: types.Params) -> int:
  """Returns the bytes of weights that a plain step reads at least.

  All of them once. Of an embedding that is no head too, a row is read.
  """
  read = {
    name: one
    for name, one in params.items()
    if name != 'embed' or 'head' not in params
  }
  return sum(leaf.nbytes for leaf in jax.tree.leaves(read))


def peak_memory() -> int:
  """Returns the most bytes that were in use: the device's, on a CPU the process's."""
  stats = jax.devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return int(stats['peak_bytes_in_use'])
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return most if sys.platform == 'darwin' else most << 10
