"""What a bench run compares, and against what."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

from specdiff_jax.checkpoints import weights
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.tools.exactness import divergence
from specdiff_jax.tools.exactness import reading

AGAIN = 'ar again'  # plain decoding once more: the control
Batches = Sequence[Sequence[request_lib.Request]]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """Systems by name, with plain AR in every dtype beside them."""

  names: tuple[str, ...]  # systems of the table
  dtype: str  # theirs
  ars: Mapping[str, tuple[str, int]]  # plain AR's name -> dtype, fastest shape
  rounds: int
  exact: bool  # outputs are compared to plain AR through the same shapes
  temperature: float
  coupled: Collection[str]  # systems whose very tokens are plain decoding's
  make: Callable[[str, str, int], session_lib.Session]  # name, dtype, slots
  facts: Mapping[str, Any]  # settings that a reader of the figures wants

  def systems(self) -> dict[str, session_lib.Session]:
    """Returns all that is timed."""
    result = {
      name: self.make('ar', dtype, slots)
      for name, (dtype, slots) in self.ars.items()
    }
    for name in self.names:
      if name not in result:
        result[name] = self.make(name, self.dtype, 0)
    return result

  def padded(
    self, systems: Mapping[str, session_lib.Session]
  ) -> dict[int, session_lib.Session]:
    """Returns plain AR through the shapes of each system, by their slots."""
    slots = {self.same_shape(systems[name]) for name in self.coupled} - {0}
    return {each: self.make('ar', self.dtype, each) for each in sorted(slots)}

  def references(
    self,
    systems: Mapping[str, session_lib.Session],
    padded: Mapping[int, session_lib.Session],
    batches: Batches,
    plain: list[list[int]],
  ) -> dict[str, list[list[int]]]:
    """Returns the tokens that each system of the table has to give.

    They are those of plain AR `padded` to the system's own shapes, or of plain
    AR at its fastest shape, `plain`; see `same_shape`.
    """
    found = {slots: texts(ar, batches) for slots, ar in padded.items()}
    return {
      name: found.get(self.same_shape(systems[name]), plain)
      for name in self.names
    }

  def same_shape(self, system: session_lib.Session) -> int:
    """Returns the slots that make plain AR's passes those of the system.

    0 if it is compared with plain AR at its fastest shape: so is plain AR
    itself, a system that chooses among shapes, and all unless `exact`.
    """
    buckets = system.engine.drafter.buckets
    padded = self.exact and system.name != 'ar' and len(buckets) == 1
    return buckets[0] if padded else 0

  def near_ties(
    self,
    system: session_lib.Session,
    plain: session_lib.Session,
    requests: Sequence[request_lib.Request],
    expected: Sequence[Sequence[int]],
    got: Sequence[Sequence[int]],
  ) -> int:
    """Returns how many outputs differ by no more than rounding explains.

    None of a chain through the same shapes: there is no rounding between them.
    """
    same = all(list(a) == list(b) for a, b in zip(expected, got))
    drafter, slots = system.engine.drafter, self.same_shape(system)
    if same or system.name not in self.coupled or (slots and drafter.chain):
      return 0
    passes = reading.passes(slots or plain.engine.drafter.buckets[-1], drafter)
    comparison = divergence.Comparison(plain, passes)
    found = comparison.compare(requests, expected, got)
    return sum(d.near_tie for d in found.divergences)


def texts(session: session_lib.Session, batches: Batches) -> list[list[int]]:
  """Returns the tokens of each request's completion."""
  return [c.tokens.tolist() for batch in batches for c in session.decode(batch)]


def planned(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  names: Sequence[str] | None,
  rounds: int | None,
  control: bool = False,
) -> Plan:
  """Returns what `bench` does; `names` and `rounds` go before the recipe's."""
  options, own_dtype = recipe.bench, recipe.model.dtype
  names = tuple(dict.fromkeys(names or options.systems))
  for name in names:
    systems.one_of('systems', name, systems.SYSTEMS)
  names += (AGAIN,) * control
  ars = {'ar': own_dtype}
  for dtype in options.ar_dtypes:
    if dtype != own_dtype:
      ars[f'ar {dtype}'] = dtype

  def make(name: str, dtype: str, slots: int) -> session_lib.Session:
    if name == AGAIN:
      name, slots = 'ar', systems.ar_slots(recipe, dtype)
    same = dtype == recipe.model.dtype
    loaded = checkpoint if same else decoding.verifier(recipe, dtype)
    return decoding.system(recipe, loaded, name, slots)

  temperature = recipe.sampling.temperature
  return Plan(
    names=names,
    dtype=own_dtype,
    ars={n: (d, systems.ar_slots(recipe, d)) for n, d in ars.items()},
    rounds=rounds or options.rounds,
    exact=recipe.systems['ar'].exact,
    temperature=temperature,
    coupled=[
      name
      for name in names
      if temperature == 0
      or name == AGAIN
      or systems.rule(recipe, name) == 'match'
    ],
    make=make,
    facts=recipe.reported('bench'),
  )
