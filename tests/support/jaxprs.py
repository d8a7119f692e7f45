"""What a traced program holds."""

import jax


def primitives(jaxpr):
  """Yields the names of all primitives in a jaxpr, at every depth."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'),
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from primitives(inner)
