"""Names, shapes and identity of a transformer's params, whatever their file."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import ml_dtypes
import numpy as np

from specdiff_jax.checkpoints import placing
from specdiff_jax.checkpoints import stored
from specdiff_jax.core import errors
from specdiff_jax.models import networks

# Before the names of tensors that files hold and models do not need: tables of
# rotary frequencies, the copy of a tied head. Nothing reads them.
SPARE = 'unused.'

_DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
_NAMED = 30  # tensors that an error lists
_SAMPLES = 4096  # values of each tensor that the fingerprint reads
_LAYOUT_FIELDS = (
  'max_positions',
  'scan_layers',
  'attention',
)  # not what a model computes
# Fields that count even at their defaults. Others were added later, and do not
# change the identity of models that do without them.
_ALWAYS = ('rope_base', 'norm_eps', 'tied_head')


def gather(
  config: networks.Config,
  tensors: Iterable[tuple[str, str, Any]],
  dtype: Any,
  source: str,
  shardings: Callable[[Any], Any] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], str]:
  """Collects (our name, their name, tensor) into params and a fingerprint.

  Args:
    config: what decides names and shapes.
    tensors: arrays, or tensors in the form of `stored.Tensor`, of which one at
      a time is read; those named `SPARE` are left out.
    dtype: 'float32' or 'bfloat16', of the params.
    source: what errors call the model.
    shardings: from the tree of shapes to a tree of shardings, as
      `parallel.rules.shardings` gives them, or `placing.default`; each process
      then reads the rows that its devices hold, and the params are jax arrays.
      Without it they are numpy arrays.
    progress: called with (values read, values in all).

  Raises:
    InputError: where a tensor is missing, left over, there twice, or of
      another shape than `config` states.
  """
  kind = dtype_of(dtype)
  expected = networks.shapes(config)
  places = _places(expected, kind, shardings)
  total = sum(map(math.prod, expected.values()))
  flat, digests, done = {}, {}, 0
  for ours, _, tensor in checked(config, tensors, source):
    if ours.startswith(SPARE):
      continue
    tensor = stored.Tapped(stored.held(tensor), _stride(tensor.shape))
    if ours in places:
      flat[ours] = placing.place(tensor, kind, places[ours])
    else:
      flat[ours] = stored.read(tensor, kind)
    digests[ours] = _digest(tensor)
    done += math.prod(tensor.shape)
    if progress:
      progress(done, total)
  return nest(flat), _combine(config, digests)


def checked(
  config: networks.Config,
  tensors: Iterable[tuple[str, str, Any]],
  source: str,
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields the tensors, all in the form of `stored.Tensor`.

  Raises InputError where one has no place in a model of these sizes, is there
  twice, has another shape, or (in the end) is missing.
  """
  expected, seen = networks.shapes(config), set()
  tensors = iter(tensors)
  for ours, theirs, tensor in tensors:
    tensor = stored.of(tensor)
    if not ours.startswith(SPARE):
      if ours not in expected or ours in seen:
        more = [
          other
          for name, other, _ in tensors
          if name not in expected and not name.startswith(SPARE)
        ]
        raise _no_place(config, [theirs, *more], tuple(tensor.shape), source)
      if tuple(tensor.shape) != expected[ours]:
        raise errors.InputError(
          f'{source}: tensor {theirs!r} has shape {tuple(tensor.shape)}, but '
          f"the model's config asks for {expected[ours]}; weights and config "
          'belong to different models.'
        )
      seen.add(ours)
    yield ours, theirs, tensor
  missing = sorted(set(expected) - seen)
  if missing:
    raise errors.InputError(
      f'{source}: {len(missing)} of {len(expected)} tensors are missing: '
      f'{_listed(missing)} (by our names); the weights are incomplete, '
      'download them again.'
    )


def _no_place(config, names, shape, source) -> errors.InputError:
  """Returns the error for tensors that are left over, or there twice."""
  kind = type(config).__name__.removesuffix('Config')
  head = ' with a tied head' if getattr(config, 'tied_head', False) else ''
  more = f' Nor have {_listed(names[1:])}.' if names[1:] else ''
  return errors.InputError(
    f'{source}: tensor {names[0]!r} of shape {shape} has no place in a '
    f'{kind} of {config.layers} layers{head}; the weights belong to another '
    f'architecture, or to another config.{more}'
  )


def _listed(names: list[str]) -> str:
  """Returns names in a row; a model of another kind has hundreds."""
  rest = f', and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
  return ', '.join(names[:_NAMED]) + rest


def _places(expected, kind, shardings) -> dict[str, Any]:
  """Returns the sharding of each tensor by name; none without `shardings`."""
  if shardings is None:
    return {}
  tree = {n: jax.ShapeDtypeStruct(s, kind) for n, s in expected.items()}
  return dict(flatten(shardings(nest(tree))))


def dtype_of(dtype: Any):
  name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
  if name not in _DTYPES:
    raise errors.InputError(
      f'dtype={name!r} is not known; it is one of {", ".join(_DTYPES)}.'
    )
  return _DTYPES[name]


def fingerprint(config: networks.Config, params: dict[str, Any]) -> str:
  """Returns 16 hex digits that name a model, whatever file it came from.

  SHA-256 over the config and, of each tensor in the order of names, its shape
  and up to 4096 evenly strided values as float32: cheap at any size. Hand in
  the weights as they are stored, before a cast.
  """
  digests = {name: _digest(stored.of(x)) for name, x in flatten(params)}
  return _combine(config, digests)


def _stride(shape: tuple[int, ...]) -> int:
  return max(1, -(-math.prod(shape) // _SAMPLES))


def _digest(tensor: stored.Tensor) -> bytes:
  sample = tensor.sample(_stride(tensor.shape)).astype('<f4')
  head = json.dumps(list(tensor.shape)).encode()
  return hashlib.sha256(head + sample.tobytes()).digest()


def _combine(config: networks.Config, digests: dict[str, bytes]) -> str:
  fields = dataclasses.asdict(config)
  for field in dataclasses.fields(config):
    name, value = field.name, getattr(config, field.name)
    usual = name not in _ALWAYS and value == field.default
    if name in _LAYOUT_FIELDS or usual:
      del fields[name]
    elif field.type is float:
      fields[name] = float(value)
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
