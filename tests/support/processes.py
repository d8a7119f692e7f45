"""Runs of `distill` in processes of their own, alone or together."""

import json
import os
import pathlib
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAMS = HERE.parent / 'programs'
_ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # half the time of compiling
}  # fmt: skip


def free_port() -> int:
  with socket.socket() as one:
    one.bind(('localhost', 0))
    return one.getsockname()[1]


def start(arguments, environment=None, records='', program=()):
  """Starts `specdiff ARGUMENTS`; `records`: a file for what it trains on.

  Or another program and its arguments.
  """
  if records:
    program = [PROGRAMS / 'process_program.py', records]
  program = map(str, program or ['-m', 'specdiff_jax'])
  return subprocess.Popen(
      [sys.executable, *program, *map(str, arguments)],
      env=os.environ | _ENVIRONMENT | (environment or {}),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
  )  # fmt: skip


def start_together(count, arguments, devices=1, records='', program=()):
  """Starts `count` processes of one job; returns them."""
  address = f'localhost:{free_port()}'
  joining = [] if program else ['--config.distributed=True']
  return [
    start(
      [*arguments, *joining],
      {
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(index),
        'JAX_NUM_CPU_DEVICES': str(devices),
      },
      records and f'{records}.{index}',
      program,
    )
    for index in range(count)
  ]


def finished(process, timeout=400):
  """Returns (exit code, stdout, stderr)."""
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def lines(path):
  """Returns the objects of a file of JSON lines."""
  return [json.loads(line) for line in pathlib.Path(path).open()]
