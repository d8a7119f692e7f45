"""Processes: starting them, and making global batches of local ones."""

from typing import Any

import jax
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.parallel import rules


def initialize(distributed: bool) -> None:
  """Joins the other processes; call it before anything touches a device.

  Does nothing unless `distributed`. On TPU pods and under Slurm jax finds
  the coordinator by itself; elsewhere JAX_COORDINATOR_ADDRESS, with
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, names it.
  """
  if not distributed:
    return
  try:
    jax.distributed.initialize()
  except (RuntimeError, ValueError) as error:
    raise errors.InputError(
        f'distributed: the processes could not be joined ({error}). Start '
        'every process with a reachable coordinator (under Slurm or on a TPU '
        'pod it is found; elsewhere set JAX_COORDINATOR_ADDRESS, '
        'JAX_NUM_PROCESSES and JAX_PROCESS_ID), or run without the flag.'
    ) from error


def process_index() -> int:
  """Returns this process's number."""
  return jax.process_index()


def process_count() -> int:
  """Returns how many processes there are."""
  return jax.process_count()


def is_first() -> bool:
  """Returns whether this process writes logs and files for all."""
  return jax.process_index() == 0


def global_batch(mesh: jax.sharding.Mesh, local: Any) -> Any:
  """Returns arrays split by row over 'data', from each process's rows.

  Args:
    mesh: The mesh; its 'data' axis must divide the global batch.
    local: A tree of numpy arrays [rows of this process, ...].

  Raises:
    InputError: If the rows do not divide over the mesh.
  """
  sharding = rules.by_row(mesh)
  ways = mesh.shape.get('data', 1)

  def place(leaf):
    leaf = np.asarray(leaf)
    check_rows(leaf.shape[0] * jax.process_count(), ways)
    return jax.make_array_from_process_local_data(sharding, leaf)

  return jax.tree.map(place, local)


def check_rows(rows: int, ways: int) -> None:
  """Raises InputError unless `rows` divide over `ways` devices."""
  if rows % ways:
    raise errors.InputError(
        f'batch: {rows} rows do not divide over a data axis of {ways}. Make '
        f'the batch a multiple of {ways}, or the data axis smaller.'
    )
