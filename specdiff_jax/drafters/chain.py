"""What drafters of one chain have in common: bases of frozen dataclasses."""


class Stateless:
  """Drafts a chain from the committed tokens alone, and keeps nothing."""

  chain = True
  features = ()

  def init(self, params, context):
    del params, context
    return ()

  def observe(self, params, state, context, verdict, features, slots):
    del params, context, verdict, features, slots
    return state


class Chain(Stateless):
  """Drafts `gamma` tokens, one after the other."""

  gamma: int

  @property
  def buckets(self) -> tuple[int, ...]:
    return (self.gamma + 1,)

  @property
  def max_depth(self) -> int:
    return self.gamma
