"""The training loop on the host: resume, step, log, evaluate, save."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import math
import signal
import threading
from typing import Any

import jax

from specdiff_jax.core import errors
from specdiff_jax.core import interrupts
from specdiff_jax.parallel import processes
from specdiff_jax.training import checksum
from specdiff_jax.training import flops as flops_lib
from specdiff_jax.training import metrics as metrics_lib
from specdiff_jax.training import step as step_lib
from specdiff_jax.training.checkpoint import saving

Evaluate = Callable[[Any], dict[str, Any]]
Progress = Callable[[int, int, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a run, or of the part of it until it was interrupted."""

  state: step_lib.TrainState  # the last one, or that of the best checkpoint
  steps: int  # batches seen, over all sessions
  skipped: int  # updates left out because they were not finite, or exploded
  loss: float | None  # the last one logged
  evaluation: dict[str, Any]  # the last one of `state`
  best: int | None  # step of the checkpoint with the highest tau
  params_sha256: str
  interrupted: bool  # a signal came; the state was saved
  preempted: bool = False  # and it was SIGTERM: the machine is taken away


_LOOK = 100  # most steps between two looks at what was left out


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How often things happen, in steps, 0 being never but at the end; limits.

  Attributes:
    steps: length of the whole run.
    save_every: checkpoints; also the most that a kill costs.
    eval_every: evaluations on held-out trajectories.
    log_every: lines of metrics, and looks at what was left out.
    skip_limit: updates left out in a row at which the run is stopped; 0: none.
    survive_full_disk: a checkpoint or a line of metrics that cannot be written
      is skipped, but for the last ones.
  """

  steps: int
  save_every: int = 200
  eval_every: int = 200
  log_every: int = 10
  skip_limit: int = 0
  survive_full_disk: bool = False


def train(
  state: step_lib.TrainState,
  step_fn: Callable[..., tuple[step_lib.TrainState, dict[str, jax.Array]]],
  iterator: Iterator,
  checkpointer: saving.Checkpointer,
  writer: metrics_lib.MetricsWriter,
  schedule: Schedule,
  *,
  frozen: Any = None,
  prepare: Callable[[Any], Any] = lambda batch: batch,
  evaluate: Evaluate | None = None,
  progress: Progress = lambda step, steps, values: None,
  records: Callable[[Any], list[str]] = lambda batch: [],
  best: bool = False,
) -> Result:
  """Trains until `schedule.steps`, from the newest checkpoint if any.

  Stopped and started again it yields the same bits as when never stopped.
  SIGTERM and Ctrl-C finish the step, save, and return a result that is
  marked `interrupted`; a second Ctrl-C does not wait. Of several processes all
  stop after the same step when SIGTERM comes to one of them; there Ctrl-C ends
  a process at once, and the run goes on from its last checkpoint.

  Args:
    state: Where to start if there is no checkpoint; also the template of
      shapes and shardings. Donated: do not use it again.
    step_fn: `(state, batch, frozen) -> (state, metrics)`.
    iterator: A grain iterator of batches, without end.
    checkpointer: Where states go.
    writer: Where metrics go, as {'step', 'loss', ...} and {'step', 'eval'}.
    schedule: How long, and how often to log, evaluate and save.
    frozen: Passed to every step: the verifier's params.
    prepare: Makes a device batch of the iterator's; adds features.
    evaluate: Takes params and returns plain numbers.
    progress: Told (step, steps, latest metrics) after every step.
    records: Names the trajectories of one of the iterator's batches.
    best: At the end the result is that of the checkpoint with the highest tau,
      where there is one that was evaluated, in place of the last state's.

  Raises:
    InputError: If the disk is full, too many updates in a row are left out, or
      the best checkpoint cannot be read.
  """
  restored = checkpointer.restore(state, iterator)
  state = state if restored is None else restored
  del restored
  first = int(state.step)
  if first > schedule.steps:
    raise errors.InputError(
      f'the run in this work directory has {first} steps behind it, but '
      f'config.steps is {schedule.steps}; give at least as many, or another '
      '--workdir.'
    )
  processes.together(lambda: writer.truncate(first))
  values, flops, pace = {}, None, metrics_lib.Pace()
  watch, failed = _Watch(records, schedule.skip_limit), []
  with contextlib.ExitStack() as held, _stop_signals() as stopped, checkpointer:
    if first == schedule.steps and processes.process_count() == 1:
      # Where a run that was to be longer was stopped, nothing was evaluated.
      last = [x for x in writer.read() if x['step'] == first]
      if evaluate and not any('eval' in x for x in last):
        _write(writer, first, {'eval': evaluate(state.params)})
    for done in range(first + 1, schedule.steps + 1):
      must = done == schedule.steps or not schedule.survive_full_disk
      attempt = functools.partial(_attempt, must, failed)
      batch, tau = next(iterator), None
      ready = prepare(batch)
      if flops is None:
        flops = flops_lib.count(step_fn, state, ready, frozen)
      state, metrics = step_fn(state, ready, frozen)
      if done == first + 1 and processes.process_count() == 1:
        # From here on, where it is compiled, there is something to save.
        held.enter_context(
          interrupts.held('finishing this step and its checkpoint')
        )
      watch.add(done, batch, metrics.pop('left_out', False))
      pace.add(metrics)
      if _due(done, schedule.log_every, schedule.steps):
        values = jax.device_get(metrics)
        line = values | pace.rates(values, flops) | watch.told()
        if failed:
          line['not_written'] = list(failed)
        attempt(_write, writer, done, line)
        watch.check()
      elif done % _LOOK == 0:
        watch.look()  # it holds the batches until then
        watch.check()
      if evaluate and _due(done, schedule.eval_every, schedule.steps):
        with pace.paused(metrics):
          evaluation = evaluate(state.params)
        tau = evaluation.get('tau')
        attempt(_write, writer, done, {'eval': evaluation})
      progress(done, schedule.steps, values)
      # Once: a signal may come between two looks.
      stop = bool(stopped) or checkpointer.preempted(done)
      if stop or _due(done, schedule.save_every, schedule.steps):
        attempt = functools.partial(_attempt, must or stop, failed)
        with pace.paused(metrics):
          attempt(checkpointer.wait)
          attempt(checkpointer.save, state, iterator, tau)
      if stop:
        break
    checkpointer.wait()
    preempted = not stopped or signal.SIGTERM in stopped
    result = _result(state, checkpointer, writer, schedule, preempted)
  if not best or result.interrupted or result.best in (None, result.steps):
    return result
  state = checkpointer.at(result.best, state, iterator)
  return dataclasses.replace(
    result,
    state=state,
    evaluation=_evaluation(writer, result.best),
    params_sha256=checksum.digest(state.params),
  )


def _evaluation(writer, until: float = math.inf) -> dict[str, Any]:
  """Returns the last evaluation up to a step, or {}."""
  found = writer.last('eval', until)
  return found if isinstance(found, dict) else {}


def _write(writer, step: int, values: dict[str, Any]) -> None:
  """Writes a line; if the first process cannot, all of them raise."""
  processes.together(lambda: writer.write(step, values))


def _attempt(must: bool, failed: list[str], function, *args) -> None:
  """Calls what writes; where it need not be, its failure is only noted."""
  try:
    function(*args)
  except errors.InputError as error:
    if must:
      raise
    failed.append(str(error))


class _Watch:
  """Looks which updates were left out, without a wait for every step."""

  def __init__(self, records: Callable[[Any], list[str]], limit: int):
    self._records = records
    self._limit = limit
    self._recent: list[tuple[int, Any, Any]] = []  # not looked at yet
    self._row: dict[str, list[str]] = {}  # left out up to the newest
    self._long: dict[str, list[str]] = {}  # a row of as many as the limit
    self._found: dict[str, list[str]] = {}  # not told yet

  def add(self, step: int, batch: Any, left_out: jax.Array | bool) -> None:
    """Takes a step; `left_out` is known once it is done."""
    self._recent.append((step, batch, left_out))

  def look(self) -> None:
    """Looks at the steps since the last look, and lets go of their batches."""
    flags = jax.device_get([flag for _, _, flag in self._recent])
    for (step, batch, _), flag in zip(self._recent, flags, strict=True):
      if not flag:
        self._row = {}
        continue
      self._found[str(step)] = self._row[str(step)] = self._records(batch)
      if self._limit and len(self._row) >= self._limit:
        self._long = self._row
    self._recent.clear()

  def told(self) -> dict[str, Any]:
    """Returns the trajectories of the steps left out since it was called."""
    self.look()
    found, self._found = self._found, {}
    return {'left_out': found} if found else {}

  def check(self) -> None:
    """Raises InputError if too many in a row were left out."""
    if not self._long:
      return
    named = '; '.join(
      f'step {step}: {", ".join(ids) or "unknown"}'
      for step, ids in self._long.items()
    )
    raise errors.InputError(
      f'training: {len(self._long)} updates in a row were left out, since '
      'the loss or its gradient was not finite, or exploded '
      f'(config.explosion). Their trajectories: {named}. Take these out of '
      'the data, or lower config.learning_rate. The checkpoints before are '
      'intact.'
    )


def _result(
  state, checkpointer, writer, schedule: Schedule, preempted: bool
) -> Result:
  steps = int(state.step)
  return Result(
    state=state,
    steps=steps,
    skipped=int(state.skipped),
    loss=writer.last('loss'),
    evaluation=_evaluation(writer),
    best=checkpointer.best(),
    params_sha256=checksum.digest(state.params),
    interrupted=steps < schedule.steps,
    preempted=preempted and steps < schedule.steps,
  )


def _due(step: int, every: int, last: int) -> bool:
  return step == last or (every > 0 and step % every == 0)


@contextlib.contextmanager
def _stop_signals():
  """Yields a list that a SIGTERM or SIGINT fills.

  Handlers can be set in the main thread only; elsewhere the list stays
  empty. So it does with several processes: there jax catches SIGTERM, and
  tells all (`Checkpointer.preempted`). A second SIGINT raises
  KeyboardInterrupt at once. One that is ignored stays so.
  """
  caught = []
  alone = processes.process_count() == 1
  if threading.current_thread() is not threading.main_thread() or not alone:
    yield caught
    return

  def catch(number, frame):
    del frame
    if caught and number == signal.SIGINT:
      raise KeyboardInterrupt
    caught.append(number)

  before = {
    number: signal.signal(number, catch)
    for number in (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(number) not in (signal.SIG_IGN, None)
  }
  try:
    yield caught
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
