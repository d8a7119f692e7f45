"""The training loop on the host: resume, step, log, evaluate, save."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import signal
import threading
import time
from typing import Any

import jax

from specdiff_jax.core import errors
from specdiff_jax.training import checkpoint
from specdiff_jax.training import metrics as metrics_lib
from specdiff_jax.training import step as step_lib

Evaluate = Callable[[Any], dict[str, Any]]
Progress = Callable[[int, int, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run, or the part of it until it was interrupted, came to."""

  state: step_lib.TrainState
  steps: int  # batches seen, over all sessions
  skipped: int  # updates left out because they were not finite
  loss: float | None  # the last one logged
  evaluation: dict[str, Any]  # the last one
  params_sha256: str | None  # None where no single host holds the params
  interrupted: bool  # a signal came; the state was saved
  preempted: bool = False  # and it was SIGTERM: the machine is taken away


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How often things happen, in steps; 0 is never but at the end."""

  steps: int
  save_every: int = 200
  eval_every: int = 200
  log_every: int = 10


def train(
    state: step_lib.TrainState,
    step_fn: Callable[..., tuple[step_lib.TrainState, dict[str, jax.Array]]],
    iterator: Iterator,
    checkpointer: checkpoint.Checkpointer,
    writer: metrics_lib.MetricsWriter,
    schedule: Schedule,
    *,
    frozen: Any = None,
    prepare: Callable[[Any], Any] = lambda batch: batch,
    evaluate: Evaluate | None = None,
    progress: Progress = lambda step, steps, values: None,
) -> Result:
  """Trains until `schedule.steps`, from the newest checkpoint if any.

  Stopped and started again it comes to the same bits as when never stopped.
  SIGTERM and Ctrl-C finish the step, save, and return a result that is
  marked `interrupted`; a second Ctrl-C does not wait.

  Args:
    state: Where to start if there is no checkpoint; also the template of
      shapes and shardings. Donated: do not use it again.
    step_fn: `(state, batch, frozen) -> (state, metrics)`.
    iterator: A grain iterator of batches.
    checkpointer: Where states go.
    writer: Where metrics go, as {'step', 'loss', ...} and {'step', 'eval'}.
    schedule: How long, and how often to log, evaluate and save.
    frozen: Passed to every step: the verifier's params.
    prepare: Makes a device batch of the iterator's; adds features.
    evaluate: Takes params and returns plain numbers.
    progress: Told (step, steps, latest metrics) after every step.

  Raises:
    InputError: If the data end early, or the disk is full.
  """
  restored = checkpointer.restore(state, iterator)
  state = state if restored is None else restored
  del restored
  first = int(state.step)
  writer.truncate(first)
  values, started = {}, time.monotonic()
  with _stop_signals() as stopped:
    for done in range(first + 1, schedule.steps + 1):
      batch = prepare(_next(iterator, done))
      state, metrics = step_fn(state, batch, frozen)
      if _due(done, schedule.log_every, schedule.steps):
        values = jax.device_get(metrics)
        rate = (done - first) / (time.monotonic() - started)
        writer.write(done, values | {'steps_per_s': rate})
      if evaluate and _due(done, schedule.eval_every, schedule.steps):
        writer.write(done, {'eval': evaluate(state.params)})
      progress(done, schedule.steps, values)
      stop = bool(stopped)  # Once: a signal may come between two looks.
      if stop or _due(done, schedule.save_every, schedule.steps):
        checkpointer.save(state, iterator)
      if stop:
        break
  return _result(state, writer, schedule, signal.SIGTERM in stopped)


def _result(state, writer, schedule: Schedule, preempted: bool) -> Result:
  steps = int(state.step)
  whole = all(x.is_fully_addressable for x in jax.tree.leaves(state.params))
  return Result(
      state=state,
      steps=steps,
      skipped=int(state.skipped),
      loss=writer.last('loss'),
      evaluation=writer.last('eval') or {},
      params_sha256=checkpoint.digest(state.params) if whole else None,
      interrupted=steps < schedule.steps,
      preempted=preempted and steps < schedule.steps,
  )


def _due(step: int, every: int, last: int) -> bool:
  return step == last or (every > 0 and step % every == 0)


def _next(iterator: Iterator, step: int) -> Any:
  try:
    return next(iterator)
  except StopIteration:
    raise errors.InputError(
        f'training data: they ended before step {step}. Give more epochs '
        '(or none, to repeat without end), more data, or fewer steps.'
    ) from None


@contextlib.contextmanager
def _stop_signals():
  """Yields a list that a SIGTERM or SIGINT fills.

  Handlers can be set in the main thread only; elsewhere the list stays
  empty. A second SIGINT raises KeyboardInterrupt at once.
  """
  caught = []
  if threading.current_thread() is not threading.main_thread():
    yield caught
    return

  def catch(number, frame):
    del frame
    if caught and number == signal.SIGINT:
      raise KeyboardInterrupt
    caught.append(number)

  signals = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, catch) for number in signals]
  try:
    yield caught
  finally:
    for number, handler in zip(signals, before, strict=True):
      signal.signal(number, handler)
