"""What drafters have in common that fill a window of slots at once."""

from typing import Any

import jax

from specdiff_jax.core import protocols
from specdiff_jax.core import types
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib


class Window:
  """Makes trees of a window's marginals: a base of frozen dataclasses.

  Their `denoise` runs over the passes of the network:

    marginals = revealed = None
    for step in range(self.denoising.steps):
      revealed = self.reveal(step, marginals, revealed, sampling, noise)
      marginals = ...  # one pass, given what is revealed of the window
    marginals = self.settled(marginals, revealed)

  Attributes, which the dataclasses declare:
    gamma: slots of the window that are used.
    strategy: what is verified of the marginals.
    denoising: how the window is filled, in one pass or more.
  """

  gamma: int
  strategy: marginals_lib.Strategy
  denoising: denoising_lib.Denoising

  @property
  def proposal(self) -> str:
    # Later passes see earlier choices: no marginal is what the draft was drawn from.
    return 'unknown' if self.denoising.steps > 1 else self.strategy.proposal

  @property
  def chain(self) -> bool:
    return self.strategy.chain

  @property
  def buckets(self) -> tuple[int, ...]:
    return (self.strategy.slots(self.gamma),)

  @property
  def max_depth(self) -> int:
    return self.gamma

  def with_edges(self, params: Any, edges: Any) -> Any:
    """Returns the drafter's params with those of a lattice's source."""
    return params.replace(edges=edges)

  def draft(self, params, state, context, sampling, noise, slots):
    marginals, state = self.denoise(params, state, context, sampling, noise)
    return self.strategy(marginals, sampling, noise, slots), state

  def denoise(
    self,
    params: types.Params,
    state: types.State,
    context: protocols.Context,
    sampling: types.Sampling,
    noise: types.Noise,
  ) -> tuple[marginals_lib.Marginals, types.State]:
    """Returns the marginals of the gamma slots after the text, and the state."""
    raise NotImplementedError

  def reveal(
    self,
    step: int,
    marginals: marginals_lib.Marginals | None,
    revealed: denoising_lib.Revealed | None,
    sampling: types.Sampling,
    noise: types.Noise,
  ) -> denoising_lib.Revealed | None:
    """Returns what pass `step` is given, after the marginals before it."""
    if marginals is None:  # it is the first
      return None
    choice = self.strategy.pick(marginals, sampling, noise)
    return self.denoising.reveal(step, marginals, choice, revealed)

  def settled(
    self,
    marginals: marginals_lib.Marginals | None,
    revealed: denoising_lib.Revealed | None,
  ) -> marginals_lib.Marginals:
    """Returns what the last pass makes of the gamma slots."""
    assert marginals is not None  # there is one pass at least
    final = self.denoising.settled(marginals, revealed)
    used = final.logits, final.states
    logits, states = jax.tree.map(lambda x: x[:, : self.gamma], used)
    return final.replace(logits=logits, states=states)


class SharedContext(Window):
  """A window over a KV cache of its own, which several windows can share."""

  @property
  def takes_prefixes(self) -> bool:
    """Whether its slots can be shown tokens."""
    return True

  def denoise(self, params, state, context, sampling, noise):
    marginals = revealed = token = shown = None
    for step in range(self.denoising.steps):
      revealed = self.reveal(step, marginals, revealed, sampling, noise)
      if marginals is not None and revealed is not None:
        token = marginals.ids[revealed.index][:, None]
        shown = revealed.decided[:, None]
      filled = self.branches(params, state, context, token, shown)
      both = filled.logits, filled.states
      logits, states = jax.tree.map(lambda x: x[:, 0], both)
      marginals = filled.replace(logits=logits, states=states)
    return self.settled(marginals, revealed), state

  def branches(
    self,
    params: types.Params,
    state: types.State,
    context: protocols.Context,
    token: jax.Array | None = None,
    shown: jax.Array | None = None,
  ) -> marginals_lib.Marginals:
    """Returns the marginals [B, K, G, W] of K windows over one context.

    Args:
      params: the drafter's.
      state: the drafter's.
      context: what they follow.
      token: [B, K, G] tokens of the verifier; None: there is one window, of
        which nothing is shown. They may be less than the network's slots.
      shown: [B, K, G] which of them a window's slots see.
    """
    raise NotImplementedError
