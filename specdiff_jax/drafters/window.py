"""What drafters have in common that fill a window of slots at once."""

from specdiff_jax.core import types
from specdiff_jax.drafters import denoising as denoising_lib
from specdiff_jax.drafters import marginals as marginals_lib


class Window:
  """Makes trees of a window's marginals: a base of frozen dataclasses.

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
    # Later passes see earlier choices: no marginal is the draft's own law.
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

  def tree(
    self,
    run: denoising_lib.Run,
    sampling: types.Sampling,
    noise: types.Noise,
    slots: int,
  ) -> types.DraftTree:
    """Returns the tree of `slots` slots that passes of the network give."""

    def pick(marginals):
      return self.strategy.pick(marginals, sampling, noise)

    final = self.denoising(run, pick)
    final = final.replace(logits=final.logits[:, : self.gamma])
    return self.strategy(final, sampling, noise, slots)
