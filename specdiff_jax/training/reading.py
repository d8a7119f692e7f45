"""How a run reads its verifier: kept readings, a pass in the step, or none."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.models import networks
from specdiff_jax.parallel import rules
from specdiff_jax.training import feature_store
from specdiff_jax.training import features as features_lib
from specdiff_jax.training import micro_batches as micro_lib
from specdiff_jax.training import objective


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
  """A verifier, and what batches and steps are given of it.

  With a `cache` every process has the verifier whole and adds its readings to
  batches on the host. Without, its pass is a part of the jitted functions.

  Attributes:
    verifier: checkpoint, whose params may be shapes.
    cache: trajectories whose readings the host keeps; 0 for none.
    layers: layers whose outputs the drafter takes; () for none.
    tokens: T of the batches.
    memory: readings by what decides them: runs that share it compute them once.
    store: folder in which they stay for later runs; '' for none.
    say: is told what is wrong with that folder.
  """

  verifier: weights.Checkpoint
  cache: int
  layers: tuple[int, ...]
  tokens: int
  memory: dict[Any, dict] = dataclasses.field(default_factory=dict)
  store: str = ''
  say: Callable[[str], None] = lambda text: None

  def inside(self, temperature: float = 0.0) -> bool:
    """Whether the jitted function reads: something is read, nothing kept.

    `temperature` here and below is that of the verifier's distribution; 0
    where it is not read.
    """
    return bool(self.layers or temperature) and not self.cache

  def view(
    self,
    vocab: np.ndarray,
    temperature: float,
    split: Sequence[rules.Rule],
    mesh: jax.sharding.Mesh,
  ) -> training_types.VerifierView:
    """Returns what is frozen in every step, split over the mesh.

    Args:
      vocab: [N] tokens of the draft vocabulary.
      temperature: temperature as in `inside`.
      split: rules of the verifier's params.
      mesh: the mesh of the step.
    """
    params = self.verifier.params
    make = lambda params: objective.view(params, vocab)
    shapes = jax.eval_shape(make, params)
    shardings = rules.shardings(shapes, split, mesh)
    view = jax.jit(make, out_shardings=shardings)(params)
    if not self.inside(temperature):
      return view
    placed = jax.device_put(params, rules.shardings(params, split, mesh))
    return self._with_verifier(view, placed)

  def abstract_view(
    self,
    vocab: int,
    temperature: float,
    split: Sequence[rules.Rule],
    mesh: jax.sharding.Mesh,
  ) -> training_types.VerifierView:
    """Returns the shapes of `view`, of `vocab` tokens, with their shardings."""
    params = self.verifier.params
    make = lambda params: objective.view(params, np.arange(vocab))
    view = rules.placed(jax.eval_shape(make, params), split, mesh)
    if not self.inside(temperature):
      return view
    return self._with_verifier(view, rules.placed(params, split, mesh))

  def _with_verifier(self, view, params) -> training_types.VerifierView:
    if self.layers:  # what is evaluated has the verifier's embedding, too
      view = view.replace(embed=None)
    return view.replace(verifier=params)

  def wrapped(
    self,
    function: Callable[..., Any],
    temperature: float = 0.0,
    micro_batches: int = 1,
  ) -> Callable[..., Any]:
    """Returns `function` with the verifier's pass in front of it.

    It is `function` itself where `prepare` adds the readings.

    Args:
      function: function of (params, view, batch, ...), such as
        `objective.make_loss` gives; the verifier's params are view.verifier.
      temperature: temperature as in `inside`.
      micro_batches: micro-batches that the verifier reads one after the other.
    """
    if not self.inside(temperature):
      return function
    ways = networks.network(self.verifier.config), self.layers, temperature

    def with_verifier(params, view, batch, *rest):
      read = functools.partial(features_lib.forward, *ways, view.verifier)
      read = micro_lib.over_micro_batches(read, micro_batches, recompute=False)
      batch = batch.replace(**read(batch.tokens, batch.length))
      view = view.replace(embed=view.verifier['embed'])
      return function(params, view, batch, *rest)

    return with_verifier

  def prepare(
    self, source: windows.Source, temperature: float = 0.0
  ) -> Callable[[training_types.TrainBatch], training_types.TrainBatch]:
    """Returns a function that adds the kept readings to a source's batches."""
    if not self._kept(temperature):
      return lambda batch: batch
    dtype = jax.tree.leaves(self.verifier.params)[0].dtype.name
    key = self.verifier.fingerprint, dtype, self.layers, temperature
    return features_lib.Features(
      networks.network(self.verifier.config),
      self.verifier.params,
      self.layers,
      self.cache,
      temperature,
      self.memory.setdefault((*key, self.tokens, windows.digest(source)), {}),
      feature_store.Store(self.store, (*key, self.tokens), self.say),
    )

  def abstract(
    self, batch: training_types.TrainBatch, temperature: float
  ) -> training_types.TrainBatch:
    """Returns the shapes of a batch with the readings that are kept."""
    if not self._kept(temperature):
      return batch
    found = features_lib.forward.eval_shape(
      networks.network(self.verifier.config),
      self.layers,
      temperature,
      self.verifier.params,
      batch.tokens,
      batch.length,
    )
    return batch.replace(**rules.at(found, batch.tokens.sharding))

  def _kept(self, temperature: float) -> bool:
    return bool((self.layers or temperature) and self.cache)
