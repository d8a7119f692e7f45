"""Training whose verifier runs inside the step, on the same chips.

A large verifier is split over the mesh, and what it says of a batch is used at
once: nothing is kept on a host, or moved.
"""

from collections.abc import Callable, Sequence
from typing import Any

from specdiff_jax.training import features as features_lib
from specdiff_jax.training import micro_batches


def with_readings(
  function: Callable[..., Any],
  model: Any,
  layers: Sequence[int],
  temperature: float = 0.0,
  count: int = 1,
) -> Callable[..., Any]:
  """Returns a function of raw batches out of one of batches with readings.

  Args:
    function: function of (params, view, batch, ...), such as
      `objective.make_loss` gives.
    model: network of the verifier; its params are view.verifier.
    layers: layers whose outputs `function` reads as batch.features.
    temperature: temperature of the verifier's distribution; 0 for none.
    count: micro-batches that the verifier reads one after the other.

  Example: with_readings(objective.make_loss(...), model, (9, 18, 29))
  """

  def with_verifier(params, view, batch, *rest):

    def read(tokens, length):
      return features_lib.forward(
        model, tuple(layers), temperature, view.verifier, tokens, length
      )

    read = micro_batches.over_micro_batches(read, count, recompute=False)
    batch = batch.replace(**read(batch.tokens, batch.length))
    view = view.replace(embed=view.verifier['embed'])
    return function(params, view, batch, *rest)

  return with_verifier
