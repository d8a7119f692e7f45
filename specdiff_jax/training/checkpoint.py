"""Checkpoints of a training state together with its data iterator."""

from collections.abc import Iterator
import hashlib
import json
import os
import re
from typing import Any

from grain import checkpoint as grain_checkpoint
import jax
import numpy as np
import orbax.checkpoint as ocp

from specdiff_jax.core import errors
from specdiff_jax.parallel import rules


class Checkpointer:
  """Saves and restores (state, iterator) pairs, the newest `keep` of them.

  A checkpoint appears whole or not at all: it is written beside its place
  and renamed, so a run killed while saving finds the one before. Each is
  sealed with a hash of its values, because the array store itself does not
  notice a flipped bit.

  Example:
    checkpointer = Checkpointer('runs/mine/checkpoints')
    restored = checkpointer.restore(state, iterator)  # None at first
    checkpointer.save(state, iterator)
  """

  def __init__(self, directory: str, keep: int = 3):
    remote = '://' in directory
    self.directory = directory if remote else os.path.abspath(directory)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
    )
    try:
      self._manager = ocp.CheckpointManager(
          self.directory,
          options=options,
          item_handlers={
              'state': ocp.StandardCheckpointHandler(),
              'data': grain_checkpoint.CheckpointHandler(),
              'seal': ocp.JsonCheckpointHandler(),
          },
      )
    except OSError as error:
      raise errors.InputError(
          f'checkpoints: the directory {self.directory} cannot be used '
          f'({error}). Make it writable, or choose another work directory.'
      ) from error

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, state: Any, iterator: Iterator) -> None:
    """Saves both under `state.step`; does nothing if that is there already.

    Raises:
      InputError: If the disk is full or the directory cannot be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=grain_checkpoint.CheckpointSave(iterator),
        seal=ocp.args.JsonSave(_seal(state, iterator)),
    )
    try:
      self._manager.save(step, args=args, force=True)
      self._manager.wait_until_finished()
    except Exception as error:
      if not _is_disk_trouble(error):
        raise
      raise errors.InputError(
          f'checkpoints: step {step} could not be written to '
          f'{self.directory} ({_brief(error)}). Earlier checkpoints '
          f'{self.steps()} are untouched. Free some space there (or make it '
          'writable) and start the same command again: it goes on from the '
          'last one.'
      ) from error

  def restore(self, template: Any, iterator: Iterator) -> Any | None:
    """Returns the newest good state, and moves `iterator` to its place.

    A checkpoint that cannot be read, or whose values are not those saved,
    is set aside (renamed to STEP.corrupt) and the one before is taken.

    Args:
      template: A state whose shapes, dtypes and shardings are wanted.
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
      except Exception as error:  # Orbax raises bare Exceptions too.
        failures[step] = error
        continue
      self._set_aside(list(failures))
      return state
    if not failures:
      return None
    newest = max(failures)
    raise errors.InputError(
        f'checkpoints: none of the steps {sorted(failures)} in '
        f'{self.directory} can be restored; step {newest}: '
        f'{_brief(failures[newest])}. If the configuration changed (sizes, '
        'optimizer, data), go back to the one that wrote them; else choose '
        'another work directory, or remove this one to start over.'
    )

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.close()

  def _read(self, step: int, template: Any, iterator: Iterator) -> Any:
    self._check_shapes(step, template)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            data=grain_checkpoint.CheckpointRestore(iterator),
            seal=ocp.args.JsonRestore(),
        ),
    )
    if restored.seal and restored.seal != _seal(restored.state, iterator):
      raise ValueError('its values are not those that were saved')
    return restored.state

  def _check_shapes(self, step: int, template: Any) -> None:
    """Raises ValueError where a leaf is missing or of another kind."""
    saved = self._manager.item_metadata(step).state
    leaves = jax.tree_util.tree_flatten_with_path(saved)[0]
    there = {rules.name(path): _kind(leaf) for path, leaf in leaves}
    leaves = jax.tree_util.tree_flatten_with_path(template)[0]
    here = {rules.name(path): _kind(leaf) for path, leaf in leaves}
    for name in here | there:
      if here.get(name) != there.get(name):
        raise ValueError(
            f'{name} is {there.get(name, "missing")} there, '
            f'{here.get(name, "missing")} here'
        )

  def _set_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        source = self._manager.directory / str(step)
        target = self._manager.directory / f'{step}.corrupt'
        if target.exists():
          target.rmtree()
        source.rename(target)
    self._manager.reload()


def digest(tree: Any) -> str:
  """Returns the sha256 of a tree's names, shapes, dtypes and values."""
  result = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    array = np.ascontiguousarray(jax.device_get(leaf))
    name = rules.name(path)
    result.update(f'{name} {array.shape} {array.dtype}\n'.encode())
    result.update(array.reshape(-1).view(np.uint8))
  return result.hexdigest()


def _kind(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _seal(state: Any, iterator: Iterator) -> dict[str, Any]:
  """Returns what must be equal after a restore; {} where hosts share it."""
  if jax.process_count() > 1:  # No host sees all values; nor one iterator.
    return {}
  position = json.loads(json.dumps(iterator.get_state()))
  return {'sha256': digest(state), 'iterator': position}


def _is_disk_trouble(error: Exception) -> bool:
  """Whether it is the system's error; tensorstore wraps those as text."""
  return isinstance(error, OSError) or bool(
      re.search(r'os_error_code|OS error', str(error))
  )


def _brief(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return text if len(text) <= 400 else text[:400] + '...'
