"""Whether a program of a recipe fits on chips that are not here."""

import dataclasses
from typing import Any

from specdiff_jax.core import printing
from specdiff_jax.core import reporting
from specdiff_jax.parallel import topology as topology_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.tools import tables
from specdiff_jax.tools.aot import lowering
from specdiff_jax.tools.aot import memory

_ROWS = 6  # of the largest arrays and collectives


@dataclasses.dataclass(frozen=True)
class Certificate:
  """What each chip has to hold and to do."""

  topology: str
  slices: int
  chips: int
  name: str  # of the program
  program: lowering.Program = dataclasses.field(repr=False)
  outcome: memory.Outcome

  @property
  def fits(self) -> bool:
    """Whether it can run."""
    return self.outcome.fits

  @property
  def advice(self) -> list[str]:
    """What to change so that it fits, most effective first."""
    return [] if self.fits else memory.advice(self.program.held, self.outcome)

  def to_json(self) -> dict[str, Any]:
    """Returns what the last line of `aot` holds."""
    outcome, costs = self.outcome, self.outcome.costs
    return {
      'topology': self.topology,
      'slices': self.slices,
      'program': self.name,
      'mesh': self.program.mesh,
      'chips': self.chips,
      'fits': outcome.fits,
      'peak_bytes': outcome.peak,
      'limit_bytes': outcome.limit,
      'memory': dict(outcome.parts),
      'held': dict(self.program.held),
      'flops_per_chip': costs and costs.flops,
      'collectives': costs.collectives() if costs else {},
      'largest': [vars(x) for x in (costs.arrays if costs else ())[:_ROWS]],
      'not_split': list(self.program.whole),
      'advice': self.advice,
      'compile_seconds': round(outcome.seconds, 1),
    }

  def to_markdown(self) -> str:
    """Returns the whole certificate."""
    found = self.outcome.costs
    flops = [f'FLOPs of each chip: {found.flops:.4g}'] if found else []
    work = [table.markdown() for table in self.work()]
    parts = [self.chip().markdown(), *flops, *work, *self.remarks()]
    return '\n\n'.join(parts)

  def chip(self) -> tables.Table:
    """Returns what each chip holds, and at its peak."""
    outcome = self.outcome
    held = {f'holds {what}': n for what, n in self.program.held.items()}
    every = (held | dict(outcome.parts)).items()
    rows = [(what, printing.size(count)) for what, count in every]
    fits = 'fits in' if outcome.fits else 'does not fit in'
    limit = (
      printing.size(outcome.limit) if outcome.limit else 'an unknown amount'
    )
    peak = f'{printing.size(outcome.peak)}, which {fits} {limit}'
    rows.append(('peak', peak))
    return tables.Table(('what', 'bytes'), rows, 'each chip')

  def work(self) -> list[tables.Table]:
    """Returns the collectives and the largest arrays, where it fits."""
    costs = self.outcome.costs
    if not costs:
      return []
    collectives = [
      (x.kind, f'{x.count:,}', printing.size(x.nbytes), x.shape, _end(x.label))
      for x in costs.traffic[:_ROWS]
    ]
    largest = [
      (printing.size(x.nbytes), x.shape, _end(x.label))
      for x in costs.arrays[:_ROWS]
    ]
    columns = 'kind', 'count', 'bytes', 'of', 'name'
    return [
      tables.Table(columns, collectives, 'collectives', words=5),
      tables.Table(
        ('bytes', 'shape', 'name'), largest, 'largest arrays', words=3
      ),
    ]

  def remarks(self) -> list[str]:
    """Returns what no mesh divides, the compiler's own list, and the advice."""
    whole = [f'Held whole by every chip: {line}' for line in self.program.whole]
    return [*whole, *filter(None, [self.outcome.allocations]), *self.advice]


def _end(label: str, size: int = 60) -> str:
  """Returns the end of a long name, which tells most."""
  return label if len(label) <= size else '...' + label[3 - size :]


def certify(
  config: recipe_lib.Recipe,
  topology: str,
  name: str = 'train',
  slices: int = 1,
  *,
  report: reporting.Reporter = reporting.SILENT,
) -> Certificate:
  """Compiles the program `name` of a config for a topology; nothing is loaded.

  Set JAX_PLATFORMS=cpu before: chips that are here then stay free. Raises
  InputError where config, mesh and topology do not go together.

  Example: certify(config, 'v5p:4x4x4').fits
  """
  devices = topology_lib.devices(topology, slices)
  limit = topology_lib.memory(devices)
  program = lowering.program(config, name, devices)
  report.say(f'Compiling for {len(devices)} devices ...')
  outcome = memory.compiled(program.lowered, limit)
  return Certificate(topology, slices, len(devices), name, program, outcome)
