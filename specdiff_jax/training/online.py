"""Training whose verifier runs inside the step, on the same chips.

A large verifier is split over the mesh, and what it says of a batch is used at
once: nothing is kept on a host, or moved.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from specdiff_jax.training import features as features_lib
from specdiff_jax.training import micro_batches as parts_lib


def with_features(
  function: Callable[..., Any],
  model: Any,
  layers: Sequence[int],
  temperature: float = 0.0,
  parts: int = 1,
) -> Callable[..., Any]:
  """Returns a function of raw batches out of one of batches with features.

  Args:
    function: (params, frozen, batch, ...), such as `objective.make_loss` gives.
    model: the verifier; its params are frozen['verifier'].
    layers: whose outputs `function` reads as batch['features'].
    temperature: of the verifier's law; 0 where it reads none.
    parts: of a batch, which the verifier reads one after the other.

  Example: with_features(objective.make_loss(...), model, (9, 18, 29))
  """

  def with_verifier(params, frozen, batch, *rest):

    def read(tokens, length):
      return features_lib.forward(
        model, tuple(layers), temperature, frozen['verifier'], tokens, length
      )

    read = parts_lib.by_parts(read, parts, again=False)
    found = read(batch['tokens'], batch['length'])
    frozen = {'embed': frozen['verifier']['embed'], **frozen}
    return function(params, frozen, {**batch, **found}, *rest)

  return with_verifier
