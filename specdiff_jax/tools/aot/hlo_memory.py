"""Bytes of a chip's main memory (HBM) that the instructions of HLO move.

An instruction reads its operands and writes its results, those of them that lie
in main memory and not in a scratch memory of the chip (a layout with S(n)).
Slices and gathers read their part alone, updates in place write theirs, also
within fusions; what is started asynchronously counts once; views are free. Of
`cost_analysis()` none of that holds: it counts scratch memories too.

  %f (p: bf16[8,512], q: bf16[8,1]) -> bf16[8,512] {
    ROOT %r = bf16[8,512] dynamic-update-slice(%p, %q, ...)
  }
  %x = bf16[8,512] fusion(%a, %b), calls=%f     reads 16 bytes and writes 16
  %y = bf16[8,512] copy(%x)                     reads and writes 8192
"""

import dataclasses

from specdiff_jax.tools.aot import hlo

# What moves nothing itself: views, control flow, ends of what was started.
FREE = frozenset((
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
    'conditional', 'call', 'async-start', 'optimization-barrier', 'after-all',
    'add-dependency', 'partition-id', 'replica-id',
))  # fmt: skip
_SAME = ('bitcast', 'bitcast-convert', 'reshape')  # the same bytes
_ELEMENTWISE = (*_SAME, 'convert', 'copy', 'transpose')
_PARTS = ('slice', 'dynamic-slice', 'gather')
_IN_PLACE = {'dynamic-update-slice': 1, 'scatter': 2}  # operand of the update
_ALLOCATIONS = ('AllocateBuffer', 'AssumeGatherIndicesInBound', 'Sharding')


@dataclasses.dataclass(frozen=True)
class Touch:
  """Bytes of one array that an instruction reads or writes.

  Attributes:
    name: of the operand that is read; '' of a result.
    shape: of the whole array.
    nbytes: the bytes that are moved.
  """

  name: str
  shape: hlo.Shape
  nbytes: int


def free(one: hlo.Instruction) -> bool:
  """Whether an instruction is no work: a view, or control flow."""
  return (
    one.opcode in FREE
    or one.opcode.endswith(('-done', '-update'))
    or one.attribute('custom_call_target').strip('"') in _ALLOCATIONS
    or any(f'"{name}"' in one.rest for name in _ALLOCATIONS)
  )


def touched(
  one: hlo.Instruction, inside: hlo.Computation, computations: hlo.Computations
) -> list[Touch]:
  """Returns what an instruction of `inside`, not a fused one, moves."""
  if free(one):
    return []
  reads, writes = _moved(one, inside, computations)
  every = [
    Touch(name, shape, _part(shape, elements))
    for name, elements in reads
    if name in inside
    for shape in inside[name].shapes
  ]
  every += [
    Touch('', shape, _part(shape, elements)) for shape, elements in writes
  ]
  return [x for x in every if x.shape.in_main_memory and x.nbytes]


_Reads = list[tuple[str, int | None]]  # operands, elements; None for all
_Writes = list[tuple[hlo.Shape, int | None]]


def _moved(one, inside, computations) -> tuple[_Reads, _Writes]:
  """Returns what is read and written, wherever it lies."""
  if one.opcode == 'fusion':
    within = computations.get(one.calls()[0], {})
    reads = [
      (name, _read(parameter.name, within, computations))
      for parameter in within.values()
      if parameter.opcode == 'parameter'
      for name in one.operands[int(parameter.literal) :][:1]
    ]
    written = _written(hlo.root_of(within), within, computations)
    if len(written) != len(one.shapes):
      written = [None] * len(one.shapes)
    return reads, list(zip(one.shapes, written))
  whole: _Reads = [(name, None) for name in dict.fromkeys(one.operands)]
  if one.opcode in _PARTS:
    elements = one.shapes[0].elements
    return [(one.operands[0], elements), *whole[1:]], [(one.shapes[0], None)]
  if one.opcode in _IN_PLACE:
    update = inside[one.operands[_IN_PLACE[one.opcode]]].shapes[0]
    written = [(one.shapes[0], update.elements)]
    return [x for x in whole if x[0] != one.operands[0]], written
  if one.opcode in ('copy-start', 'slice-start'):
    # (to, from, context), or ((from), to, context).
    to = one.shapes[0 if one.opcode == 'copy-start' else 1]
    return [(one.operands[0], to.elements)], [(to, None)]
  if one.collective and one.opcode.endswith('-start'):
    # Its operands stand among its results, first.
    given = sum(len(inside[n].shapes) for n in one.operands if n in inside)
    made = one.shapes[given:] or one.shapes
    return whole, [(shape, None) for shape in made]
  return whole, [(shape, None) for shape in one.shapes]


def _read(name: str, within: hlo.Computation, computations) -> int | None:
  """Returns how many elements of a fusion's value are read; None for all."""
  root = hlo.root_of(within)
  if root and root.name == name:
    return None
  total, results = 0, _results(root, within)
  for user in within.values():
    for place, operand in enumerate(user.operands):
      if operand != name:
        continue
      if place == 0 and user.opcode in _PARTS:
        more = user.shapes[0].elements
      elif place == 0 and user.opcode in _IN_PLACE and user.name in results:
        more = 0
      elif user.opcode in (*_ELEMENTWISE, *_IN_PLACE):
        more = _read(user.name, within, computations)
      elif user.opcode == 'fusion':
        called = computations.get(user.calls()[0], {})
        more = next(
          (
            _read(x.name, called, computations)
            for x in called.values()
            if x.opcode == 'parameter' and int(x.literal) == place
          ),
          None,
        )
      else:
        more = None
      if more is None:
        return None
      total += more
  return total


def _written(root, within: hlo.Computation, computations) -> list[int | None]:
  """Returns how many elements of each result are written; None for all."""
  if root is None:
    return [None]
  if root.opcode == 'fusion':
    called = computations.get(root.calls()[0], {})
    return _written(hlo.root_of(called), called, computations)
  return [
    within[within[name].operands[_IN_PLACE[within[name].opcode]]]
    .shapes[0]
    .elements
    if within[name].opcode in _IN_PLACE
    and _given(within[name].operands[0], within)
    else None
    for name in _results(root, within)
  ]


def _results(root, within: hlo.Computation) -> list[str]:
  """Returns what becomes a computation's results, before it is reshaped."""
  if root is None:
    return []
  names = list(root.operands) if root.opcode == 'tuple' else [root.name]
  return [_before(name, within, _SAME).name for name in names]


def _given(name: str, within: hlo.Computation) -> bool:
  """Whether a value of a fusion is one of its operands, perhaps updated."""
  return _before(name, within, (*_SAME, *_IN_PLACE)).opcode == 'parameter'


def _before(name: str, within: hlo.Computation, opcodes) -> hlo.Instruction:
  """Returns what a value is before operations of some kinds."""
  value = within[name]
  while value.opcode in opcodes:
    value = within[value.operands[0]]
  return value


def _part(shape: hlo.Shape, elements: int | None) -> int:
  if elements is None:
    return shape.padded
  return min(elements * shape.bits // 8, shape.padded)
