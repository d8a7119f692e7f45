"""The least that a traced program reads of its weights."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from specdiff_jax.tools.aot import hlo

# What leaves an array as it is, or takes a part of it.
_VIEWS = frozenset((
    'reshape', 'transpose', 'squeeze', 'expand_dims', 'convert_element_type',
    'bitcast_convert_type', 'slice', 'dynamic_slice', 'copy', 'copy_p',
    'reduce_precision', 'sharding_constraint', 'optimization_barrier', 'rev',
    'stop_gradient', 'mul', 'add', 'sub', 'div', 'select_n', 'concatenate',
    'broadcast_in_dim', 'pvary', 'reshard',
))  # fmt: skip
_PRODUCTS = frozenset(('dot_general', 'conv_general_dilated', 'ragged_dot'))


def weights(jaxpr: Any, sizes: Sequence[int]) -> int:
  """Returns the bytes of weights that a program's products read.

  A matrix counts once for each product with it, which is as often as a pass
  multiplies by it; of a table that is looked up in, its rows alone. Loops count
  as in `hlo`; of a conditional the branch that reads most.

  Args:
    jaxpr: closed, as a traced function has it.
    sizes: bytes of each argument that a device has; 0 of what is no weight.

  Example: weights(jax.jit(f).trace(x, w).jaxpr, [0, w.nbytes])
  """
  return round(_read(jaxpr, [float(size) for size in sizes])[0])


def _read(closed: Any, sizes: Sequence[float]) -> tuple[float, list[float]]:
  """Returns bytes that are read, and how much of a weight each result is."""
  jaxpr = _jaxpr(closed)
  held: dict[Any, float] = dict(zip(jaxpr.invars, sizes, strict=True))

  def size(x: Any) -> float:
    return 0.0 if hasattr(x, 'val') else held.get(x, 0.0)

  total = 0.0
  for one in jaxpr.eqns:
    given = [size(x) for x in one.invars]
    if not any(given):
      continue
    if one.primitive.name in _PRODUCTS:
      total += sum(given)
    elif one.primitive.name == 'gather':
      total += given[0] * min(_ratio(one.outvars[0], one.invars[0]), 1.0)
    elif one.primitive.name in _VIEWS:
      # A view is no larger than what it is of: broadcasts are not read.
      held.update(_views(one, given))
    else:
      more, results = _inside(one, given)
      total += more
      held.update(zip(one.outvars, results))
  return total, [size(x) for x in jaxpr.outvars]


def _views(one: Any, given: Sequence[float]) -> Mapping[Any, float]:
  if len(one.outvars) > 1:  # a barrier
    return dict(zip(one.outvars, given))
  if one.primitive.name == 'concatenate':
    return {one.outvars[0]: sum(given)}
  largest = max(range(len(given)), key=lambda i: given[i])
  ratio = min(_ratio(one.outvars[0], one.invars[largest]), 1.0)
  return {one.outvars[0]: given[largest] * ratio}


def _ratio(part: Any, whole: Any) -> float:
  return math.prod(part.aval.shape) / max(math.prod(whole.aval.shape), 1)


def _inside(one: Any, given: Sequence[float]) -> tuple[float, list[float]]:
  """Returns what an equation with programs in it reads, and its results."""
  name, params = one.primitive.name, one.params
  if name == 'scan':
    constants, carried = params['num_consts'], params['num_carry']
    length = params['length']
    rest = [x / length for x in given[constants + carried :]]
    read, _ = _read(params['jaxpr'], [*given[: constants + carried], *rest])
    return length * read, []
  if name == 'while':
    skipped = params['cond_nconsts']
    read, _ = _read(params['body_jaxpr'], given[skipped:])
    turns = hlo.TRIPS.search(str(one.source_info.name_stack))
    return read * (int(turns.group(1)) if turns else 1), []
  if name == 'cond':
    return max(_read(x, given[1:])[0] for x in params['branches']), []
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    inner = params.get(key)
    if inner is not None and len(_jaxpr(inner).invars) == len(given):
      return _read(inner, given)
  if name == 'pallas_call':
    return sum(given), []
  return 0.0, []


def _jaxpr(closed: Any) -> Any:
  return getattr(closed, 'jaxpr', closed)
