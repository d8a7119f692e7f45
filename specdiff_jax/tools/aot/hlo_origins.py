"""Which arguments of a program a value inside it comes from.

Values go through tuples into the bodies of loops, branches and fusions; they are
followed back from there, by the names that jax gives the arguments:
`params['layer_0']['query']`, `state.cache.layers[0][0]`.
"""

from collections.abc import Iterator
import dataclasses
import functools

from specdiff_jax.tools.aot import hlo

# What is the same array otherwise, or a part of it: its first operand's.
_VIEWS = frozenset((
    'bitcast', 'bitcast-convert', 'reshape', 'transpose', 'convert', 'copy',
    'copy-start', 'copy-done', 'slice', 'dynamic-slice', 'slice-start',
    'slice-done', 'dynamic-update-slice', 'scatter', 'all-gather',
    'all-gather-start', 'all-gather-done', 'async-done', 'async-update',
))  # fmt: skip
_Value = tuple[str, str, int | None]  # name, its computation, which of a tuple
_KEPT = ('tuple', 'bitcast', 'dynamic-update-slice', 'scatter')  # of fusions


@dataclasses.dataclass(frozen=True, eq=False)
class Origins:
  """Arguments that values of a module come from."""

  computations: hlo.Computations
  entry: str

  @functools.cached_property
  def _callers(self) -> dict[str, tuple[hlo.Instruction, str]]:
    """The instruction that runs a computation, and its own computation."""
    return {
      called: (one, where)
      for where, inside in self.computations.items()
      for one in inside.values()
      for called in (*one.calls(), one.attribute('condition'))
      if called
    }

  def of(self, name: str, where: str) -> str:
    """Returns the argument that a value is a view or an update of; '' if none.

    name, where: an instruction and its computation.
    """
    return next(iter(self._found((name, where, None), views=True)), '')

  def behind(self, name: str, where: str) -> set[str]:
    """Returns all arguments that a value depends on.

    Loops are taken to leave them as they are, which holds for those that no
    turn writes.
    """
    return set(self._found((name, where, None), views=False))

  def _found(self, value: _Value, views: bool) -> Iterator[str]:
    seen, todo = set(), [value]
    while todo:
      value = todo.pop()
      if value in seen:
        continue
      seen.add(value)
      name, where, _ = value
      one = self.computations.get(where, {}).get(name)
      if one is None:
        continue
      if one.opcode == 'parameter' and where == self.entry:
        yield one.label
      else:
        todo += self._before(one, value, views)

  def _before(self, one: hlo.Instruction, value: _Value, views: bool):
    """Returns the values that one is made of, one step back."""
    _, where, index = value
    inside = self.computations[where]
    if one.opcode == 'parameter':
      return self._outside(one, where, index)
    if one.opcode == 'get-tuple-element':
      return [(one.operands[0], where, int(one.attribute('index')))]
    if one.opcode == 'tuple' and index is not None:
      return [(one.operands[index], where, None)]
    if one.opcode in ('while', 'optimization-barrier'):
      return [(one.operands[0], where, index)]
    if one.opcode in ('fusion', 'conditional', 'call', 'async-start'):
      if not views and one.opcode == 'fusion':
        return [(operand, where, None) for operand in one.operands]
      called = one.calls()
      root = hlo.root_of(self.computations.get(called[-1], {}))
      if one.opcode == 'fusion' and root and root.opcode not in _KEPT:
        return []  # something new, made of a part of it
      at = index if root and root.opcode == 'tuple' else None
      return [(root.name, called[-1], at)] if root else []
    if not views:
      return [(operand, where, None) for operand in one.operands]
    if one.opcode not in _VIEWS or not one.operands:
      return []
    below = inside.get(one.operands[0])
    return [(below.name, where, None)] if below else []

  def _outside(self, one: hlo.Instruction, where: str, index: int | None):
    """Returns the operand that a computation's parameter is."""
    if where not in self._callers:
      return []
    caller, outer = self._callers[where]
    place = int(one.literal)
    if caller.opcode == 'conditional':
      place = 1 + caller.calls().index(where)
    operands = caller.operands[place : place + 1]
    return [(operand, outer, index) for operand in operands]
