"""A distillation run: a drafter learns from its verifier's trajectories."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from specdiff_jax.core import jax_settings
from specdiff_jax.core import locks
from specdiff_jax.core import training_types
from specdiff_jax.data import draft_vocab
from specdiff_jax.data import overlap
from specdiff_jax.data import windows
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import tables
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules
from specdiff_jax.training import every_anchor
from specdiff_jax.training import features as features_lib
from specdiff_jax.training import identity
from specdiff_jax.training import loop
from specdiff_jax.training import metrics
from specdiff_jax.training import objective as objective_lib
from specdiff_jax.training import reading as reading_lib
from specdiff_jax.training import step as step_lib
from specdiff_jax.training.checkpoint import saving


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
  """The drafter as it is trained, whole or in part.

  Attributes:
    network: sizes of the drafter.
    initial: function (network, key, verifier's params, start) -> trained
      params.
    score: predictions of its windows.
    finished: function from the trained params to those of the drafter.
    vocab: draft vocabulary of the drafter that it starts from; None: the most
      frequent tokens of the data.
    part: sizes of what is written where that is no drafter but a head of one.
    facts: what its file says beside.
    seen: hashes of the prompts of what it starts from.
    start: params of what it starts from, an argument of the program: in it they
      would be constants, of which XLA takes 2 GB.
  """

  network: drafter_file.Config
  initial: Callable[..., Any]
  score: scores.Score
  finished: Callable[[Any], Any] = lambda params: params
  vocab: np.ndarray | None = None
  part: drafter_file.Config | None = None
  facts: dict[str, str] = dataclasses.field(default_factory=dict)
  seen: frozenset[str] = frozenset()
  start: Any = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Trajectories to train on and held-out ones, and sizes of their batches."""

  train: windows.Source
  held_out: windows.Source
  sizes: windows.WindowConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
  """A mesh, and what it splits.

  Attributes:
    mesh: devices.
    split: rules of what is trained and its optimizer's state.
    frozen: rules of what is read of the verifier.
  """

  mesh: jax.sharding.Mesh
  split: Sequence[rules.Rule] = dataclasses.field(
    default_factory=tables.sharding
  )
  frozen: Sequence[rules.Rule] = rules.TRANSFORMER


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
  """Where a run writes, and what it keeps.

  Attributes:
    workdir: directory of the run.
    facts: values that must not change when the run goes on.
    tensorboard: whether event files stand beside the JSON lines.
    keep: checkpoints that are kept, beside the best.
    best: whether the result is the best checkpoint, not the last.
    int8: whether the drafter's matrices are stored rounded.
  """

  workdir: str
  facts: Mapping[str, Any]
  tensorboard: bool = False
  keep: int = 3
  best: bool = False
  int8: bool = False


class Program(NamedTuple):
  """A train step, and the shapes of its arguments with their shardings."""

  step: Callable[..., Any]  # jitted (state, batch, view) -> (state, metrics)
  state: step_lib.TrainState
  batch: training_types.TrainBatch
  view: training_types.VerifierView


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """All that decides a run; `train` starts it, or goes on with it."""

  student: Student
  reading: reading_lib.Reading
  data: Data
  objective: objective_lib.Objective
  optimizer: optax.GradientTransformationExtraArgs  # `skip_explosions`
  schedule: loop.Schedule
  placement: Placement
  output: Output

  def vocab(self) -> np.ndarray:
    """Returns the draft vocabulary."""
    if self.student.vocab is not None:
      return self.student.vocab
    size = self.reading.verifier.config.vocab_size
    return draft_vocab.tokens(self.data.train, self.student.network.vocab, size)

  def train(
    self,
    progress: loop.Progress,
    say: Callable[[str], None] = lambda text: None,
  ) -> loop.Result:
    """Trains, from the newest checkpoint in the work directory if any.

    `say` is told of damaged files that the run skips, or cannot write.

    Raises InputError if another run holds the directory, or it belongs to one
    with other facts.
    """
    workdir, facts = self.output.workdir, self.output.facts
    with contextlib.ExitStack() as stack:
      lock = locks.held(os.path.join(workdir, '.lock'))
      processes.on_first(lambda: stack.enter_context(lock))
      path = os.path.join(workdir, 'run.json')
      processes.on_first(lambda: identity.check_same_run(path, facts))
      reading = dataclasses.replace(self.reading, say=say)
      return dataclasses.replace(self, reading=reading)._train(progress, say)

  def _train(
    self, progress: loop.Progress, say: Callable[[str], None]
  ) -> loop.Result:
    state, view, step = self.start()
    data, output = self.data, self.output
    path = os.path.join(output.workdir, 'metrics.jsonl')
    events = os.path.join(output.workdir, 'events')
    writer = processes.together(
      lambda: metrics.MetricsWriter(
        path if processes.is_first() else None,
        events if output.tensorboard else None,
        say,
      )
    )
    matches = objective_lib.make_matches(
      self.student.score, data.sizes.gamma, self.objective.vocab_block
    )
    share = processes.row_share(self.placement.mesh)
    return loop.train(
      state,
      step,
      iter(windows.batches(data.train, data.sizes, *share)),
      saving.Checkpointer(
        os.path.join(output.workdir, 'checkpoints'), output.keep, say
      ),
      writer,
      self.schedule,
      frozen=view,
      prepare=self.prepare(),
      evaluate=every_anchor.evaluator(
        self.reading.wrapped(matches),
        view,
        self._on_mesh(self.reading.prepare(data.held_out)),
        data.held_out,
        data.sizes,
        self.placement.mesh,
      ),
      progress=progress,
      records=lambda batch: [data.train[i].id for i in batch.record],
      best=output.best,
    )

  def start(
    self,
  ) -> tuple[
    step_lib.TrainState, training_types.VerifierView, Callable[..., Any]
  ]:
    """Returns the first state, what stays frozen, and the train step."""
    state, shardings = step_lib.init_state(*self._state())
    view = self.reading.view(
      self.vocab(), self.objective.temperature, *self._frozen()
    )
    return state, view, self._step(shardings)

  def program(self, top_k: int = 0) -> Program:
    """Returns the train step and the shapes of what it is called with.

    Reads neither data nor values: the verifier's params may be shapes. `top_k`
    is the size of stored distributions, where the loss reads such.
    """
    state = step_lib.abstract_state(*self._state())
    by_row = rules.by_row(self.placement.mesh)
    batch = windows.abstract(self.data.sizes, by_row)
    if self.objective.stored:
      batch = features_lib.abstract_stored(batch, top_k)
    temperature = self.objective.temperature
    return Program(
      self._step(jax.tree.map(lambda x: x.sharding, state)),
      state,
      self.reading.abstract(batch, temperature),
      self.reading.abstract_view(
        self.student.network.vocab, temperature, *self._frozen()
      ),
    )

  def _state(self) -> tuple[Any, ...]:
    """Returns the arguments of `step.init_state`."""
    student, placement = self.student, self.placement
    key = jax_settings.key(self.data.sizes.seed)
    return (
      functools.partial(student.initial, student.network),
      [key, self.reading.verifier.params, student.start],
      self.optimizer,
      placement.split,
      placement.mesh,
    )

  def _frozen(self) -> tuple[Sequence[rules.Rule], jax.sharding.Mesh]:
    return self.placement.frozen, self.placement.mesh

  def _step(self, shardings: Any) -> Callable[..., Any]:
    """Returns the jitted train step of a state with these shardings."""
    sizes = self.data.sizes
    loss = objective_lib.make_loss(
      self.student.score, self.objective, sizes.gamma, sizes.seed
    )
    return step_lib.make_train_step(
      self.reading.wrapped(
        loss, self.objective.temperature, self.objective.micro_batches
      ),
      self.optimizer,
      self.placement.mesh,
      shardings,
      tables.sharding(),
    )

  def prepare(self) -> Callable[[Any], training_types.TrainBatch]:
    """Returns the function from a host batch to the step's global batch."""
    source, temperature = self.data.train, self.objective.temperature
    prepare = self.reading.prepare(source, temperature)
    if not self.objective.stored:
      return self._on_mesh(prepare)
    return self._on_mesh(
      lambda batch: prepare(features_lib.with_stored(source, batch))
    )

  def _on_mesh(self, prepare) -> Callable[[Any], training_types.TrainBatch]:
    mesh = self.placement.mesh
    return lambda batch: processes.global_batch(mesh, prepare(batch))

  def not_split(self) -> list[str]:
    """Returns what the mesh does not divide; see `rules.not_split`."""
    shapes, placement = self.student.network.shapes(), self.placement
    told = rules.not_split({'drafter': shapes}, placement.split, placement.mesh)
    if self.reading.inside(self.objective.temperature):
      verifier = {'verifier': self.reading.verifier.params}
      told += rules.not_split(verifier, placement.frozen, placement.mesh)
    return told

  def save(self, path: str, result: loop.Result) -> None:
    """Writes the trained drafter; all processes must call it."""
    params = jax.tree.map(processes.whole, result.state.params)
    if not processes.is_first():
      return
    verifier = self.reading.verifier
    facts = {
      'steps': int(result.state.step),
      'tau_eval': result.evaluation.get('tau'),
      'params_sha256': result.params_sha256,
      'verifier_source': verifier.source,
      drafter_file.TRAINED_ON: overlap.packed(
        self.student.seen | windows.hashes(self.data.train)
      ),
    }
    drafter_file.save(
      path,
      self.student.part or self.student.network,
      self.student.finished(params),
      self.vocab(),
      verifier,
      facts | self.student.facts,
      self.output.int8,
    )
