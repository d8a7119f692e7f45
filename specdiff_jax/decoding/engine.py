"""The one decode loop: draft, verify, accept, commit. It names no system."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import tree as tree_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import commit
from specdiff_jax.decoding.rules import accept
from specdiff_jax.models import transformer
from specdiff_jax.models import views
from specdiff_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Engine:
  """A verifier, a drafter and a rule, with the sizes of their buffers.

  Static under jit: equal engines share compiled programs.

  Attributes:
    model: the verifier's network.
    drafter: proposes trees.
    rule: walks them.
    max_new_tokens: room for the completion: T is this and the prompt's bucket,
      so that short prompts have short caches.
    cache_dtype: of the verifier's keys and values.
    cache_step: caches begin with room for about so many new tokens and grow
      by as many (`rows.grow`); 0 makes them full-sized at once.
    mesh: over which states are split (`rules.DECODING`); None for one device.
  """

  model: transformer.Transformer
  drafter: types.Drafter
  rule: types.AcceptanceRule
  max_new_tokens: int
  cache_dtype: str = 'float32'
  cache_step: int = 0
  mesh: jax.sharding.Mesh | None = None

  def __post_init__(self):
    accept.check(self.drafter, self.rule)

  def check_length(self, prompt: int) -> None:
    """Raises InputError if the verifier has no positions for such a prompt."""
    length, most = prompt + self.max_new_tokens, self.model.config.max_positions
    if length > most:
      raise errors.InputError(
        f'prompt and completion take up to {length} positions, but the '
        f'verifier was trained for {most}; lower max_new_tokens, or leave '
        f'prompts of {prompt} tokens out.'
      )

  def cache_slots(self, bucket: int, length: int) -> int:
    """Returns the size of the cache that rows of `length` tokens go on in.

    A whole tree written at the last position must fit: slices would clamp.
    """
    tree = self.drafter.buckets[-1]
    most = bucket + self.max_new_tokens + tree
    if not self.cache_step:
      return most
    steps = -(-(length - 1 + tree - bucket) // self.cache_step)
    return min(bucket + max(steps, 1) * self.cache_step, most)

  @functools.partial(jax.jit, static_argnums=0)
  def prefill(
    self,
    params: types.Params,
    drafter_params: types.Params,
    tokens: jax.Array,
    length: jax.Array,
    max_new_tokens: jax.Array,
    end_ids: jax.Array,
    sampling: types.Sampling,
    noise: types.Noise,
  ) -> types.DecodeState:
    """Reads prompts and emits the first token of each.

    Args:
      params: the verifier's.
      drafter_params: the drafter's.
      tokens: [B, P] prompts from the left, P one of a few bucket sizes.
      length: [B] prompt lengths; 0 marks a row that pads the batch.
      max_new_tokens: [B].
      end_ids: [N] tokens that end a row, -1 for none.
      sampling: the law.
      noise: keys of the requests.
    """
    batch, bucket = tokens.shape
    max_length = bucket + self.max_new_tokens
    slots = self.cache_slots(bucket, bucket + 1)
    used = jnp.maximum(length, 1)
    cache = transformer.empty_cache(
      self.model.config, batch, slots, self.cache_dtype
    )
    mask = views.causal_mask(used, bucket)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, slots - bucket)))
    positions = jnp.broadcast_to(jnp.arange(bucket), tokens.shape)
    hidden, cache, features = self.model.apply(
      {'params': params},
      tokens,
      positions,
      mask,
      cache,
      jnp.zeros_like(used),
      self.drafter.features,
    )
    rows = jnp.arange(batch)
    last = hidden[rows, used - 1][:, None]
    logits = self.model.apply({'params': params}, last, method='logits')
    first = sampling_lib.choose(logits, used[:, None], sampling, noise)[:, 0]
    buffer = jnp.zeros((batch, max_length), jnp.int32)
    buffer = buffer.at[:, :bucket].set(tokens)
    buffer = buffer.at[rows, used].set(first, mode='drop')
    limit = jnp.minimum(used + max_new_tokens, max_length)
    bad = commit.broken(logits) & (length > 0)
    done = (length == 0) | jnp.isin(first, end_ids) | (used + 1 >= limit) | bad
    depth = self.drafter.max_depth
    zeros = jnp.zeros(batch, jnp.int32)
    state = types.DecodeState(
      tokens=buffer,
      length=jnp.where(bad, used, used + 1),
      limit=limit,
      done=done,
      end_ids=end_ids,
      cache=cache,
      drafter=(),
      sampling=sampling,
      noise=noise,
      stats=types.Stats(
        zeros,
        zeros,
        jnp.zeros((batch, depth + 1), jnp.int32),
        bad=jnp.where(bad, 0, -1),
      ),
    )
    drafted = self.drafter.init(
      drafter_params, self.context(params, state), features
    )
    state = jax.tree.map(_strong, state.replace(drafter=drafted))
    return self.pinned(state)

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
  def decode(
    self,
    params: types.Params,
    drafter_params: types.Params,
    state: types.DecodeState,
    max_cycles: jax.Array,
    most_done: jax.Array | None = None,
  ) -> types.DecodeState:
    """Runs up to `max_cycles` cycles, fewer where so many rows are done.

    It stops once `most_done` rows are done, by default all; and before a live
    row's tree would be written past the cache, which then has to grow. The
    state is donated. A host streams text and refills rows between calls.
    """
    tree = self.drafter.buckets[-1]
    room = transformer.cache_slots(state.cache)

    def live(carry):
      cycle, state = carry
      done = jnp.sum(state.done)
      fits = jnp.all(state.done | (state.length - 1 + tree <= room))
      goal = state.done.size if most_done is None else most_done
      return (cycle < max_cycles) & (done < goal) & fits

    def cycles(slots, going):
      """Returns a function that runs cycles of one bucket while `going`."""

      def body(carry):
        cycle, state = carry
        state = self._cycle(slots, params, drafter_params, state)
        return cycle + 1, self.pinned(state)

      return lambda carry: lax.while_loop(going, body, carry)

    def wanted(carry):
      """Returns the largest bucket that a live row wants, and for how long."""
      cycle, state = carry
      index, count = self.drafter.wanted(drafter_params, state.drafter)
      index = jnp.max(jnp.where(state.done, 0, index))
      count = jnp.min(count, where=~state.done, initial=max_cycles)
      return index, cycle + count

    def while_wanted(index, slots):
      """Returns a function that runs cycles of a bucket while it is wanted."""

      def stretch(carry):
        until = wanted(carry)[1]
        return cycles(slots, lambda c: live(c) & (c[0] < until))(carry)

      def run(carry):
        cycle, state = carry
        drafter = self.drafter.enter(
          drafter_params, state.drafter, self.context(params, state), slots
        )
        return lax.while_loop(
          lambda c: live(c) & (wanted(c)[0] == index),
          stretch,
          (cycle, self.pinned(state.replace(drafter=drafter))),
        )

      return run

    start = jnp.int32(0), self.pinned(state)
    buckets = self.drafter.buckets
    if len(buckets) == 1:
      return cycles(buckets[0], live)(start)[1]
    # Three loops: a switch copies the caches that go through it, so cycles of
    # one bucket run inside it; and the choice holds for a stretch of cycles.
    runs = [while_wanted(i, slots) for i, slots in enumerate(buckets)]
    return lax.while_loop(
      live, lambda carry: lax.switch(wanted(carry)[0], runs, carry), start
    )[1]

  def pinned(self, state: types.DecodeState) -> types.DecodeState:
    """Returns the state split over the mesh, if there is one."""
    if self.mesh is None:
      return state
    return lax.with_sharding_constraint(
      state, rules.shardings(state, rules.DECODING, self.mesh)
    )

  def context(self, params, state: types.DecodeState) -> types.Context:
    return types.Context(state.tokens, state.length, params, state.cache)

  def _cycle(self, slots, params, drafter_params, state):
    """Draft, verify, accept, commit; one verifier pass over `slots` slots."""
    context = self.context(params, state)
    tree, drafted = self.drafter.draft(
      drafter_params,
      state.drafter,
      context,
      state.sampling,
      state.noise,
      slots,
    )
    logits, cache, features = self.verify(params, state, tree)
    depth = min(self.drafter.max_depth, slots - 1)
    verdict = self.rule(
      tree, logits, state.length, state.sampling, state.noise, depth
    )
    if features is not None:
      features = jax.vmap(lambda f, path: f[path])(features, verdict.path)
    drafted = self.drafter.observe(
      drafter_params, drafted, context, verdict, features
    )
    if not self.drafter.chain:
      cache = commit.gather_path(cache, verdict.path, state.length - 1)
    state = commit.commit(state, tree, verdict, commit.broken(logits))
    return state.replace(cache=cache, drafter=drafted)

  def verify(self, params, state, tree):
    """Scores all slots of the tree: logits [B, M, V], cache, features."""
    start = state.length - 1
    slots = transformer.cache_slots(state.cache)
    mask = tree_lib.cache_mask(tree, state.length, slots)
    hidden, cache, features = self.model.apply(
      {'params': params},
      tree.token,
      start[:, None] + tree.depth,
      mask,
      state.cache,
      start,
      self.drafter.features,
    )
    logits = self.model.apply({'params': params}, hidden, method='logits')
    return logits, cache, features


def _strong(leaf: jax.Array) -> jax.Array:
  """Returns the same array not weakly typed: another type is a recompile."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
    return leaf
  return lax.convert_element_type(leaf, leaf.dtype)
