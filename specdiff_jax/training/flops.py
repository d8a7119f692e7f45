"""How many floating-point operations a function's matrix products take."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core


def count(function: Callable[..., Any], *args) -> int:
  """Returns the FLOPs of one call, an addition being one too.

  Counts the products of the traced program, over all devices together: those
  that a backward pass makes again as well, the body of a scan as often as it
  turns, of several branches the dearest, of a `while` loop one turn. What is
  not a product (norms, softmax, the optimizer) is left out: in a train step
  about a hundredth.

  Example:
    count(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4))) == 2 * 2 * 3 * 4
  """
  return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: core.Jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)
  inner = [_of(one) for one in core.jaxprs_in_params(equation.params)]
  if equation.primitive.name == 'cond':
    return max(inner)
  turns = equation.params['length'] if equation.primitive.name == 'scan' else 1
  return turns * sum(inner)
