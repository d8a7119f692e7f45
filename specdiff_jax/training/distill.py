"""A distillation run: a drafter learns from its verifier's trajectories.

Beside the run itself: the draft vocabulary, and acceptance on held-out
trajectories.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
import optax

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.data import windows
from specdiff_jax.formats import drafter_file
from specdiff_jax.formats import weights
from specdiff_jax.models import networks
from specdiff_jax.models import transformer
from specdiff_jax.parallel import hosts
from specdiff_jax.parallel import rules
from specdiff_jax.training import checkpoint
from specdiff_jax.training import evaluate as evaluate_lib
from specdiff_jax.training import features as features_lib
from specdiff_jax.training import loop
from specdiff_jax.training import metrics
from specdiff_jax.training import objective
from specdiff_jax.training import online
from specdiff_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """All that decides a run; `train` starts it, or goes on with it.

  The verifier's params are whole on every process; the drafter's, and its
  optimizer's, are split by `rules.TRANSFORMER` over `mesh`. Without a feature
  cache the verifier is split in the same way, and runs in the train step.
  """

  network: drafter_file.Config
  initial: Callable[..., Any]  # (config, key, verifier's params) -> params
  score: objective.Score
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

  def vocab(self) -> np.ndarray:
    """Returns the draft vocabulary."""
    size = self.verifier.config.vocab_size
    return frequent_tokens(self.data, self.network.vocab, size)

  def train(self, progress: loop.Progress) -> loop.Result:
    """Trains, from the newest checkpoint in the work directory if any."""
    _check_same_run(os.path.join(self.workdir, 'run.json'), self.facts)
    state, shardings = step_lib.init_state(
        lambda key, params: self.initial(self.network, key, params),
        [jax.random.key(self.sizes.seed), self.verifier.params],
        self.optimizer,
        rules.TRANSFORMER,
        self.mesh,
    )
    frozen = jax.device_put(
        objective.frozen(self.verifier.params, self.vocab()),
        rules.replicated(self.mesh),
    )
    temperature = self.loss.temperature if self.loss.law else 0.0
    if self._online(temperature):
      frozen['verifier'] = jax.device_put(
          self.verifier.params,
          rules.shardings(
              self.verifier.params, rules.TRANSFORMER, self.mesh
          ),
      )
    share = hosts.process_index(), hosts.process_count()
    path = os.path.join(self.workdir, 'metrics.jsonl')
    return loop.train(
        state,
        step_lib.make_train_step(
            self._with_features(
                objective.make_loss(
                    self.score,
                    self.loss,
                    self.sizes.gamma,
                    self.vocab_block,
                    self.sizes.seed,
                ),
                temperature,
            ),
            self.optimizer,
            self.mesh,
            shardings,
        ),
        iter(windows.batches(self.data, self.sizes, *share)),
        checkpoint.Checkpointer(os.path.join(self.workdir, 'checkpoints')),
        metrics.MetricsWriter(path if hosts.is_first() else None),
        self.schedule,
        frozen=frozen,
        prepare=self._prepare(temperature),
        evaluate=evaluator(
            self._with_features(
                objective.make_matches(
                    self.score, self.sizes.gamma, self.vocab_block
                )
            ),
            frozen,
            self._prepare(),
            self.held_out,
            self.sizes,
            self.mesh,
        ),
        progress=progress,
    )

  def _prepare(self, temperature: float = 0.0) -> Callable[[Any], Any]:
    """Returns what adds features to the batches of one source.

    And the verifier's law at a temperature above 0.
    """
    wanted = self.network.features or temperature
    if not wanted or self._online(temperature):
      return lambda batch: hosts.global_batch(self.mesh, batch)
    features = features_lib.Features(
        transformer.Transformer(self.verifier.config),
        self.verifier.params,
        self.network.features,
        self.feature_cache,
        temperature,
    )
    return lambda batch: hosts.global_batch(self.mesh, features(batch))

  def _online(self, temperature: float) -> bool:
    """Whether the verifier runs in the step: where nothing of it is kept."""
    wanted = self.network.features or temperature
    return bool(wanted) and not self.feature_cache

  def _with_features(self, function, temperature: float = 0.0):
    """Returns a function of batches that lack what `_prepare` does not add."""
    if not self._online(temperature):
      return function
    return online.with_features(
        function,
        networks.network(self.verifier.config),
        self.network.features,
        temperature,
    )

  def save(self, path: str, result: loop.Result) -> None:
    """Writes the drafter that `train` came to."""
    facts = {
        'steps': result.steps,
        'tau_eval': result.evaluation.get('tau'),
        'params_sha256': result.params_sha256,
        'verifier_source': self.verifier.source,
    }
    drafter_file.save(
        path,
        self.network,
        result.state.params,
        self.vocab(),
        self.verifier,
        facts,
    )


def _check_same_run(path: str, facts: Mapping[str, Any]) -> None:
  """Writes what decides a run; raises InputError if it was another run's."""
  if os.path.exists(path):
    before = files.read_json(path)
    for name in facts:
      if before.get(name) != facts[name]:
        raise errors.InputError(
            f'{path}: this work directory belongs to a run with {name}='
            f'{before.get(name)!r}, but now it is {facts[name]!r}. Go on with '
            'the same setting, or give another --workdir.'
        )
  elif hosts.is_first():
    try:
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path + '.new', 'w', encoding='utf-8') as file:
        json.dump(dict(facts), file, indent=2)
      os.replace(path + '.new', path)
    except OSError as error:
      raise errors.InputError(
          f'{path}: cannot be written ({error}); make room, or give another '
          '--workdir.'
      ) from error


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


def evaluator(
    matches: Callable[..., Any],
    frozen: Any,
    prepare: Callable[[Any], Any],
    source: windows.Source,
    sizes: windows.WindowConfig,
    mesh: jax.sharding.Mesh,
) -> Callable[[Any], dict[str, Any]]:
  """Returns `params -> figures` of argmax drafts over held-out trajectories.

  Every anchor of every trajectory is drafted from, so that `tau` is that of
  serving (`evaluate.simulate`), with `evaluate.curves` beside it.

  Args:
    matches: see `objective.make_matches`.
    frozen: see `objective.frozen`.
    prepare: makes a device batch of a host batch, for this very source.
    source: held-out trajectories.
    sizes: of a batch, as in training.
    mesh: of the params.
  """
  matches = jax.jit(matches, out_shardings=rules.replicated(mesh))

  def run(params):
    found = [[] for _ in range(len(source))]
    for batch in all_anchors(source, sizes):
      match, valid = jax.device_get(
          matches(params, frozen, prepare(_share(batch)))
      )
      for row, record in enumerate(batch['record']):
        some = batch['anchor_valid'][row]
        if record != windows.BLANK and some.any():
          found[record].append((match[row][some], valid[row][some]))
    return _figures([record for record in found if record])

  return run


def all_anchors(
    source: windows.Source, sizes: windows.WindowConfig
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches in which every anchor of every trajectory stands once.

  A trajectory takes as many rows as its anchors fill; their order is kept.
  """
  rows = []
  for record in range(len(source)):
    item = source[record]
    whole = np.concatenate([item.prompt, item.completion])[: sizes.tokens]
    anchors = np.arange(len(item.prompt), len(whole) - 1)
    for first in range(0, len(anchors), sizes.windows):
      chosen = anchors[first : first + sizes.windows]
      rows.append(_row(record, whole, len(item.prompt), chosen, sizes))
  blank = _row(windows.BLANK, np.zeros(1, np.int32), 1, np.zeros(0), sizes)
  rows += [blank] * (-len(rows) % sizes.batch)
  for first in range(0, len(rows), sizes.batch):
    group = rows[first : first + sizes.batch]
    yield {name: np.stack([row[name] for row in group]) for name in blank}


def _row(record, whole, prompt_length, chosen, sizes) -> dict[str, np.ndarray]:
  tokens = np.zeros(sizes.tokens, np.int32)
  tokens[: len(whole)] = whole
  anchors = np.full(sizes.windows, prompt_length, np.int32)
  anchors[: len(chosen)] = chosen
  return {
      'tokens': tokens,
      'length': np.int32(len(whole)),
      'prompt_length': np.int32(prompt_length),
      'anchors': anchors,
      'anchor_valid': np.arange(sizes.windows) < len(chosen),
      'record': np.int32(record),
  }


def _share(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the rows of this process, in the order of the global batch."""
  count = hosts.process_count()
  first = hosts.process_index() * (len(batch['record']) // count)
  rows = slice(first, first + len(batch['record']) // count)
  return {name: value[rows] for name, value in batch.items()}


def _figures(found: Sequence[Sequence[tuple]]) -> dict[str, Any]:
  """Sums up (match, valid) of each trajectory's anchors, in order."""
  if not found:
    return {}
  whole = [tuple(map(np.concatenate, zip(*parts))) for parts in found]
  accepted = [evaluate_lib.accepted_counts(m, v) for m, v in whole]
  match, valid = map(np.concatenate, zip(*whole))
  figures = evaluate_lib.curves(match, valid)
  return {'tau': evaluate_lib.simulate_tau(accepted)} | figures
