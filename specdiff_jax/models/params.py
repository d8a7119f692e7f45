"""Names, shapes and identity of a transformer's params, whatever their file."""

import dataclasses
import hashlib
import json
from typing import Any, Iterable, Iterator

import ml_dtypes
import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.models import config as config_lib

_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
_SAMPLES = 4096  # values of each tensor that the fingerprint reads
_LAYOUT_FIELDS = ('max_positions', 'scan_layers')  # not what a model computes


def shapes(config: config_lib.TransformerConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor, by its name joined with '.'."""
  c = config
  layer = {
      'attention_norm': (c.width,),
      'query': (c.heads * c.head_dim, c.width),
      'key': (c.kv_heads * c.head_dim, c.width),
      'value': (c.kv_heads * c.head_dim, c.width),
      'output': (c.width, c.heads * c.head_dim),
      'mlp_norm': (c.width,),
      'gate': (c.mlp_width, c.width),
      'up': (c.mlp_width, c.width),
      'down': (c.width, c.mlp_width),
  }
  table = {'embed': (c.vocab_size, c.width), 'final_norm': (c.width,)}
  if not c.tied_head:
    table['head'] = (c.vocab_size, c.width)
  for i in range(c.layers):
    table |= {f'layer_{i}.{name}': shape for name, shape in layer.items()}
  return table


def gather(
    config: config_lib.TransformerConfig,
    tensors: Iterable[tuple[str, str, np.ndarray]],
    dtype: Any,
    source: str,
) -> tuple[dict[str, Any], str]:
  """Collects (our name, their name, array) into params and a fingerprint.

  One tensor at a time is held beside the result. InputError where a tensor is
  missing, left over, there twice, or of another shape than `config` states.
  """
  kind = _dtype(dtype)
  expected = shapes(config)
  flat, digests = {}, {}
  for ours, theirs, array in tensors:
    if ours not in expected or ours in flat:
      raise errors.InputError(
          f'{source}: tensor {theirs!r} of shape {array.shape} has no place in '
          f'a Llama-type model of {config.layers} layers'
          f'{" with a tied head" if config.tied_head else ""}; the weights '
          'belong to another architecture, or to another config.'
      )
    if array.shape != expected[ours]:
      raise errors.InputError(
          f'{source}: tensor {theirs!r} has shape {array.shape}, but the '
          f"model's config asks for {expected[ours]}; weights and config "
          'belong to different models.'
      )
    digests[ours] = _digest(array)
    flat[ours] = np.ascontiguousarray(array.astype(kind, copy=False))
  missing = sorted(set(expected) - set(flat))
  if missing:
    raise errors.InputError(
        f'{source}: {len(missing)} of {len(expected)} tensors are missing: '
        f'{", ".join(missing[:3])}{", ..." if missing[3:] else ""} (by our '
        'names); the weights are incomplete, download them again.'
    )
  return nest(flat), _combine(config, digests)


def _dtype(dtype: Any):
  name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
  if name not in _DTYPES:
    raise errors.InputError(
        f'dtype={name!r} is not known; it is one of {", ".join(_DTYPES)}.'
    )
  return _DTYPES[name]


def fingerprint(
    config: config_lib.TransformerConfig, params: dict[str, Any]
) -> str:
  """Returns 16 hex digits that name a model, whatever file it came from.

  SHA-256 over the config and, of each tensor in the order of names, its shape
  and up to 4096 evenly strided values as float32: cheap at any size. Hand in
  the weights as they are stored, before a cast.
  """
  digests = {name: _digest(np.asarray(x)) for name, x in flatten(params)}
  return _combine(config, digests)


def _digest(array: np.ndarray) -> bytes:
  stride = max(1, -(-array.size // _SAMPLES))
  sample = array.reshape(-1)[::stride].astype('<f4')
  head = json.dumps(list(array.shape)).encode()
  return hashlib.sha256(head + sample.tobytes()).digest()


def _combine(
    config: config_lib.TransformerConfig, digests: dict[str, bytes]
) -> str:
  fields = dataclasses.asdict(config)
  for name in _LAYOUT_FIELDS:
    del fields[name]
  for name in ('rope_base', 'norm_eps'):
    fields[name] = float(fields[name])
  total = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
  for name in sorted(digests):
    total.update(name.encode() + b'\0' + digests[name])
  return total.hexdigest()[:16]


def flatten(
    params: dict[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields (name joined by '.', array) of a nested dict."""
  for key, value in params.items():
    if isinstance(value, dict):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def nest(flat: dict[str, Any]) -> dict[str, Any]:
  """Returns the nested dict of names joined by '.'; undoes `flatten`."""
  nested = {}
  for name, value in flat.items():
    *parents, last = name.split('.')
    place = nested
    for parent in parents:
      place = place.setdefault(parent, {})
      if not isinstance(place, dict):
        break
    if not isinstance(place, dict) or last in place:
      raise errors.InputError(
          f'Tensor {name!r} has the name of a group of tensors, or lies in one '
          'that is a tensor itself; the file was not written by this program.'
      )
    place[last] = value
  return nested
