"""What `inspect` tells, in words: a line for each fact of a model."""

from collections.abc import Iterator, Mapping
import re
from typing import Any

from specdiff_jax.core import printing
from specdiff_jax.tools.inspect import describe

_GIB = 2**30


def fit(
  path: str, mesh: Mapping[str, int], chip_gib: float, dtype: str
) -> dict[str, Any]:
  """Returns what each chip of a mesh holds, and whether it fits (if not 0)."""
  found = describe.per_chip(describe.sizes(path), mesh, dtype)
  told = {'axes': mesh, 'dtype': dtype, **found}
  if chip_gib:
    told |= {'chip_gib': chip_gib, 'fits': found['weights'] <= chip_gib * _GIB}
  return told


def lines(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields (what, its value in words) of what `describe` returns."""
  yield 'form', told['form']
  yield 'family', told['family']
  if 'network' in told:
    yield 'network', told['network']
  sizes = {k: v for k, v in told['config'].items() if v not in (None, 0, False)}
  yield 'config', ', '.join(f'{k}={v}' for k, v in sizes.items())
  yield 'parameters', f'{told["parameters"]:,}'
  for name in ('verifier', 'drafter'):
    if name in told:
      yield name, _line(told[name])
  if 'bytes' in told:
    yield (
      'stored',
      ', '.join(
        f'{kind} {printing.size(n)}' for kind, n in told['dtypes'].items()
      )
      + f'; {printing.size(told["bytes"])} in all',
    )
  if 'tokenizer' in told:
    yield 'tokenizer', _line(told['tokenizer'])
  if 'mesh' in told:
    yield 'each chip', _chip(told['mesh'])
    if whole := told['mesh']['not_split']:
      layers_alike = (re.sub(r'layer_\d+', 'layer_*', line) for line in whole)
      yield 'each chip, whole', '\n'.join(dict.fromkeys(layers_alike))
  if 'fault' in told:
    yield 'tensors', told['fault'] or 'as the config asks for'


def _line(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{k}: {v}' for k, v in value.items())
  return str(value)


def _chip(mesh: dict[str, Any]) -> str:
  axes = ', '.join(f'{axis}={size}' for axis, size in mesh['axes'].items())
  text = (
    f'{axes}: {printing.size(mesh["weights"])} of '
    f'{printing.size(mesh["weights_whole"])} in {mesh["dtype"]}'
  )
  if 'fits' in mesh:
    does = 'fits' if mesh['fits'] else 'does not fit'
    text += f', which {does} in {mesh["chip_gib"]:g} GiB'
  return text + (
    f'; the KV cache takes {printing.size(mesh["cache_per_token"])} for '
    'each token of a sequence (bfloat16, on all chips together)'
  )
