"""A masked language model drafts: Dream, LLaDA, DiffuLLaMA, A2D, MDLM.

It has a network, an embedding and a vocabulary of its own. In each cycle it
reads committed tokens a b c and gamma masks:

    position         0  1  2  3  4  5
    token            a  b  c  ?  ?  ?
    same position             ^  ^  ^   outputs that fill the slots
    shifted                ^  ^  ^

A verifier's token that the drafter has no word for is a mask to it too.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import window
from specdiff_jax.drafters.masked_lm import model as masked_lm
from specdiff_jax.models import cache as cache_lib
from specdiff_jax.models import networks
from specdiff_jax.text import id_map

_CHUNK = 64  # tokens that are read at once where many are new


@flax.struct.dataclass
class MaskedLMParams:
  """What drafting reads: the model, and which of its ids are the verifier's."""

  network: Any
  feed: jax.Array  # [V] int32 the drafter's id of each token; its mask for none
  ids: jax.Array  # [W] int32 the verifier's tokens that can be drafted
  drafter_ids: jax.Array  # [W] int32 their ids in the drafter
  edges: Any = None  # of a lattice's source


def make_params(
  model: masked_lm.MaskedLM,
  network: Any,
  mapped: np.ndarray,
  vocab_size: int,
) -> MaskedLMParams:
  """Returns the params of a drafter.

  Args:
    model: the drafter.
    network: params of its network.
    mapped: [N] the verifier's id of each of the drafter's first N, or
      id_map.MASKED; the mask token and ids from N on are never drafted.
    vocab_size: V of the verifier.
  """
  mapped = np.array(mapped[: model.network.vocab_size], np.int32)
  mapped[model.mask_id : model.mask_id + 1] = id_map.MASKED
  mapped[mapped >= vocab_size] = id_map.MASKED
  drafter_ids = np.flatnonzero(mapped != id_map.MASKED).astype(np.int32)
  feed = np.full(vocab_size, model.mask_id, np.int32)
  feed[mapped[drafter_ids]] = drafter_ids
  return MaskedLMParams(
    network, *map(jnp.asarray, (feed, mapped[drafter_ids], drafter_ids))
  )


@flax.struct.dataclass
class PrefixState:
  """The KV cache of a prefix that does not see the masks."""

  cache: cache_lib.Cache
  read: jax.Array  # [B] int32 how many committed tokens are in it


@dataclasses.dataclass(frozen=True)
class MaskedLMDrafter(window.Window):
  """Fills gamma masks after the text; a strategy makes a tree of the marginals.

  Attributes:
    model: the masked language model.
    gamma: masks, as many as tokens drafted.
    strategy: what is verified of the marginals.
    denoising: how the masks are filled, in one pass or more.
    context_window: how many of the last committed tokens are read where the
      prefix has full attention; 0 for all. A shorter context makes drafts of
      long texts cheaper.
    largest: the largest gamma of drafters that share this one's state; 0 for
      its own.
  """

  model: masked_lm.MaskedLM
  gamma: int
  strategy: marginals_lib.Strategy = strategies.Chain()
  denoising: denoising_lib.Denoising = denoising_lib.Denoising()
  context_window: int = 0
  largest: int = 0

  @property
  def features(self) -> tuple[int, ...]:
    return ()

  def init(self, params, context):
    """Reads the prompt, if keys are kept; else there is nothing to keep."""
    tokens = context.tokens.shape[1]
    if tokens > self.max_tokens:
      raise errors.InputError(
        f'prompt, completion and draft take up to {tokens + self.gamma} '
        'positions, but the drafter was trained for '
        f'{self.model.network.max_positions}; lower max_new_tokens, '
        'prompt_buckets or gamma, or take another drafter.'
      )
    if self.model.prefix == 'full':
      return ()
    batch = context.length.shape[0]
    # A draft begins to write up to gamma + 1 slots before the last token.
    room = context.cache.slots
    room += 2 * max(self.gamma, self.largest) + 1
    cache = cache_lib.empty(
      self.model.network, batch, room, context.cache.dtype
    )
    state = PrefixState(cache, jnp.zeros(batch, jnp.int32))
    return self._catch_up(params, state, context)

  def denoise(self, params, state, context, sampling, noise):
    size, cache, keys = self.gamma + 1, None, None
    if self.model.prefix == 'full':
      size = context.tokens.shape[1]
      size = min(self.context_window or size, size)
    else:
      state = self._catch_up(params, state, context)
      cache = state.cache
      keys = jnp.arange(cache.slots)
    first = jnp.maximum(context.length - size, 0)
    index = first[:, None] + jnp.arange(size + self.gamma)
    mask = self._mask(index, keys, context.length)
    text = self._tokens(params, context, index)
    slot = (context.length - first)[:, None] + jnp.arange(self.gamma)
    rows = jnp.arange(index.shape[0])[:, None]
    marginals = revealed = after = None
    for step in range(self.denoising.steps):
      revealed = self.reveal(step, marginals, revealed, sampling, noise)
      given = text
      if revealed is not None:
        chosen = params.drafter_ids[revealed.index]
        filled = jnp.where(revealed.decided, chosen, self.model.mask_id)
        given = text.at[rows, slot].set(filled)
      # The keys of the prefix are the same in every pass.
      x, after = self._read(params, given, index, mask, cache, first)
      x = x[rows, slot - int(self.model.shifted)]
      marginals = self._marginals(params, context, x)
    settled = self.settled(marginals, revealed)
    return settled, state if after is None else PrefixState(
      after, context.length
    )

  def _marginals(self, params, context, x):
    """Returns the marginals that final states [B, G, E] give."""
    network = networks.network(self.model.network)
    logits = networks.apply(network, params.network, x, method='logits')
    return marginals_lib.Marginals(
      logits=logits[..., params.drafter_ids],
      ids=params.ids,
      root=context.last,
      length=context.length,
      vocab_size=params.feed.shape[0],
      states=x,
      edges=params.edges,
    )

  def observe(self, params, state, context, verdict, features, slots):
    del params, context, verdict, features, slots
    return state

  def _mask(self, index, keys, length):
    """Returns [B, M, S]: which keys the tokens at index [B, M] see.

    The keys are those at `keys` [S], or, where that is None, at `index`.
    """
    keys = index[:, None] if keys is None else keys[None, None]
    length = length[:, None, None]
    seen = jnp.broadcast_to(
      keys < length + self.gamma, index.shape + keys.shape[-1:]
    )
    if self.model.prefix == 'full':
      return seen
    index = index[..., None]
    return seen & ((keys <= index) | (index >= length))

  def _tokens(self, params, context, index):
    """Returns what the drafter reads at index [B, M]: the text, then masks."""
    place = jnp.minimum(index, context.tokens.shape[1] - 1)
    text = jnp.take_along_axis(context.tokens, place, axis=1)
    written = index < context.length[:, None]
    return jnp.where(written, params.feed[text], self.model.mask_id)

  def _read(self, params, tokens, index, mask, cache, start):
    """Runs the network: final states [B, M, E] and the cache."""
    network = networks.network(self.model.network)
    return networks.apply(
      network, params.network, tokens, index, mask, cache, start
    )[:2]

  def _catch_up(self, params, state, context):
    """Reads committed tokens until only those are left that a draft reads.

    After its own drafts there is nothing to do; it is the prompt that is read
    so, and what was committed while another drafter drafted.
    """
    wanted = context.length - (self.gamma + 1)
    room = state.cache.slots
    size = min(_CHUNK, room)

    def behind(state):
      return jnp.any(state.read < wanted)

    def read(state):
      start = jnp.minimum(state.read, room - size)
      index = start[:, None] + jnp.arange(size)
      mask = self._mask(index, jnp.arange(room), context.length)
      mask &= jnp.arange(room) <= index[..., None]
      tokens = self._tokens(params, context, index)
      cache = self._read(params, tokens, index, mask, state.cache, start)[1]
      # Right after `init` the last token is not known yet.
      done = jnp.minimum(start + size, context.length - 1)
      return PrefixState(cache, jnp.maximum(state.read, done))

    return lax.while_loop(behind, read, state)

  @property
  def max_tokens(self) -> int:
    """Tokens of the longest prompt and completion that it can draft for."""
    return self.model.network.max_positions - self.gamma
