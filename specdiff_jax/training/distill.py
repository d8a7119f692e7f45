"""A distillation run: a drafter learns from its verifier's trajectories."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
from typing import Any

import jax
import numpy as np
import optax

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import jax_settings
from specdiff_jax.core import locks
from specdiff_jax.data import journal
from specdiff_jax.data import windows
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import tables
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.parallel import processes
from specdiff_jax.parallel import rules
from specdiff_jax.training import checkpoint
from specdiff_jax.training import every_anchor
from specdiff_jax.training import features as features_lib
from specdiff_jax.training import loop
from specdiff_jax.training import metrics
from specdiff_jax.training import objective
from specdiff_jax.training import online
from specdiff_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """All that decides a run; `train` starts it, or goes on with it.

  The drafter's params, and its optimizer's state, are split over `mesh` by
  `split`, what stays frozen by `split_frozen`: the verifier too, where it runs
  in the train step. Where its features are kept on the host it does not, and
  every process has it whole.
  """

  network: drafter_file.Config
  initial: Callable[..., Any]  # (config, key, verifier's params) -> params
  score: scores.Score
  verifier: weights.Checkpoint
  data: windows.Source  # to train on
  held_out: windows.Source
  sizes: windows.WindowConfig
  loss: objective.Loss
  optimizer: optax.GradientTransformation
  schedule: loop.Schedule
  mesh: jax.sharding.Mesh
  feature_cache: int  # trajectories whose features the host keeps; 0: none
  vocab_block: int  # rows of the head whose logits exist at once; 0: all
  workdir: str
  facts: Mapping[str, Any]  # what must not change when the run goes on
  # Features by what decides them: runs that share it compute them once.
  memory: dict[Any, dict] = dataclasses.field(default_factory=dict)
  tensorboard: bool = False  # event files beside the JSON lines
  stored_law: bool = False  # the loss reads the law that the data hold
  # What the trained params are those of a drafter by: adapters are merged.
  finished: Callable[[Any], Any] = lambda params: params
  given_vocab: np.ndarray | None = None  # of the drafter that it starts from
  split: Sequence[rules.Rule] = dataclasses.field(
    default_factory=tables.sharding
  )
  split_frozen: Sequence[rules.Rule] = rules.TRANSFORMER
  explosion: float = 0.0  # see `step.make_train_step`
  keep: int = 3  # checkpoints, beside the best
  parts: int = 1  # of a batch, one after the other
  best: bool = False  # what it comes to is the best checkpoint, not the last

  def vocab(self) -> np.ndarray:
    """Returns the draft vocabulary."""
    if self.given_vocab is not None:
      return self.given_vocab
    size = self.verifier.config.vocab_size
    return frequent_tokens(self.data, self.network.vocab, size)

  def train(
    self,
    progress: loop.Progress,
    say: Callable[[str], None] = lambda text: None,
  ) -> loop.Result:
    """Trains, from the newest checkpoint in the work directory if any.

    `say` is told of damaged files that the run does without.

    Raises InputError if another run holds the directory, or it belongs to one
    with other facts.
    """
    with contextlib.ExitStack() as stack:
      lock = locks.held(os.path.join(self.workdir, '.lock'))
      processes.on_first(lambda: stack.enter_context(lock))
      path = os.path.join(self.workdir, 'run.json')
      processes.on_first(lambda: _check_same_run(path, self.facts))
      return self._train(progress, say)

  def _train(
    self, progress: loop.Progress, say: Callable[[str], None]
  ) -> loop.Result:
    state, frozen, step = self.start()
    path = os.path.join(self.workdir, 'metrics.jsonl')
    events = os.path.join(self.workdir, 'events') if self.tensorboard else None
    writer = processes.together(
      lambda: metrics.MetricsWriter(
        path if processes.is_first() else None, events, say
      )
    )
    share = processes.row_share(self.mesh)
    matches = objective.make_matches(
      self.score, self.sizes.gamma, self.vocab_block
    )
    return loop.train(
      state,
      step,
      iter(windows.batches(self.data, self.sizes, *share)),
      checkpoint.Checkpointer(
        os.path.join(self.workdir, 'checkpoints'), self.keep, say
      ),
      writer,
      self.schedule,
      frozen=frozen,
      prepare=self._with_stored_law(
        self.prepare(self.data, self._temperature())
      ),
      evaluate=every_anchor.evaluator(
        self._with_features(matches),
        frozen,
        self.prepare(self.held_out),
        self.held_out,
        self.sizes,
        self.mesh,
      ),
      progress=progress,
      records=lambda batch: [
        self.data[i].id for i in batch['record'] if i != windows.BLANK
      ],
      best=self.best,
    )

  def start(self) -> tuple[step_lib.TrainState, Any, Callable[..., Any]]:
    """Returns the first state, what stays frozen, and the train step."""
    loss = objective.make_loss(
      self.score,
      self.loss,
      self.sizes.gamma,
      self.vocab_block,
      self.sizes.seed,
      self.parts,
    )
    state, shardings = step_lib.init_state(
      lambda key, params: self.initial(self.network, key, params),
      [jax_settings.key(self.sizes.seed), self.verifier.params],
      self.optimizer,
      self.split,
      self.mesh,
    )
    step = step_lib.make_train_step(
      self._with_features(loss, self._temperature()),
      self.optimizer,
      self.mesh,
      shardings,
      self.explosion,
      tables.sharding(),
    )
    return state, self._frozen(), step

  def _frozen(self) -> dict[str, Any]:
    """Returns what training reads of the verifier, split over the mesh."""
    verifier, vocab = self.verifier.params, self.vocab()

    def make(params):
      return objective.frozen(params, vocab)

    shardings = rules.shardings(
      jax.eval_shape(make, verifier), self.split_frozen, self.mesh
    )
    frozen = jax.jit(make, out_shardings=shardings)(verifier)
    if self._online(self._temperature()):
      if self.network.features:  # evaluations have the verifier's, too
        del frozen['embed']
      frozen['verifier'] = jax.device_put(
        verifier, rules.shardings(verifier, self.split_frozen, self.mesh)
      )
    return frozen

  def _temperature(self) -> float:
    """Returns that of the verifier's law; 0 where no pass has to tell it."""
    asked = self.loss.law and not self.stored_law
    return self.loss.temperature if asked else 0.0

  def _with_stored_law(self, prepare):
    """Returns a `prepare` of the training data that adds its stored law."""
    if not self.stored_law:
      return prepare
    law = features_lib.StoredLaw(self.data)
    return lambda batch: prepare(law(batch))

  def not_split(self) -> list[str]:
    """Returns what the mesh does not divide; see `rules.not_split`."""
    drafter = {'drafter': self.network.shapes()}
    told = rules.not_split(drafter, self.split, self.mesh)
    if self._online(self._temperature()):
      verifier = {'verifier': self.verifier.params}
      told += rules.not_split(verifier, self.split_frozen, self.mesh)
    return told

  def prepare(
    self, source: windows.Source, temperature: float = 0.0
  ) -> Callable[[Any], Any]:
    """Returns what makes a source's batches such as the step takes.

    It adds the verifier's features where they are kept, and its law at a
    temperature above 0.
    """
    wanted = self.network.features or temperature
    if not wanted or self._online(temperature):
      return lambda batch: processes.global_batch(self.mesh, batch)
    layers, tokens = self.network.features, self.sizes.tokens
    dtype = jax.tree.leaves(self.verifier.params)[0].dtype.name
    own = self.verifier.fingerprint, dtype, layers, temperature, tokens
    features = features_lib.Features(
      transformer.Transformer(self.verifier.config),
      self.verifier.params,
      layers,
      self.feature_cache,
      temperature,
      self.memory.setdefault((*own, windows.digest(source)), {}),
    )
    return lambda batch: processes.global_batch(self.mesh, features(batch))

  def _online(self, temperature: float) -> bool:
    """Whether the verifier runs in the step: where nothing of it is kept."""
    wanted = self.network.features or temperature
    return bool(wanted) and not self.feature_cache

  def _with_features(self, function, temperature: float = 0.0):
    """Returns a function of batches that lack what `prepare` does not add."""
    if not self._online(temperature):
      return function
    return online.with_features(
      function,
      networks.network(self.verifier.config),
      self.network.features,
      temperature,
      self.parts,
    )

  def save(self, path: str, result: loop.Result) -> None:
    """Writes the drafter that `train` came to; all processes must call it."""
    params = jax.tree.map(processes.whole, result.state.params)
    if not processes.is_first():
      return
    facts = {
      'steps': int(result.state.step),
      'tau_eval': result.evaluation.get('tau'),
      'params_sha256': result.params_sha256,
      'verifier_source': self.verifier.source,
    }
    drafter_file.save(
      path,
      self.network,
      self.finished(params),
      self.vocab(),
      self.verifier,
      facts,
    )


def _check_same_run(path: str, facts: Mapping[str, Any]) -> None:
  """Writes what decides a run; raises InputError if it was another run's."""
  if not os.path.lexists(path):
    files.write_json(path, journal.with_sum(facts))
    return
  try:
    before = journal.without_sum(files.read_json(path))
  except (errors.InputError, ValueError) as error:
    raise errors.InputError(
      f'{path}, which tells what decides this run, cannot be used ({error}). '
      'If this run was begun with these very settings, delete that file and '
      'start the same command again; else give another --workdir.'
    ) from error
  other = journal.differences(_flat(before), _flat(facts))
  if other:
    raise errors.InputError(
      f'{path}: this work directory belongs to another run: {other}. Go on '
      'with the same settings, or give another --workdir.'
    )


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {'a.b': 1} of {'a': {'b': 1}}."""
  flat = {}
  for name, value in facts.items():
    if isinstance(value, Mapping):
      inner = _flat(value)
      flat |= {f'{name}.{part}': inner[part] for part in inner}
    else:
      flat[name] = value
  return flat


def frequent_tokens(
  source: windows.Source, size: int, vocab_size: int
) -> np.ndarray:
  """Returns the `size` most frequent completion tokens, most frequent first.

  Ties, and tokens that no completion has, go by their count in the prompts
  (names, numbers), then by id.
  """
  completions, prompts = np.zeros((2, vocab_size), np.int64)
  for index in range(len(source)):
    np.add.at(completions, source[index].completion, 1)
    np.add.at(prompts, source[index].prompt, 1)
  order = np.lexsort((np.arange(vocab_size), -prompts, -completions))
  return order[:size].astype(np.int32)
