"""How far a compiled program is from what its chip allows.

Each launch takes as long as its bytes of memory or its FLOPs do, whichever is
longer; on a GPU all of them at least as long as launching them. A collective
takes as long as its bytes on one axis of links, less the work between its start
and its end. Nothing ran: this is what hardware that reached its data sheet
would show.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from specdiff_jax.parallel import topology
from specdiff_jax.tools.aot import hlo_costs

_EXCESS = {
  'cache copies': 'cache copies',
  'scores': 'scores',
  'weights': 'repeated weight reads',
  'cache': 'repeated cache reads',
  'logits': 'logits',
}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """A turn of a loop, or a call of any other program, on each chip.

  Attributes:
    chip: what it runs on.
    costs: of all that is compiled.
    floor: the least bytes of memory, by what they are.
    looped: whether a turn of the program's loop counts, or all of it.
  """

  chip: topology.Chip
  costs: hlo_costs.Costs
  floor: Mapping[str, int]
  looped: bool = False

  @property
  def work(self) -> Sequence[hlo_costs.Work]:
    """What is launched."""
    return [x for x in self.costs.work if x.looped or not self.looped]

  @property
  def hbm_bytes(self) -> int:
    """Bytes of memory that are read and written."""
    return sum(one.times * one.nbytes for one in self.work)

  @property
  def floor_bytes(self) -> int:
    """The least that this takes."""
    return sum(self.floor.values())

  @property
  def flops(self) -> int:
    """Of matrix products."""
    return sum(one.times * one.flops for one in self.work)

  @property
  def kernels(self) -> int:
    """Launches: fusions, products, copies and calls."""
    return sum(one.times for one in self.work)

  @property
  def call_bytes(self) -> int:
    """Bytes that move once a call, outside of the loop."""
    return self.costs.nbytes - self.hbm_bytes

  def causes(self) -> dict[str, int]:
    """Returns the bytes above the floor, by why they are moved."""
    moved: dict[str, int] = {}
    for one in self.work:
      for kind, nbytes in one.causes.items():
        moved[kind] = moved.get(kind, 0) + one.times * nbytes
    found = {
      cause: max(moved.get(kind, 0) - self.floor.get(kind, 0), 0)
      for kind, cause in _EXCESS.items()
    }
    rest = self.hbm_bytes - self.floor_bytes - sum(found.values())
    return found | {'other': rest}

  def exposed(self, one: hlo_costs.Traffic) -> float:
    """Returns the seconds of a collective that no other work hides."""
    ways = 2 if one.kind == 'all-reduce' else 1
    flops, nbytes = one.between
    hidden = self._seconds(flops, nbytes)
    return max(ways * one.nbytes / self.chip.links - hidden, 0.0)

  @property
  def waits(self) -> float:
    """The seconds of collectives that no other work hides."""
    return sum(
      self.exposed(x) for x in self.costs.traffic if x.looped or not self.looped
    )

  @property
  def seconds(self) -> float:
    """The time that it would take."""
    work = sum(
      one.times * self._seconds(one.flops, one.nbytes) for one in self.work
    )
    return max(work, self.kernels * self.chip.launch) + self.waits

  @property
  def floor_seconds(self) -> float:
    """The time of the least bytes, and of the FLOPs."""
    return self._seconds(self.flops, self.floor_bytes)

  @property
  def mfu(self) -> float:
    """The share of the chip's FLOP/s that it uses."""
    return self.flops / self.seconds / self.chip.flops

  def _seconds(self, flops: int, nbytes: int) -> float:
    return max(flops / self.chip.flops, nbytes / self.chip.bandwidth)

  def to_json(self) -> dict[str, Any]:
    """Returns its figures by name."""
    return {
      'hbm_bytes': self.hbm_bytes,
      'call_bytes': self.call_bytes,
      'floor_bytes': self.floor_bytes,
      'predicted_ms': round(1e3 * self.seconds, 4),
      'predicted_floor_ms': round(1e3 * self.floor_seconds, 4),
      'exposed_ms': round(1e3 * self.waits, 4),
      'kernels': self.kernels,
      'mfu': round(self.mfu, 4),
      'causes': self.causes(),
    }
