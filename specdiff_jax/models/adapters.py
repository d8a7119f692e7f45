"""Low-rank adapters (LoRA) as pure functions on trees of params.

A matrix W [..., out, in] becomes W + B A, B [..., out, r] and A [..., r, in]
(Hu et al., 2021, arXiv 2106.09685, with alpha = r). B starts at 0, so that
training starts at the model that is adapted. `checkpoints.lora` reads those of
other projects into the weights.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.parallel import rules

Adapters = dict[str, dict[str, jax.Array]]  # {'a', 'b'} by a matrix's name


def names(params: Any, rank: int = 2) -> list[str]:
  """Returns the names of tensors of at least `rank` dimensions.

  One is 'layer_0/query', say.
  """
  named = rules.named(params)
  return [name for name, leaf in named.items() if leaf.ndim >= rank]


def initial(
  params: Any, adapted: Collection[str], rank: int, key: jax.Array
) -> Adapters:
  """Returns new adapters of some matrices: B is 0, A normal with variance 1/r.

  Args:
    params: a tree, or its shapes.
    adapted: of `names`.
    rank: r.
    key: of the randomness.
  """
  found = {}
  for number, (name, leaf) in enumerate(rules.named(params).items()):
    if name in adapted:
      *stacked, rows, columns = leaf.shape
      draw = jax.random.normal(
        jax.random.fold_in(key, number), (*stacked, rank, columns)
      )
      found[name] = {
        'a': draw / jnp.sqrt(rank),
        'b': jnp.zeros((*stacked, rows, rank)),
      }
  return found


def merged(params: Any, adapters: Mapping[str, Mapping[str, jax.Array]]) -> Any:
  """Returns the params with each adapter's B A added, in the params' dtypes.

  Example: merged(params, initial(params, names(params), 8, key)) == params
  """

  def one(path, leaf):
    adapter = adapters.get(rules.name(path))
    if adapter is None:
      return leaf
    added = jnp.matmul(adapter['b'], adapter['a'], precision='highest')
    return (leaf + added).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(one, params)
