"""What a program of a recipe needs of chips that are not here, and could do."""

import dataclasses
import re
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.core import reporting
from specdiff_jax.parallel import topology as topology_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.tools import tables
from specdiff_jax.tools.aot import lowering
from specdiff_jax.tools.aot import memory
from specdiff_jax.tools.aot import roofline as roofline_lib

_ROWS = 6  # of the largest arrays, collectives and launches
# What one run of a program is.
_TURNS = {'decode': 'cycle', 'prefill': 'prefill', 'train': 'step'}


@dataclasses.dataclass(frozen=True)
class Certificate:
  """What each chip has to hold and to do."""

  topology: str
  slices: int
  chips: int
  name: str  # of the program
  program: lowering.Program = dataclasses.field(repr=False)
  outcome: memory.Outcome
  chip: topology_lib.Chip
  plain: roofline_lib.Roofline | None = None  # of plain decoding
  tau: float = 0.0  # tokens of a cycle that a speed-up is told for

  @property
  def fits(self) -> bool:
    """Whether it can run."""
    return self.outcome.fits

  @property
  def advice(self) -> list[str]:
    """What to change so that it fits, most effective first."""
    return [] if self.fits else memory.advice(self.program.held, self.outcome)

  @property
  def roofline(self) -> roofline_lib.Roofline | None:
    """What it could do; None if that is not known."""
    return _roofline(self.program, self.outcome, self.chip)

  @property
  def speedup(self) -> float:
    """Over plain decoding, at tau; 0 where that is not known."""
    if not self.plain or not self.roofline:
      return 0.0
    return self.tau * self.plain.seconds / self.roofline.seconds

  def to_json(self) -> dict[str, Any]:
    """Returns what the last line of `aot` holds."""
    outcome, costs = self.outcome, self.outcome.costs
    line, plain = self.roofline, self.plain
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
      'compile_cpu_seconds': round(outcome.cpu_seconds, 1),
      'floor_bytes': sum(self.program.floor.values()),
      **(line.to_json() if line else {}),
      **({'plain_ms': round(1e3 * plain.seconds, 4)} if plain else {}),
      **({'speedup': round(self.speedup, 3)} if self.speedup else {}),
    }

  def memory(self) -> tables.Table:
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

  def speed(self) -> list[tables.Table]:
    """Returns the time that it would take, and why, where it fits."""
    line, turn = self.roofline, _TURNS[self.name]
    if not line:
      return []
    ratio = line.hbm_bytes / line.floor_bytes
    rows = [
      ('HBM bytes', f'{_gb(line.hbm_bytes)}: {ratio:.2f} times the floor'),
      ('floor', ', '.join(f'{k} {_gb(n)}' for k, n in line.floor.items())),
      (f'a {turn}', f'{_ms(line.seconds)}; at the floor '
       f'{_ms(line.floor_seconds)}; {100 * line.mfu:.1f} % of the FLOP/s'),
      ('kernels', f'{line.kernels:,}'),
    ]  # fmt: skip
    if line.call_bytes:
      rows.append(('once a call', _gb(line.call_bytes)))
    if self.plain:
      pays = line.seconds / self.plain.seconds
      told = f'{_ms(self.plain.seconds)} a token; tau > {pays:.2f} pays'
      rows.append(('plain decoding', told))
      rows.append((f'speed-up, tau {self.tau:g}', f'{self.speedup:.2f}'))
    causes = [
      (cause, _gb(nbytes), f'{nbytes / line.floor_bytes:+.2f}')
      for cause, nbytes in line.causes().items()
      if nbytes
    ]
    title = f'one {turn}, as its chip is specified'
    return [
      tables.Table(('what', 'predicted'), rows, title),
      tables.Table(('cause', 'bytes', 'of the floor'), causes, 'above it'),
      tables.Table(
        ('bytes', 'count', 'name'), _moved(line.work), 'moved', words=3
      ),
    ]

  def work(self) -> list[tables.Table]:
    """Returns the collectives and the largest arrays, where it fits."""
    costs, line = self.outcome.costs, self.roofline
    if not costs or not line:
      return []
    collectives = [
      (x.kind, f'{x.count:,}', printing.size(x.nbytes), _ms(line.exposed(x)),
       x.shape, _end(x.label))
      for x in costs.traffic[:_ROWS]
    ]  # fmt: skip
    largest = [
      (printing.size(x.nbytes), x.shape, _end(x.label))
      for x in costs.arrays[:_ROWS]
    ]
    columns = 'kind', 'count', 'bytes', 'not hidden', 'of', 'name'
    found = [tables.Table(columns, collectives, 'collectives', words=6)]
    return [
      *(found if collectives else []),
      tables.Table(
        ('bytes', 'shape', 'name'), largest, 'largest arrays', words=3
      ),
    ]

  def remarks(self) -> list[str]:
    """Returns what no mesh divides, the compiler's own words, and the advice."""
    whole = [f'Held whole by every chip: {line}' for line in self.program.whole]
    words = self.outcome.allocations, self.outcome.unread
    return [*whole, *filter(None, words), *self.advice]


def _end(label: str) -> str:
  """Returns the end of a long name, which tells most."""
  return label if len(label) <= 60 else '...' + label[-57:]


def _moved(work) -> list[tuple[str, str, str]]:
  """Returns the launches that move most, those of all layers together."""
  found: dict[str, tuple[int, int]] = {}
  for one in work:
    label = re.sub(r'layer_\d+', 'layer', one.label)
    if '/' not in label and one.causes:  # the compiler's own, as a prefetch
      label += f' of {max(one.causes, key=lambda x: one.causes[x])}'
    count, nbytes = found.get(label, (0, 0))
    found[label] = count + one.times, nbytes + one.times * one.nbytes
  most = sorted(found.items(), key=lambda x: -x[1][1])[:_ROWS]
  return [
    (_gb(nbytes), f'{count:,}', _end(label)) for label, (count, nbytes) in most
  ]


def _gb(nbytes: float) -> str:
  big = nbytes >= 1e8
  return f'{nbytes / (1e9 if big else 1e6):.3g} {"GB" if big else "MB"}'


def _ms(seconds: float) -> str:
  return f'{1e3 * seconds:.3g} ms'


def _roofline(program, outcome, chip) -> roofline_lib.Roofline | None:
  if outcome.costs is None:
    return None
  return roofline_lib.Roofline(
    chip, outcome.costs, program.floor, program.looped
  )


def certify(
  config: recipe_lib.Recipe,
  topology: str,
  name: str = 'train',
  slices: int = 1,
  *,
  tau: float = 0.0,
  report: reporting.Reporter = reporting.SILENT,
) -> Certificate:
  """Compiles the program `name` of a config for a topology; nothing is loaded.

  With `tau` plain decoding is compiled beside a decode loop. Set
  JAX_PLATFORMS=cpu before: chips that are here then stay free. Raises
  InputError where config, mesh and topology do not go together.

  Example: certify(config, 'v5p:4x4x4').fits
  """
  if tau and name != 'decode':
    raise errors.InputError(
      f'tau: a speed-up is one of the program decode, not of {name}; leave it '
      'out.'
    )
  devices = topology_lib.devices(topology, slices)
  chip = topology_lib.chip(devices)

  def outcome_of(config):
    program = lowering.program(config, name, devices)
    report.say(f'Compiling for {len(devices)} devices ...')
    limit = int(chip.memory)
    return program, memory.compiled(program.lowered, limit, program.names)

  program, outcome = outcome_of(config)
  plain = None
  if tau and outcome.costs:
    plain = _roofline(
      *outcome_of(config.change(system='ar', exact=False)), chip
    )
  return Certificate(
    topology, slices, len(devices), name, program, outcome, chip, plain, tau
  )
