"""What a cycle leaves behind: new tokens and counters."""

import jax
import jax.numpy as jnp

from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types


def broken(logits: jax.Array) -> jax.Array:
  """Returns [B]: whether logits [B, M, V] hold a NaN or +inf, in any slot.

  In a slot that is not accepted too: its values stay in the cache, where a NaN
  spoils what is read past it.
  """
  return ~jnp.all(logits < jnp.inf, axis=(1, 2))


def why(
  tree: types.DraftTree, verdict: types.Verdict, ended: jax.Array
) -> jax.Array:
  """Returns [B]: why no more was accepted, an index of `types.ENDS`.

  Args:
    tree: what was drafted.
    verdict: what was accepted of it.
    ended: [B] whether the text is over.
  """
  token = verdict.bonus[:, None]
  here = tree.valid & (tree.depth == verdict.count[:, None] + 1)
  alike = here & (tree.token == token)
  last = jnp.take_along_axis(verdict.path, verdict.count[:, None], axis=1)
  elsewhere = jnp.any(alike & (tree.parent != last), axis=1)
  # After the right token, of a chain that was not chosen.
  beside = jnp.any(alike & (tree.parent == last), axis=1)
  open = ~jnp.any(here, axis=1)
  if tree.candidates is not None:
    deepest = tree.candidates.shape[1] - 1
    of_depth = jnp.take_along_axis(
      tree.candidates,
      jnp.minimum(verdict.count, deepest)[:, None, None],
      axis=1,
    )[:, 0]
    known = jnp.any(of_depth == token, axis=1)
    open = known | (verdict.count > deepest)
  names = list(types.ENDS)
  found = jnp.where(
    open | beside, names.index('budget'), names.index('not in top-K')
  )
  found = jnp.where(elsewhere, names.index('wrong parent'), found)
  return jnp.where(ended, names.index('end'), found)


def commit(
  state: types.DecodeState,
  tree: types.DraftTree,
  verdict: types.Verdict,
  logits: jax.Array,
) -> types.DecodeState:
  """Appends the accepted tokens and the bonus, cut at an end or the limit.

  Rows whose logits [B, M, V] are `broken` stop, and get nothing of this cycle.
  """
  bad = broken(logits)
  batch, width = verdict.path.shape
  rows = jnp.arange(batch)[:, None]
  index = jnp.arange(width)[None]
  # Path [0, s1, s2, ..] emits tokens s1, s2, .., then the bonus.
  following = jnp.roll(verdict.path, -1, axis=1)
  emitted = jnp.where(
    index < verdict.count[:, None],
    tree.token[rows, following],
    verdict.bonus[:, None],
  )
  offered = verdict.count + 1
  ends = jnp.isin(emitted, state.end_ids) & (index < offered[:, None])
  first_end = jnp.where(jnp.any(ends, 1), jnp.argmax(ends, 1) + 1, width)
  room = state.limit - state.length
  count = jnp.minimum(jnp.minimum(offered, first_end), room)
  count = jnp.where(state.done | bad, 0, count)
  nowhere = state.tokens.shape[1]
  place = state.length[:, None] + index
  place = jnp.where(index < count[:, None], place, nowhere)
  length = state.length + count
  ended = jnp.any(ends & (index < count[:, None]), axis=1)
  over = ended | (length >= state.limit)
  live = (~state.done).astype(jnp.int32)
  logprobs = state.logprobs
  if logprobs is not None:
    new = sampling_lib.logprobs(logits[rows, verdict.path], emitted)
    logprobs = logprobs.at[rows, place].set(new, mode='drop')
  trace = state.trace
  if trace is not None:
    cycle = state.stats.cycles[:, None] + 1
    depth = jnp.where(index < verdict.count[:, None], index + 1, 0)
    new = jnp.stack(jnp.broadcast_arrays(cycle, depth), axis=-1)
    trace = trace.at[rows, place].set(new, mode='drop')
  accepted = state.stats.accepted.at[rows[:, 0], verdict.count].add(live)
  return state.replace(
    tokens=state.tokens.at[rows, place].set(emitted, mode='drop'),
    length=length,
    done=state.done | bad | over,
    stats=types.Stats(
      cycles=state.stats.cycles + live,
      emitted=state.stats.emitted + count,
      accepted=accepted,
      ends=state.stats.ends.at[
        rows[:, 0], verdict.count, why(tree, verdict, over)
      ].add(live),
      bad=jnp.where(bad & ~state.done, state.stats.cycles + 1, state.stats.bad),
    ),
    logprobs=logprobs,
    trace=trace,
  )
