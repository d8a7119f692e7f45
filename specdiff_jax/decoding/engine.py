"""The one decode loop: draft, verify, accept, commit. It names no system."""

import dataclasses
import functools
from typing import cast

import chex
import jax
from jax import lax
import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.core import sampling as sampling_lib
from specdiff_jax.core import types
from specdiff_jax.decoding import buckets
from specdiff_jax.decoding import commit
from specdiff_jax.decoding import prefill as prefill_lib
from specdiff_jax.decoding.rules import accept
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.parallel import pin
from specdiff_jax.parallel import rules

# How a state is split over a mesh: rows over 'data', caches by heads too.
_SPLIT: tuple[rules.Rule, ...] = (
  (r'^end_ids$', ()),
  *cache_lib.SPLIT,
  (r'', (rules.ROWS,)),
)


@dataclasses.dataclass(frozen=True)
class Engine:
  """A verifier, a drafter and a rule, with the sizes of their buffers.

  Static under jit: equal engines share compiled programs.

  Attributes:
    verifier: scores trees.
    drafter: proposes them.
    rule: walks them.
    max_new_tokens: room for the completion: T is this and the prompt's bucket,
      so that short prompts have short caches.
    cache_step: caches begin with room for about so many new tokens and grow
      by as many (`rows.grow`); 0 makes them full-sized at once.
    mesh: over which states are split (`shardings`); None for one device.
    round_slots: whether caches have whole tiles and chunks of slots
      (`models.cache.rounded`), as accelerators want them.
    logprobs: whether log-probabilities of completion tokens are kept, those of
      the verifier at temperature 1, from the pass that verifies them.
    trace: whether it is kept which cycle yielded each completion token, and at
      which depth of its draft.

  Example:
    >>> import specdiff_jax as sd
    >>> system = sd.system('lookup', sd.testing.tiny_verifier(), gamma=4)
    >>> system.session.engine.cache_slots(bucket=64, length=64)
    197
  """

  verifier: protocols.Verifier
  drafter: protocols.Drafter
  rule: protocols.AcceptanceRule
  max_new_tokens: int
  cache_step: int = 0
  mesh: jax.sharding.Mesh | None = None
  round_slots: bool = False
  logprobs: bool = False
  trace: bool = False

  def __post_init__(self):
    accept.check(self.drafter, self.rule)

  @property
  def adaptive(self) -> protocols.AdaptiveDrafter | None:
    """The drafter, if it chooses among several buckets."""
    several = len(self.drafter.buckets) > 1
    return cast(protocols.AdaptiveDrafter, self.drafter) if several else None

  def check_length(self, prompt: int) -> None:
    """Raises InputError if the verifier has no positions for such a prompt."""
    length, most = prompt + self.max_new_tokens, self.verifier.max_positions
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
    slots = most = bucket + self.max_new_tokens + tree
    if self.cache_step:
      steps = -(-(length - 1 + tree - bucket) // self.cache_step)
      slots = min(bucket + max(steps, 1) * self.cache_step, most)
    return cache_lib.rounded(slots, most) if self.round_slots else slots

  @functools.partial(jax.jit, static_argnums=0)
  def prefill(
    self,
    params: types.Params,
    drafter_params: types.Params,
    prompt: types.Prompt,
    max_new_tokens: jax.Array,
    end_ids: jax.Array,
    sampling: types.Sampling,
    noise: types.Noise,
  ) -> types.DecodeState:
    """Reads prompts and emits the first token of each.

    Args:
      params: params of the verifier.
      drafter_params: params of the drafter.
      prompt: tokens [B, P], P one of a few bucket sizes; length 0 marks a row
        that pads the batch.
      max_new_tokens: [B].
      end_ids: [N] tokens that end a row, -1 for none.
      sampling: temperature, top-k and top-p of each row.
      noise: keys of the requests.
    """
    chex.assert_rank(prompt.tokens, 2)
    batch, bucket = prompt.tokens.shape
    chex.assert_shape((prompt.length, max_new_tokens, noise.key), (batch,))
    chex.assert_rank(end_ids, 1)
    max_length = bucket + self.max_new_tokens
    used = jnp.maximum(prompt.length, 1)
    rows, zeros = jnp.arange(batch), jnp.zeros(batch, jnp.int32)
    depth = self.drafter.max_depth
    buffer = jnp.zeros((batch, max_length), jnp.int32)
    limit = jnp.minimum(used + max_new_tokens, max_length)
    state = types.DecodeState(
      tokens=buffer.at[:, :bucket].set(prompt.tokens),
      length=used + 1,
      limit=limit,
      done=prompt.length == 0,
      end_ids=end_ids,
      cache=self.verifier.empty(batch, self.cache_slots(bucket, bucket + 1)),
      drafter=(),
      sampling=sampling,
      noise=noise,
      stats=types.Stats(
        zeros,
        zeros,
        jnp.zeros((batch, depth + 1), jnp.int32),
        bad=zeros - 1,
        ends=jnp.zeros((batch, depth + 1, len(types.ENDS)), jnp.int32),
      ),
      logprobs=jnp.zeros(buffer.shape, jnp.float32) if self.logprobs else None,
      # Zeros say what is so of the first token: prefill, the verifier's own.
      trace=jnp.zeros((*buffer.shape, 2), jnp.int32) if self.trace else None,
    )
    drafted = self.drafter.init(drafter_params, self.context(params, state))
    state = jax.tree.map(_strong, state.replace(drafter=drafted))

    def take(state, cache, features, start):
      if features is not None:
        drafted = cast(protocols.FeatureDrafter, self.drafter).read(
          drafter_params,
          state.drafter,
          self.context(params, state),
          features,
          start,
        )
        state = state.replace(drafter=drafted)
      return self.pinned(state.replace(cache=cache))

    with pin.over(self.mesh, batch):
      logits, state = prefill_lib.read(
        self.verifier,
        params,
        prompt.replace(length=used),
        self.pinned(state),
        self.drafter.features,
        take,
      )
    first = sampling_lib.choose(logits, used[:, None], sampling, noise)[:, 0]
    logprobs = state.logprobs
    if logprobs is not None:
      of_first = sampling_lib.logprobs(logits, first[:, None])[:, 0]
      logprobs = logprobs.at[rows, used].set(of_first, mode='drop')
    bad = commit.broken(logits) & ~state.done
    ended = jnp.isin(first, end_ids) | (used + 1 >= limit)
    state = state.replace(
      tokens=state.tokens.at[rows, used].set(first, mode='drop'),
      length=jnp.where(bad, used, used + 1),
      done=state.done | ended | bad,
      stats=state.stats.replace(bad=jnp.where(bad, 0, -1)),
      logprobs=logprobs,
    )
    return self.pinned(jax.tree.map(_strong, state))

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
    room = state.cache.slots

    def live(carry):
      cycle, state = carry
      done = jnp.sum(state.done)
      fits = jnp.all(state.done | (state.length - 1 + tree <= room))
      goal = state.done.size if most_done is None else most_done
      return (cycle < max_cycles) & (done < goal) & fits

    def cycle(slots, state):
      with pin.over(self.mesh):
        state = self._cycle(slots, params, drafter_params, state)
      return self.pinned(state)

    state, adaptive = self.pinned(state), self.adaptive
    if adaptive is None:
      return lax.while_loop(
        live,
        lambda carry: (carry[0] + 1, cycle(tree, carry[1])),
        (jnp.int32(0), state),
      )[1]

    def enter(slots, state):
      drafted = adaptive.enter(
        drafter_params, state.drafter, self.context(params, state), slots
      )
      return self.pinned(state.replace(drafter=drafted))

    return buckets.run(
      adaptive, drafter_params, cycle, enter, live, max_cycles, state
    )

  def pinned(self, state: types.DecodeState) -> types.DecodeState:
    """Returns the state split over the mesh, if there is one."""
    if self.mesh is None:
      return state
    return lax.with_sharding_constraint(state, self.shardings(state, self.mesh))

  def shardings(
    self, state: types.DecodeState, mesh: jax.sharding.Mesh
  ) -> types.DecodeState:
    """Returns the shardings of a state, given as shapes: by rows and heads."""
    rest = rules.shardings(state.replace(cache=()), _SPLIT, mesh)
    return rest.replace(cache=self.verifier.spec(state.cache, mesh))

  def context(
    self, params: types.Params, state: types.DecodeState
  ) -> protocols.Context:
    """Returns what the drafter may look at."""
    return protocols.Context(
      state.tokens,
      state.length,
      state.cache,
      params,
      self.verifier,
      state.end_ids,
    )

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
    logits, cache, features = self.verifier.score(
      params, state.cache, tree, state.length, self.drafter.features
    )
    depth = min(self.drafter.max_depth, slots - 1)
    verdict = self.rule(
      tree, logits, state.length, state.sampling, state.noise, depth
    )
    if features is not None:
      features = jax.vmap(lambda f, path: f[path])(features, verdict.path)
    drafted = self.drafter.observe(
      drafter_params, drafted, context, verdict, features, slots
    )
    cache = self.verifier.commit(
      cache, tree, verdict, state.length, self.drafter.chain
    )
    state = commit.commit(state, tree, verdict, logits)
    return state.replace(cache=cache, drafter=drafted)


def _strong(leaf: jax.Array) -> jax.Array:
  """Returns the same array not weakly typed: another type is a recompile."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
    return leaf
  return lax.convert_element_type(leaf, leaf.dtype)
