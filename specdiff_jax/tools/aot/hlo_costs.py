"""What a compiled program costs each chip: FLOPs, traffic, large arrays."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

from specdiff_jax.tools.aot import hlo
from specdiff_jax.tools.aot import hlo_memory
from specdiff_jax.tools.aot import hlo_origins

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

  Attributes:
    started: how many of them are started and awaited later, so that work
      between the two hides them.
    between: that work, as (FLOPs, bytes of main memory).
    looped: whether it runs in a loop.
  """

  kind: str
  label: str
  shape: str
  count: int
  nbytes: int
  started: int = 0
  between: tuple[int, int] = (0, 0)
  looped: bool = False


@dataclasses.dataclass(frozen=True)
class Array:
  """A result of the program that lies in the chip's main memory."""

  label: str
  shape: str
  nbytes: int  # with the padding of its tiles


@dataclasses.dataclass(frozen=True)
class Work:
  """What is launched at once: an instruction, with all that is fused in it.

  Attributes:
    label: the name that the program's author would know it by.
    times: how often it runs.
    looped: whether it runs in a loop.
    flops: of one time.
    causes: bytes of main memory of one time, by what they are: 'weights',
      'cache', 'cache copies', 'logits', 'scores', 'other'.
  """

  label: str
  times: int
  looped: bool
  flops: int
  causes: Mapping[str, int]

  @property
  def nbytes(self) -> int:
    """Bytes of main memory that it moves each time."""
    return sum(self.causes.values())


@dataclasses.dataclass(frozen=True)
class Costs:
  """What a program does on each chip."""

  flops: int  # of matrix products and convolutions, an addition being one too
  traffic: tuple[Traffic, ...]  # most bytes first
  arrays: tuple[Array, ...]  # largest first; those alike stand once
  work: tuple[Work, ...] = ()  # in the order in which it is launched

  @property
  def nbytes(self) -> int:
    """Bytes of main memory that it moves."""
    return sum(one.times * one.nbytes for one in self.work)

  def collectives(self) -> dict[str, dict[str, int]]:
    """Returns {kind: {'count', 'bytes', 'started'}}."""
    table = {}
    for one in self.traffic:
      row = table.setdefault(one.kind, {'count': 0, 'bytes': 0, 'started': 0})
      row['count'] += one.count
      row['bytes'] += one.nbytes
      row['started'] += one.started
    return table


@dataclasses.dataclass(frozen=True)
class Names:
  """How the arguments and sizes of a program tell what bytes are of.

  Attributes:
    weights: how the names of arguments that are weights begin.
    caches: how those of the KV caches begin.
    vocab: sizes of the vocabulary's dimension, whole and split.
    slots: range of sizes by which scores are known, of any dimension, its end
      exclusive; attention in chunks is known by its loop's scope.
    sampling: how those of the sampling parameters begin.
    cold: how one of these ends that is off: of a conditional that depends on
      it, and on nothing but such parameters, branch 0 is taken.
  """

  weights: tuple[str, ...] = ()
  caches: tuple[str, ...] = ()
  vocab: tuple[int, ...] = ()
  slots: tuple[int, int] = (0, 0)
  sampling: tuple[str, ...] = ()
  cold: str = ''


def read(text: str, names: Names | None = None) -> Costs:
  """Reads a module; see `hlo` for how loops count.

  Of a conditional one branch counts: the one that moves most, or the first
  where `names.cold` says so.

  Example: read(jax.jit(f).lower(x).compile().as_text()).nbytes
  """
  return _Reader(*hlo.parse(text), names or Names()).costs()


class _Reader:
  """Adds up a module."""

  def __init__(self, computations, entry, names: Names):
    self._computations, self._entry, self._names = computations, entry, names
    self._origins = hlo_origins.Origins(computations, entry)
    self._looped = self._reached(
      one.attribute(part)
      for inside in computations.values()
      for one in inside.values()
      if one.opcode == 'while'
      for part in ('body', 'condition')
    )

  def _reached(self, names: Iterable[str]) -> set[str]:
    """Returns all computations that some of them run."""
    walks = (hlo.walk(self._computations, name) for name in names)
    return {where for walk in walks for _, where, *_ in walk}

  def costs(self) -> Costs:
    arrays: dict[tuple[str, str], int] = {}
    traffic: dict[tuple[str, str, str, bool], Traffic] = {}
    started: dict[tuple[str, str], tuple[int, Any]] = {}
    pending: dict[str, tuple[str, str]] = {}  # what starts a computation
    work: list[Work] = []
    for one, where, times, fused in self._walk(self._entry):
      inside = self._computations[where]
      if one.collective:
        shape, nbytes = _moved(one, inside)
        looped = where in self._looped
        key = one.collective, one.label, shape, looped
        old = traffic.get(key, Traffic(*key[:3], 0, 0, looped=looped))
        traffic[key] = dataclasses.replace(
          old, count=old.count + times, nbytes=old.nbytes + times * nbytes
        )
        started[pending.pop(where, (where, one.name))] = len(work), key
      if one.opcode == 'async-start':
        pending[one.calls()[0]] = where, one.name
      if one.opcode.endswith('-done') and (where, one.operands[0]) in started:
        at, key = started.pop((where, one.operands[0]))
        traffic[key] = _hidden(traffic[key], times, work[at + 1 :])
      if fused:
        continue
      if _is_array(one, self._computations):
        for shape in one.shapes:
          if shape.in_main_memory:
            arrays[one.label, str(shape)] = shape.padded
      if not hlo_memory.free(one):
        work.append(self._work(one, where, times))
    large = (Array(*key, nbytes) for key, nbytes in arrays.items())
    return Costs(
      flops=sum(one.times * one.flops for one in work),
      traffic=tuple(sorted(traffic.values(), key=lambda x: -x.nbytes)),
      arrays=tuple(sorted(large, key=lambda x: -x.nbytes)),
      work=tuple(work),
    )

  def _walk(self, name: str, fused: bool = False):
    return hlo.walk(self._computations, name, fused=fused, taken=self._taken)

  def _taken(self, one: hlo.Instruction, where: str) -> list[str]:
    """Returns the branch of a conditional that counts."""
    branches = one.calls()
    if self._names.cold:
      behind = self._origins.behind(one.operands[0], where)
      sampled = all(x.startswith(self._names.sampling) for x in behind)
      if sampled and any(x.endswith(self._names.cold) for x in behind):
        return [one.attribute('false_computation') or branches[0]]
    return [max(branches, key=self._weight)]

  def _weight(self, branch: str) -> tuple[int, int]:
    """Returns bytes and FLOPs of a branch."""
    work = [
      (times, self._work(one, where, times))
      for one, where, times, fused in self._walk(branch)
      if not fused and not hlo_memory.free(one)
    ]
    nbytes = sum(times * one.nbytes for times, one in work)
    return nbytes, sum(times * one.flops for times, one in work)

  def _work(self, one: hlo.Instruction, where: str, times: int) -> Work:
    inside = self._computations[where]
    flops = _flops(one, inside)
    if not one.collective and not one.opcode.startswith('reduce'):
      flops += sum(
        more * _flops(part, self._computations[there])
        for called in one.calls()
        for part, there, more, _ in self._walk(called, fused=True)
      )
    return Work(
      label=one.label,
      times=times,
      looped=where in self._looped,
      flops=flops,
      causes=self._causes(one, where),
    )

  def _causes(self, one: hlo.Instruction, where: str) -> dict[str, int]:
    """Returns the bytes that it moves by what they are of."""
    inside, found = self._computations[where], {}
    touches = hlo_memory.touched(one, inside, self._computations)
    kinds = [
      (self._kind(touch.name or one.name, touch.shape, where, one.label), touch)
      for touch in touches
    ]
    # A cache that is written whole, and not a part of it in place.
    copied = any(
      kind == 'cache' and not touch.name and touch.nbytes >= touch.shape.nbytes
      for kind, touch in kinds
    )
    for kind, touch in kinds:
      if kind == 'cache' and copied:
        kind = 'cache copies'
      found[kind] = found.get(kind, 0) + touch.nbytes
    return found

  def _kind(self, name: str, shape: hlo.Shape, where: str, label: str) -> str:
    names, origin = self._names, self._origins.of(name, where)
    if origin.startswith(names.caches):
      return 'cache'
    if origin.startswith(names.weights):
      return 'weights'
    if set(names.vocab) & set(shape.dims):
      return 'logits'
    low, high = names.slots
    if 'trips_' in label or any(low <= dim < high for dim in shape.dims):
      return 'scores'
    return 'other'


def _hidden(one: Traffic, times: int, work: Sequence[Work]) -> Traffic:
  """Returns a collective with the work between its start and its end."""
  flops, nbytes = one.between
  flops += sum(each.times * each.flops for each in work)
  nbytes += sum(each.times * each.nbytes for each in work)
  return dataclasses.replace(
    one, started=one.started + times, between=(flops, nbytes)
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
  """Returns 2 * the multiplications of a dot or a convolution; else 0."""
  if one.opcode not in ('dot', 'convolution'):
    return 0
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
