"""Checkpoints of a training state together with its data iterator."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.parallel import processes
from specdiff_jax.training import checksum
from specdiff_jax.training.checkpoint import damage
from specdiff_jax.training.checkpoint import disk
from specdiff_jax.training.checkpoint import memory


class Checkpointer:
  """Saves and restores (state, iterator) pairs.

  Keeps the newest `keep`, and the best. A checkpoint appears whole or not at
  all: it is written beside its place and renamed, so a run killed while saving
  finds the one before. Each has checksums of its values, because the array
  store itself does not notice a flipped bit.

  Values go to the host before `save` returns, and to the disk while training
  goes on. All processes must make the same calls. An error of one is raised in
  all, within seconds; a process that never gets done is waited for 20 minutes.

  Example:
    checkpointer = Checkpointer('runs/mine/checkpoints')
    restored = checkpointer.restore(state, iterator)  # None at first
    with checkpointer:  # at whose end all is on the disk
      checkpointer.save(state, iterator)
  """

  def __init__(
    self,
    directory: str,
    keep: int = 3,
    say: Callable[[str], None] = lambda text: None,
  ):
    """Opens or makes the directory.

    Args:
      directory: where the checkpoints are.
      keep: newest checkpoints that are kept.
      say: is told of each damaged one that is set aside.
    """
    self.directory = os.path.abspath(directory)
    self._keep, self._say = keep, say
    self._writing: int | None = None  # the step whose save is not settled
    self._untidy = False  # a save failed, whose threads may write a while yet
    memory.stop_leaks()
    disk.stop_noise()
    try:
      processes.on_first(lambda: disk.tell(self._make))
      self._alias = files.alias(self.directory)  # orbax globs
      self._manager = self._open()
    except MemoryError:
      raise
    except Exception as error:  # Orbax raises bare Exceptions too.
      raise errors.InputError(
        f'checkpoints: the directory {self.directory} cannot be used '
        f'({disk.brief(error)}). Make it writable, or choose another work '
        'directory.'
      ) from error

  def _make(self) -> None:
    """Makes the directory, and sets damaged checkpoints aside.

    With these it could not be opened, which reads the metrics of all, to know
    which are kept.
    """
    os.makedirs(self.directory, exist_ok=True)
    faults = damage.faults(self.directory)
    if faults and all(faults.values()):
      newest = max(faults)
      raise errors.InputError(
        f'of the steps {sorted(faults)} none is whole; step {newest}: '
        f'{faults[newest]}; remove them to start over'
      )
    for step, fault in faults.items():
      if fault:
        self._move_away(step, fault)

  def _open(self) -> ocp.CheckpointManager:
    """Opens the directory; what a killed run left half written is removed."""
    newest = checkpoint_managers.LatestN(self._keep)
    best = checkpoint_managers.BestN(get_metric_fn=_tau, n=1)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(
        [newest, best]
      ),
      best_fn=_tau,
      enable_async_checkpointing=True,
      async_options=ocp.AsyncOptions(barrier_sync_fn=meeting()),
      cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(
      self._alias,
      options=options,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'data': ocp.JsonCheckpointHandler(),
        damage.CHECKSUMS: ocp.JsonCheckpointHandler(),
      },
    )

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def best(self) -> int | None:
    """Returns the step of the highest tau, or None where there is none."""
    step = self._manager.best_step()
    found = None if step is None else self._manager.metrics(step)
    return step if found and _tau(found) else None

  def preempted(self, step: int) -> bool:
    """Whether the cluster takes a process away, and all are to stop here.

    Of several processes each must ask after every step: they stop after the
    same one. A single process has no such notice, only its signal.
    """
    return self._manager.reached_preemption(step)

  def save(self, state: Any, iterator: Any, tau: float | None = None) -> None:
    """Starts to save both under `state.step`, unless that is there already.

    Args:
      state: May be donated as soon as this returns: of a CPU's arrays, which
        are not copied, jax then leaves the memory alone.
      iterator: A grain iterator, in the same place in every process.
      tau: What this very state was evaluated to, if it was.

    Raises:
      InputError: If this one or the one before cannot be written, because the
        disk is full or the directory not writable.
    """
    self.wait()
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    # At least 1 where there is one; orbax wants a number each time.
    metrics = {'tau': float(tau) if tau and tau > 0 else 0.0}
    sums = checksum.of(state, iterator) | metrics
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave(checksum.position(iterator)),
      **{damage.CHECKSUMS: ocp.args.JsonSave(sums)},
    )
    # The disk first: else the others would wait for the first process.
    probe = functools.partial(disk.probe, self.directory)
    self._try(step, probe if processes.is_first() else lambda: None)
    self._try(
      step,
      lambda: self._manager.save(step, args=args, metrics=metrics, force=True),
    )
    self._writing = step

  def wait(self) -> None:
    """Returns once what was saved is on the disk.

    Raises:
      InputError: If it cannot be written. Then it is given up, and the next
        one can be saved.
    """
    step, self._writing = self._writing, None
    if step is not None:
      self._try(step, self._manager.wait_until_finished)
      if self._untidy:
        processes.on_first(lambda: disk.clear(self.directory))
        self._untidy = False
      memory.give_back()

  def _try(self, step: int, action: Callable[[], Any]) -> None:
    """Raises an InputError in all processes if one's disk is in trouble."""
    try:
      processes.together(lambda: disk.tell(action))
    except errors.InputError as error:
      with contextlib.suppress(Exception):  # the same one once more
        self._manager.close()
      processes.on_first(lambda: disk.clear(self.directory))
      self._manager = self._open()
      self._untidy = True
      raise errors.InputError(
        f'checkpoints: step {step} could not be written to '
        f'{self.directory} ({self._brief(error)}). Earlier checkpoints '
        f'{self.steps()} are untouched. Free some space there (or make it '
        'writable) and start the same command again: it goes on from the '
        'last one.'
      ) from error

  def restore(self, template: Any, iterator: Any) -> Any | None:
    """Returns the newest good state, and moves `iterator` to its place.

    A checkpoint that cannot be read, or whose values are not those saved,
    is set aside (renamed to STEP.corrupt) and the one before is taken.

    Args:
      template: A state whose shapes, dtypes and shardings are wanted, on
        whatever mesh and of however many processes.
      iterator: A grain iterator over the same data; changed in place.

    Returns:
      The state, or None where there is no checkpoint yet.

    Raises:
      InputError: If there are checkpoints and none can be read.
    """
    failures = {}
    for step in reversed(self.steps()):
      try:
        state = self._read(step, template, iterator)
      except MemoryError:  # which is no damage
        raise
      except Exception as error:  # Orbax raises bare Exceptions too.
        failures[step] = error
        continue
      self._set_aside(failures)
      return state
    if not failures:
      return None
    newest = max(failures)
    raise errors.InputError(
      f'checkpoints: none of the steps {sorted(failures)} in '
      f'{self.directory} can be restored; step {newest}: '
      f'{self._brief(failures[newest])}. If the configuration changed '
      '(sizes, optimizer, data), go back to the one that wrote them; else '
      'choose another work directory, or remove this one to start over.'
    )

  def at(self, step: int, template: Any, iterator: Any) -> Any:
    """Returns the state of this very step; the rest is as in `restore`.

    Raises:
      InputError: If it cannot be read, or is not what was saved.
    """
    try:
      return self._read(step, template, iterator)
    except MemoryError:  # the file may be whole
      raise
    except Exception as error:  # Orbax raises bare Exceptions too.
      raise errors.InputError(
        f'checkpoints: step {step} in {self.directory} cannot be read '
        f'({self._brief(error)}). Start the same command with '
        '--config.export=last, which does not need it.'
      ) from error

  def _brief(self, error: BaseException) -> str:
    return disk.brief(error).replace(self._alias, self.directory)

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind: Any, *_) -> None:
    """Waits for what is being written; an error before goes first."""
    if not kind:
      self.wait()
    elif self._writing is not None:  # others may not have got this far
      with contextlib.suppress(Exception):
        self._manager.wait_until_finished()

  def _read(self, step: int, template: Any, iterator: Any) -> Any:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    # What one process cannot read none takes: all sum up together.
    restored = processes.together(
      lambda: self._stored(step, template, abstract)
    )
    iterator.set_state(restored.data)
    sums = {n: x for n, x in restored[damage.CHECKSUMS].items() if n != 'tau'}
    if sums != checksum.of(restored.state, iterator):
      raise ValueError('its values are not those that were saved')
    return restored.state

  def _stored(self, step: int, template: Any, abstract: Any) -> Any:
    try:
      damage.check_shapes(self._manager.item_metadata(step).state, template)
      return self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          data=ocp.args.JsonRestore(),
          **{damage.CHECKSUMS: ocp.args.JsonRestore()},
        ),
      )
    except (MemoryError, errors.InputError):
      raise
    except Exception as error:  # Orbax raises bare Exceptions too.
      raise errors.InputError(disk.brief(error)) from error

  def _set_aside(self, failures: Mapping[int, BaseException]) -> None:
    if not failures:
      return
    processes.on_first(
      lambda: [self._move_away(s, self._brief(e)) for s, e in failures.items()]
    )
    self._manager.reload()

  def _move_away(self, step: int, fault: str) -> None:
    source = os.path.join(self.directory, str(step))
    files.remove(f'{source}.corrupt')
    with files.writing(f'{source}.corrupt'):
      os.rename(source, f'{source}.corrupt')
    self._say(
      f'checkpoints: step {step} is damaged and set aside, as '
      f'{source}.corrupt ({fault}).'
    )


def meeting() -> processes.Meeting:
  """Returns a meeting of all processes, which may come hours apart."""
  return processes.Meeting(ocp.multihost.get_barrier_sync_fn())


def _tau(metrics: dict[str, float]) -> float:
  return metrics['tau']
