"""LoRA adapters in the layout of PEFT, merged into the weights they adapt.

A low-rank adapter (Hu et al., 2021, arXiv:2106.09685) changes a weight W by
scale * B A, with A [r, in] and B [out, r]; scale is alpha / r, or alpha /
sqrt(r) where it is rank-stabilised (Kalajdzievski, 2023, arXiv:2312.03732).
The merged model is another model, with a fingerprint of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.formats import safetensors_io
from specdiff_jax.formats import stored

_KEY = re.compile(r'base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight')
_TENSORS = 'adapter_model.safetensors'
_PICKLE = 'adapter_model.bin'
# What would change more than these products, and the only values it may have.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    'use_dora': (None, False),
    'bias': (None, 'none'),
    'modules_to_save': (None, []),
    'lora_bias': (None, False),
    'trainable_token_indices': (None, [], {}),
    'layer_replication': (None, []),
    'megatron_config': (None,),
    'alora_invocation_tokens': (None, []),
    # Other starts (PiSSA, OLoRA, ...) also change the base's own weights.
    'init_lora_weights': (None, True, False, 'gaussian', 'eva', 'orthogonal'),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """What is added to one weight: scale * B A."""

  up: np.ndarray  # B [out, r], float32
  down: np.ndarray  # A [r, in], float32
  scale: float

  def added(self, row: int, rows: np.ndarray) -> np.ndarray:
    """Returns rows `row`, row + 1, ... of the weight with their part of B A."""
    return rows + self.scale * (self.up[row : row + len(rows)] @ self.down)


def read(path: str, names: Mapping[str, str]) -> dict[str, Update]:
  """Reads an adapter's directory; returns our name -> its update.

  Args:
    path: with adapter_config.json and adapter_model.safetensors.
    names: our name -> Hugging Face's, of every weight of the base model.

  Raises:
    InputError: for another kind of adapter, or one of another model.
  """
  file = os.path.join(path, 'adapter_config.json')
  settings = files.read_json(file)
  _check_supported(file, settings)
  tensors = safetensors_io.tensors(_weights(path))
  ours = {theirs: name for name, theirs in names.items()}
  pairs: dict[str, dict[str, stored.InFile]] = {}
  for name, tensor in tensors.items():
    found = _KEY.fullmatch(name)
    weight = ours.get(f'{found[1]}.weight') if found else None
    if weight is None or tensor.dtype is None or len(tensor.shape) != 2:
      raise errors.InputError(
          f'{path}: tensor {name!r} of shape {tensor.shape} ({tensor.kind}) '
          'adapts no matrix of this model; the adapter belongs to another '
          'model, or is not a plain LoRA.'
      )
    pairs.setdefault(weight, {})[found[2]] = tensor
  if not pairs:
    raise errors.InputError(
        f'{path}: there are no tensors in {_TENSORS}; save the adapter again.'
    )
  return {
      name: _update(path, file, settings, names[name], pair)
      for name, pair in pairs.items()
  }


def merged(
    tensors: Iterable[tuple[str, str, stored.Tensor]],
    updates: Mapping[str, Update],
    path: str,
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, their name, tensor) with the updates added.

  Raises InputError where an update is of another shape than its weight.
  """
  for ours, theirs, tensor in tensors:
    update = updates.get(ours)
    if update is not None:
      tensor = stored.of(tensor)
      shape = (len(update.up), update.down.shape[1])
      if shape != tuple(tensor.shape):
        raise errors.InputError(
            f'{path}: the adapter changes {theirs!r} as a matrix of shape '
            f'{shape}, but this model has {tuple(tensor.shape)}; it belongs '
            'to another model.'
        )
      tensor = stored.Derived(tensor, update.added)
    yield ours, theirs, tensor


def _check_supported(file: str, settings: dict[str, Any]) -> None:
  kind = settings.get('peft_type')
  if kind != 'LORA':
    raise errors.InputError(
        f'{file}: peft_type is {kind!r}; only LORA is known here. Merge the '
        'adapter into its model with peft, and give the merged directory.'
    )
  for key, good in _REFUSED.items():
    if settings.get(key) not in good:
      raise errors.InputError(
          f'{file}: {key} is {settings[key]!r}, which is more than plain LoRA '
          'and is not supported. Merge the adapter into its model with peft '
          '(merge_and_unload), and give the merged directory.'
      )


def _weights(path: str) -> str:
  file = os.path.join(path, _TENSORS)
  if not os.path.exists(file) and os.path.exists(os.path.join(path, _PICKLE)):
    raise errors.InputError(
        f'{path}: the adapter is there only as {_PICKLE}, a pickle, which can '
        'run any code and is never read; save it as safetensors.'
    )
  return file


def _update(path, file, settings, weight: str, pair) -> Update:
  """Returns B, A and the scale of one weight, checked."""
  if set(pair) != {'A', 'B'}:
    (there,) = pair
    raise errors.InputError(
        f'{path}: of the weight {weight!r} there is only lora_{there}; the '
        'adapter is incomplete, save it again.'
    )
  up, down = (stored.read(pair[part], np.float32) for part in 'BA')
  module = weight.removesuffix('.weight')
  rank = _setting(file, settings, 'r', 'rank_pattern', module)
  alpha = _setting(file, settings, 'lora_alpha', 'alpha_pattern', module)
  if not up.shape[1] == down.shape[0] == rank or rank < 1:
    raise errors.InputError(
        f'{path}: the adapter of {weight!r} has shapes {up.shape} and '
        f'{down.shape}, which is not of the rank {rank} that its config '
        'states; the files belong to different adapters.'
    )
  stable = settings.get('use_rslora')
  return Update(up, down, alpha / (math.sqrt(rank) if stable else rank))


def _setting(file, settings, key: str, pattern_key: str, module: str):
  """Returns a number that may be given otherwise for some modules."""
  value = settings.get(key)
  for pattern, other in (settings.get(pattern_key) or {}).items():
    try:
      if re.fullmatch(rf'(.*\.)?({pattern})', module):
        value = other
        break
    except re.error as e:
      raise errors.InputError(
          f'{file}: {pattern_key} has {pattern!r}, which is not a regular '
          f'expression ({e}); correct it.'
      ) from e
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not number or not math.isfinite(value):
    raise errors.InputError(
        f'{file}: {key} is {value!r}, where a number is expected; save the '
        'adapter again.'
    )
  return value
