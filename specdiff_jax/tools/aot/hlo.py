"""HLO texts: the instructions of a compiled program, and how often each runs.

XLA's own cost analysis sees the body of a loop once. Here it counts as often as
the loop turns, where that can be told: a `lax.scan` and a `fori_loop` with
fixed bounds, or a loop traced in `jax.named_scope('trips_N')`, which says that
it turns N times at most. Any other loop, as that over the cycles of decoding,
counts once. Every branch of a conditional counts, unless `walk` is told which.

  %body (p: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
    ...
    %sum = f32[8,64]{1,0} all-reduce(%part), replica_groups=..., to_apply=%add
  }
  ENTRY %main (x: f32[8,64]) -> f32[8,64] {
    %loop = (s32[], f32[8,64]) while(%start), condition=%less, body=%body
  }
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
import re

COLLECTIVES = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
    'ragged-all-to-all', 'collective-permute', 'collective-broadcast',
)  # fmt: skip
_BITS = {'pred': 8}  # other dtypes have theirs in their name

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'(?:^|\s)([a-z][a-z0-9\-]*)\(')
_SHAPE = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?')
_CALLED = re.compile(
  r'\b(?:calls|condition|body|true_computation|false_computation|to_apply'
  r'|branch_computations|called_computations)'
  r'=\{?((?:%?[\w.\-]++(?!=)(?:, )?)+)'
)
TRIPS = re.compile(r'\btrips_(\d+)\b')  # of the innermost loop's own name


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array's: dtype, dimensions, and how it lies in memory."""

  dtype: str
  dims: tuple[int, ...]
  layout: str = ''  # '1,0:T(8,128)'

  @property
  def elements(self) -> int:
    """How many numbers it has."""
    return math.prod(self.dims)

  @property
  def nbytes(self) -> int:
    """Bytes of its numbers."""
    return self.elements * self.bits // 8

  @property
  def padded(self) -> int:
    """Bytes that it takes in tiles: T(8,128) pads its two minor dimensions."""
    order, _, tiling = self.layout.partition(':')
    tile = re.match(r'T\(([\d,]+)\)', tiling)
    if not tile or not order:
      return self.nbytes
    sizes = [self.dims[int(i)] for i in order.split(',')]  # minor to major
    for i, part in enumerate(reversed(tile.group(1).split(','))):
      if i < len(sizes):
        sizes[i] = -(-sizes[i] // int(part)) * int(part)
    return math.prod(sizes) * self.bits // 8

  @property
  def in_main_memory(self) -> bool:
    """False for the scratch memories of a chip, which layouts name S(1)..."""
    return not re.search(r'S\([1-9]', self.layout)

  @property
  def bits(self) -> int:
    """Of each number."""
    return _BITS.get(self.dtype) or int(re.findall(r'\d+', self.dtype)[0])

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]  # of the result; several of a tuple
  operands: tuple[str, ...]
  rest: str  # what follows the operands
  literal: str  # what stands between the parentheses
  root: bool

  @property
  def label(self) -> str:
    """The name that the program's author would know it by."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found.group(1) if found else self.opcode

  @property
  def collective(self) -> str:
    """The collective that it is or starts; '' for anything else."""
    name = self.opcode.removesuffix('-start')
    return name if name in COLLECTIVES else ''

  def attribute(self, name: str) -> str:
    """Returns the word after `name=`; '' if there is none."""
    found = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
    return found.group(1) if found else ''

  def calls(self) -> list[str]:
    """Returns the computations that it runs."""
    if self.opcode.endswith(('-done', '-update')):
      return []  # they name those of their start
    return [
      name.strip().lstrip('%')
      for group in _CALLED.findall(self.rest)
      for name in group.split(',')
      if name.strip()
    ]


Computation = Mapping[str, Instruction]
Computations = Mapping[str, Computation]


def parse(text: str) -> tuple[Computations, str]:
  """Returns every computation by its name, and the name of the entry's.

  text: of a module, as `compiled.as_text()` gives it.
  """
  computations, entry, current = {}, '', {}
  for line in text.splitlines():
    if found := _INSTRUCTION.match(line):
      instruction = _instruction(*found.groups())
      if instruction:
        current[instruction.name] = instruction
    elif found := _COMPUTATION.match(line):
      current = computations.setdefault(found.group(2), {})
      entry = found.group(2) if found.group(1) else entry
  return computations, entry


def _instruction(root, name, text) -> Instruction | None:
  """Parses `f32[8]{0} add(%a, %b), metadata={...}`."""
  found = _OPCODE.search(text)
  if not found:
    return None
  end, depth = found.end(), 1
  while end < len(text) and depth:
    depth += {'(': 1, ')': -1}.get(text[end], 0)
    end += 1
  literal = text[found.end() : end - 1]
  shapes = _SHAPE.findall(text[: found.start()])
  return Instruction(
    name=name,
    opcode=found.group(1),
    shapes=tuple(
      Shape(dtype, tuple(int(n) for n in dims.split(',') if n), layout)
      for dtype, dims, layout in shapes
    ),
    operands=tuple(re.findall(r'%([\w.\-]+)', literal)),
    rest=text[end:],
    literal=literal,
    root=bool(root),
  )


def root_of(computation: Computation) -> Instruction | None:
  """Returns the instruction that is a computation's result."""
  return next((i for i in computation.values() if i.root), None)


Taken = Callable[[Instruction, str], Sequence[str]]


def walk(
  computations: Computations,
  name: str,
  times: int = 1,
  fused: bool = False,
  taken: Taken | None = None,
) -> Iterator[tuple[Instruction, str, int, bool]]:
  """Yields (instruction, its computation, how often it runs, is it fused).

  taken: (conditional, its computation) -> the branches that count.
  """
  inside = computations.get(name, {})
  for one in inside.values():
    yield one, name, times, fused
    if one.collective or one.opcode.startswith('reduce'):
      continue  # what it calls combines two numbers
    turns = 1
    if one.opcode == 'while':
      turns = trip_count(one, inside, computations)
    apart = one.opcode in ('while', 'conditional', 'call', 'async-start')
    chosen = taken if one.opcode == 'conditional' else None
    for called in chosen(one, name) if chosen else one.calls():
      yield from walk(
        computations, called, times * turns, fused or not apart, taken
      )


def trip_count(
  loop: Instruction, inside: Computation, computations: Computations
) -> int:
  """Returns how often a `while` turns: 1 where that cannot be told."""
  told = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
  told = told or TRIPS.search(loop.label.rpartition('while/body')[2])
  if told:
    return int(told.group(1))
  condition = computations.get(loop.attribute('condition'), {})
  place, bound = _less_than(condition, computations)
  if bound is None:
    return 1
  first = step = None
  start = inside.get(loop.operands[0])
  if start and start.opcode == 'tuple':
    first = _constant(start.operands[place], inside)
  body = computations.get(loop.attribute('body'), {})
  root = root_of(body)
  if root and root.opcode == 'tuple':
    step = _step(root.operands[place], body, computations)
  return max(-(-(bound - (first or 0)) // (step or 1)), 1)


def _less_than(
  condition: Computation, computations: Computations
) -> tuple[int, int | None]:
  """Returns (i, n) of a condition `element i < n`; n is None of any other."""
  root = root_of(condition)
  names = list(root.operands) if root else []
  if root and root.opcode == 'fusion':
    within = computations.get(root.calls()[0], {})
    outer = {
      i.name: names[int(i.literal)]
      for i in within.values()
      if i.opcode == 'parameter'
    }
    root = root_of(within)
    names = [outer.get(n, n) for n in root.operands] if root else []
    condition = {**within, **condition}
  if not root or root.opcode != 'compare' or 'direction=LT' not in root.rest:
    return 0, None
  index = condition.get(names[0])
  if not index or index.opcode != 'get-tuple-element':
    return 0, None
  return int(index.attribute('index')), _constant(names[1], condition)


def _step(name: str, body: Computation, computations) -> int | None:
  """Returns n where a value is `something + n`, fused or not."""
  value = _uncopied(name, body)
  if value and value.opcode == 'fusion' and len(value.shapes) == 1:
    body = computations.get(value.calls()[0], {})
    value = root_of(body)
  if not value or value.opcode != 'add':
    return None
  found = [_constant(operand, body) for operand in value.operands]
  return next((n for n in found if n is not None), None)


def _constant(name: str, inside: Computation) -> int | None:
  value = _uncopied(name, inside)
  if value and value.opcode == 'constant' and value.literal.isdecimal():
    return int(value.literal)
  return None


def _uncopied(name: str, inside: Computation) -> Instruction | None:
  value = inside.get(name)
  while value and value.opcode in ('copy', 'bitcast'):
    value = inside.get(value.operands[0])
  return value
