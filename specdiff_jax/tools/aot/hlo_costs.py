"""What a compiled program costs each chip: FLOPs, traffic, large arrays."""

import dataclasses
import functools
import math
import re

from specdiff_jax.tools.aot import hlo

# Opcodes whose result is no array of its own. What is started asynchronously
# is that of its end; copies of that kind go to a scratch memory, or back.
_VIEWS = frozenset((
    'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'constant',
    'conditional', 'call', 'optimization-barrier', 'after-all', 'copy-done',
    'dynamic-update-slice', 'slice-done',
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
  """A collective: how often it runs, and the bytes of all times.

  Bytes are those that a chip has of the larger of input and result: of an
  all-gather its result, of a reduce-scatter its input.
  """

  kind: str
  label: str
  shape: str
  count: int
  nbytes: int


@dataclasses.dataclass(frozen=True)
class Array:
  """A result of the program that lies in the chip's main memory."""

  label: str
  shape: str
  nbytes: int  # with the padding of its tiles


@dataclasses.dataclass(frozen=True)
class Costs:
  """What a program does on each chip."""

  flops: int  # of matrix products and convolutions, an addition being one too
  traffic: tuple[Traffic, ...]  # most bytes first
  arrays: tuple[Array, ...]  # largest first; those alike stand once

  def collectives(self) -> dict[str, dict[str, int]]:
    """Returns {kind: {'count', 'bytes'}}."""
    table = {}
    for one in self.traffic:
      row = table.setdefault(one.kind, {'count': 0, 'bytes': 0})
      row['count'] += one.count
      row['bytes'] += one.nbytes
    return table


def read(text: str) -> Costs:
  """Reads a module; see `hlo` for how loops and conditionals count.

  Example: read(jax.jit(f).lower(x).compile().as_text()).flops
  """
  computations, entry = hlo.parse(text)
  flops = 0
  arrays: dict[tuple[str, str], int] = {}
  traffic: dict[tuple[str, str, str], tuple[int, int]] = {}
  for one, inside, times, fused in hlo.walk(computations, entry):
    if one.opcode in ('dot', 'convolution'):
      flops += times * _flops(one, inside)
    if one.collective:
      shape, nbytes = _moved(one, inside)
      key = one.collective, one.label, shape
      count, total = traffic.get(key, (0, 0))
      traffic[key] = count + times, total + times * nbytes
    if not fused and _is_array(one, computations):
      for shape in one.shapes:
        if shape.in_main_memory:
          arrays[one.label, str(shape)] = shape.padded
  large = (Array(*key, nbytes) for key, nbytes in arrays.items())
  much = (Traffic(*key, *value) for key, value in traffic.items())
  return Costs(
    flops=flops,
    traffic=tuple(sorted(much, key=lambda x: -x.nbytes)),
    arrays=tuple(sorted(large, key=lambda x: -x.nbytes)),
  )


def _is_array(one: hlo.Instruction, computations: hlo.Computations) -> bool:
  """Whether it makes arrays, and does not write a part of one in place."""
  if one.opcode in _VIEWS or one.opcode.endswith('-start'):
    return False
  if one.opcode != 'fusion':
    return True
  within = computations.get(one.calls()[0], {})
  root = hlo.root_of(within)
  while root and root.opcode in ('bitcast', 'bitcast-convert'):
    root = within.get(root.operands[0])
  return not root or root.opcode != 'dynamic-update-slice'


def _moved(one: hlo.Instruction, inside: hlo.Computation) -> tuple[str, int]:
  """Returns the largest array of a collective, and the bytes of all."""
  given = [s for n in one.operands if n in inside for s in inside[n].shapes]
  sent = sum(s.nbytes for s in given)
  made = sum(s.nbytes for s in one.shapes)
  if one.opcode.endswith('-start') and made > sent:
    made -= sent  # a started one has its input among its results
  largest = max((*given, *one.shapes), key=lambda s: s.nbytes)
  return str(largest), max(sent, made)


def _flops(one: hlo.Instruction, inside: hlo.Computation) -> int:
  """Returns 2 * the multiplications of a dot or a convolution."""
  left, right = (inside[name].shapes[0].dims for name in one.operands)
  out = one.shapes[0].dims
  if one.opcode == 'convolution':
    return 2 * _multiplications(one, left, right, out)
  listed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.rest)
  axes = [int(i) for i in listed.group(1).split(',') if i] if listed else []
  return 2 * math.prod(out) * math.prod(left[i] for i in axes)


def _multiplications(one: hlo.Instruction, left, right, out) -> int:
  """Returns those of a convolution, which on TPUs every matrix product is.

  Batched ones have their batch among the window's dimensions, spread or padded
  such that each place of the result meets one place of the input; so places
  in the padding must not count.
  """
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', one.rest)
  assert labels, one.rest
  lhs, rhs, result = labels.groups()
  count = out[result.index('b')] * out[result.index('f')]
  count *= right[rhs.index('i')]  # of one group of features
  for axis in sorted(c for c in result if c.isdecimal()):
    count *= _places(
        left[lhs.index(axis)], right[rhs.index(axis)],
        out[result.index(axis)], _window(one, int(axis)),
    )  # fmt: skip
  return count // int(one.attribute('batch_group_count') or 1)


def _window(one: hlo.Instruction, axis: int) -> tuple[int, int, int, int]:
  """Returns (stride, padding below, spread of input, spread of window)."""
  text = re.search(r'window=\{([^}]*)\}', one.rest)
  fields = dict(p.split('=') for p in text.group(1).split()) if text else {}

  def value(name, default):
    return fields[name].split('x')[axis] if name in fields else default

  below = value('pad', '0_0').split('_')[0]
  return (
      int(value('stride', 1)), int(below),
      int(value('lhs_dilate', 1)), int(value('rhs_dilate', 1)),
  )  # fmt: skip


@functools.cache
def _places(size: int, window: int, out: int, how: tuple[int, ...]) -> int:
  """Returns how many pairs (place of the result, of the window) meet input."""
  stride, below, spread, window_spread = how
  if window == 1 and not below and spread == 1:
    return out
  places = 0
  for w in range(window):
    for o in range(out):
      at = o * stride + w * window_spread - below
      places += 0 <= at < (size - 1) * spread + 1 and at % spread == 0
  return places
