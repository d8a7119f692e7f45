"""Compiling for accelerators that are not here, and what it tells."""

from collections.abc import Mapping
import dataclasses
import re
import time
from typing import Any

import jax

from specdiff_jax.tools.aot import hlo_costs

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_USED = re.compile(
  r'(?:Used |temporaries \()([\d.]+)([KMGT]?)\)?'
  r'(?: of | exceeds available HBM \()([\d.]+)([KMGT]?)'
)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What compiling a program yields, for each device.

  Attributes:
    fits: whether it can run.
    peak: bytes at the worst moment.
    limit: bytes that a device has; 0 where that cannot be told.
    parts: bytes of arguments, results that are not arguments again,
      temporaries and code. Empty if it does not fit: the compiler gives up.
    costs: what it does; None if it does not fit, or cannot be read.
    allocations: the compiler's own list of what is largest, if it does not.
    unread: why what it does cannot be read.
    seconds: of compiling.
    cpu_seconds: of all its threads.
  """

  fits: bool
  peak: int
  limit: int
  parts: Mapping[str, int]
  costs: hlo_costs.Costs | None
  allocations: str
  seconds: float
  cpu_seconds: float = 0.0
  unread: str = ''


def compiled(
  lowered: jax.stages.Lowered,
  limit: int,
  names: hlo_costs.Names | None = None,
) -> Outcome:
  """Compiles a program; to exceed the memory is an outcome, not an error."""
  start, cpu = time.monotonic(), time.process_time()
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    used = _USED.search(text)
    if 'RESOURCE_EXHAUSTED' not in text or not used:
      raise
    return Outcome(
      fits=False,
      peak=_bytes(*used.groups()[:2]),
      limit=_bytes(*used.groups()[2:]),
      parts={},
      costs=None,
      allocations=largest(text),
      seconds=time.monotonic() - start,
    )
  seconds, cpu = time.monotonic() - start, time.process_time() - cpu
  memory: Any = program.memory_analysis()
  parts = parts_of(memory)
  peak = memory.peak_memory_in_bytes or sum(parts.values()) - parts['code']
  peak += parts['code']
  costs, unread = None, ''
  try:
    costs = hlo_costs.read(program.as_text() or '', names)
  except jax.errors.JaxRuntimeError as error:
    # A compiler of another age may write what this jaxlib does not know: that
    # it fits is known, and was minutes of work.
    unread = (
      'What the program does cannot be read, so that bytes, FLOPs and '
      f'collectives are not told ({str(error).splitlines()[0]}). The compiler '
      'and jaxlib are of two releases; another topology or mesh may do.'
    )
  fits = not limit or peak <= limit
  return Outcome(fits, peak, limit, parts, costs, '', seconds, cpu, unread)


def parts_of(memory: Any) -> dict[str, int]:
  """Returns what a compiled program's memory is made of."""
  return {
    'arguments': memory.argument_size_in_bytes,
    'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    'code': memory.generated_code_size_in_bytes,
  }


def largest(text: str) -> str:
  """Returns the first lines of each of the compiler's largest allocations."""
  found = re.findall(
    r'Size: ([\d.]+[KMGT]?)\n(?:\s+Operator: op_name="([^"]*)")?.*?\n?'
    r'\s+Shape: (\S+)',
    text,
  )
  return '\n'.join(
    f'{size}  {shape}  {name}' for size, name, shape in found[:5]
  )


def advice(held: Mapping[str, int], outcome: Outcome) -> list[str]:
  """Returns what to change so that a program fits, most effective first.

  held: bytes of each device by what they are: verifier, drafter, optimizer,
  cache, batch.
  """
  remedies = {
    'verifier': 'split the verifier over more devices (the second axis of '
    'config.mesh), or take config.dtype=bfloat16',
    'drafter': 'split the drafter over more devices (the second axis of '
    'config.mesh)',
    'optimizer': 'split drafter and optimizer over more devices (the second '
    'axis of config.mesh), or train a smaller one (config.network)',
    'cache': 'lower config.batch, the largest of config.prompt_buckets or '
    'config.max_new_tokens, or use more devices',
    'batch': 'lower config.batch',
    'temporaries': 'lower config.batch, config.windows or config.tokens, or '
    'set config.vocab_block (train); lower config.batch, config.drafts, '
    'config.budget or config.prompt_buckets (decode, prefill)',
  }
  sizes = {**held, 'temporaries': outcome.peak - sum(held.values())}
  order = sorted(sizes, key=lambda name: -sizes[name])
  return [
    f'{name} ({sizes[name] / 2**30:.1f} GiB): {remedies[name]}'
    for name in order
    if sizes[name] > outcome.limit / 20
  ]


def _bytes(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])
