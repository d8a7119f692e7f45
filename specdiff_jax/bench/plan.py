"""What a bench run compares, and against what."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from specdiff_jax.decoding import generate
from specdiff_jax.decoding import system as system_lib

Batches = Sequence[Sequence[generate.Request]]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Systems by name, with plain AR in every dtype beside them."""

  names: tuple[str, ...]  # rows of the table
  dtype: str  # of those rows
  ars: Mapping[str, tuple[str, int]]  # plain AR's name -> dtype, fastest shape
  rounds: int
  exact: bool  # outputs are compared to plain AR through the same shapes
  temperature: float
  make: Callable[[str, str, int], system_lib.System]  # name, dtype, slots
  facts: Mapping[str, Any]  # settings that a reader of the figures wants

  def systems(self) -> dict[str, system_lib.System]:
    """Returns all that is timed."""
    result = {
        name: self.make('ar', dtype, slots)
        for name, (dtype, slots) in self.ars.items()
    }
    for name in self.names:
      if name not in result:
        result[name] = self.make(name, self.dtype, 0)
    return result

  def references(
      self,
      systems: Mapping[str, system_lib.System],
      batches: Batches,
      plain: list[list[int]],
  ) -> dict[str, list[list[int]]]:
    """Returns the tokens that each row of the table has to give.

    They are those of plain AR padded to the system's own shapes or, unless
    `exact`, of plain AR at its fastest shape: `plain`. Plain AR at its fastest
    shape is its own reference.
    """
    padded = {}

    def through(slots: int) -> list[list[int]]:
      if slots not in padded:
        ar = self.make('ar', self.dtype, slots)
        padded[slots] = [c.tokens.tolist() for b in batches for c in ar(b)]
      return padded[slots]

    return {
        name: through(systems[name].engine.drafter.buckets[-1])
        if self.exact and name != 'ar'
        else plain
        for name in self.names
    }
