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

from specdiff_jax.checkpoints import lora_modules
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

_KEY = re.compile(
  r'(?s)(?:base_model\.model\.)?(.*?)'
  r'(?:\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|base_layer))?'
  r'(?:\.default)?(?:\.weight)?'
)
_WRAPPED = re.compile(r'^(?:model\.|language_model\.)+')
_PICTURES = ('vision_tower.', 'multi_modal_projector.')
_TENSORS = 'adapter_model.safetensors'
_PICKLE = 'adapter_model.bin'
# Starts that leave the base's own weights; others (PiSSA, OLoRA) change them.
_STARTS = (None, True, False, 'gaussian', 'eva', 'orthogonal')
# What is read here, or only tells how an adapter was trained. Other keys with a
# value may change more than these products, and are refused by name.
_PLAIN = frozenset({
    'peft_type', 'peft_version', 'r', 'lora_alpha', 'rank_pattern',
    'alpha_pattern', 'use_rslora', 'init_lora_weights', 'auto_mapping',
    'base_model_name_or_path', 'revision', 'task_type', 'inference_mode',
    'target_modules', 'exclude_modules', 'layers_to_transform',
    'layers_pattern', 'lora_dropout', 'fan_in_fan_out', 'megatron_core',
    'loftq_config', 'eva_config', 'corda_config', 'lora_ga_config',
    'qalora_group_size', 'runtime_config', 'ensure_weight_tying', 'bias',
})  # fmt: skip
_MOST_NAME = 500  # letters of a tensor's


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """What is added to one weight: scale * B A."""

  up: np.ndarray  # B [out, r], float32
  down: np.ndarray  # A [r, in], float32
  scale: float

  def added(self, row: int, rows: np.ndarray) -> np.ndarray:
    """Returns rows `row`, row + 1, ... of the weight with their part of B A."""
    return rows + self.scale * (self.up[row : row + len(rows)] @ self.down)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
  """What changes a model: by our names, updates and copies of its weights.

  peft stores a copy of an embedding or head that it adapts, which has to be
  that of the model at hand.
  """

  path: str
  updates: Mapping[str, Update]
  copies: Mapping[str, stored.InFile]


def read(path: str, config: hf_names.Config) -> Adapter:
  """Reads an adapter's directory.

  Args:
    path: with adapter_config.json and adapter_model.safetensors.
    config: of the base model.

  Raises:
    InputError: for another kind of adapter, or one of another model.
  """
  file = os.path.join(path, 'adapter_config.json')
  settings = files.read_json(file)
  _check_supported(file, settings)
  targets = lora_modules.Targets(file, settings)
  ranks = lora_modules.Numbers(file, settings, 'r', 'rank_pattern')
  alphas = lora_modules.Numbers(file, settings, 'lora_alpha', 'alpha_pattern')
  names = hf_names.names(config)
  ours = {theirs: name for name, theirs in names.items()}
  pairs: dict[str, dict[str, stored.InFile]] = {}
  modules, copies = {}, {}
  for name, tensor in safetensors_io.tensors(_weights(path)).items():
    found = _KEY.fullmatch(name)
    assert found  # it matches any text
    module, part = found.groups()
    usual = _WRAPPED.sub('', module)
    if usual.startswith(_PICTURES):
      continue  # text never goes through it
    weight = _weight(ours, usual) if len(name) <= _MOST_NAME else None
    if weight is None and usual == 'lm_head' and config.tied_head:
      weight = 'embed'  # of the head there is no other
      if part in (None, 'base_layer'):
        copies[weight] = tensor
        continue
    weight = _checked(path, config, name, tensor, weight, part)
    if part in (None, 'base_layer'):
      copies[weight] = tensor
      continue
    targets.check(path, name, module)
    pair, side = pairs.setdefault(weight, {}), part[-1]
    if side in pair:
      raise errors.InputError(
        f'{path}: there are two tensors of lora_{side} for {names[weight]!r} '
        f'({printing.short(name)} is one); save the adapter again.'
      )
    pair[side], modules[weight] = tensor, module
  if not pairs:
    raise errors.InputError(
      f'{path}: there are no tensors of a LoRA in {_TENSORS}; save the '
      'adapter again.'
    )
  updates = {
      name: _update(
          path, names[name], pair, ranks.of(modules[name]),
          alphas.of(modules[name]), bool(settings.get('use_rslora')),
          turned=name == 'embed',
      )
      for name, pair in pairs.items()
  }  # fmt: skip
  return Adapter(path, updates, copies)


def _weight(ours: Mapping[str, str], module: str) -> str | None:
  """Returns our name of a module's weight, whatever it is wrapped in."""
  for prefix in ('', 'model.', 'transformer.'):
    if f'{prefix}{module}.weight' in ours:
      return ours[f'{prefix}{module}.weight']
  return None


def _checked(path, config, name, tensor, weight: str | None, part) -> str:
  """Returns the weight; InputError unless it is a plain LoRA's of this model."""
  told = f'tensor {printing.short(name)} of shape {tensor.shape}'
  if weight is None:
    raise errors.InputError(
      f'{path}: {told} ({tensor.kind}) adapts no matrix of this model; the '
      'adapter belongs to another model, or is not a plain LoRA.'
    )
  embedding = part is not None and part.startswith('lora_embedding')
  copied = part in (None, 'base_layer')
  if not copied and config.tied_head and weight in ('embed', 'head'):
    raise errors.InputError(
      f'{path}: {told} adapts the embedding or the head alone, but in this '
      f'model both are one. {lora_modules.ADVICE}'
    )
  good = tensor.dtype is not None and len(tensor.shape) == 2
  if not good or not copied and embedding != (weight == 'embed'):
    raise errors.InputError(
      f'{path}: {told} ({tensor.kind}) adapts no matrix in the way of plain '
      f'LoRA. {lora_modules.ADVICE}'
    )
  return weight


def merged(
  tensors: Iterable[tuple[str, str, stored.Tensor]], adapter: Adapter
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, their name, tensor) with the updates added.

  Raises InputError where an update is of another shape than its weight, or a
  copy has other values.
  """
  for ours, theirs, tensor in tensors:
    copy, update = adapter.copies.get(ours), adapter.updates.get(ours)
    if copy is not None and not stored.equal(copy, stored.of(tensor)):
      raise errors.InputError(
        f'{adapter.path}: the adapter has a {theirs!r} of its own, which is '
        f'not that of this model (shapes {copy.shape} and '
        f'{tuple(tensor.shape)}). {lora_modules.ADVICE}'
      )
    if update is not None:
      tensor = stored.of(tensor)
      shape = (len(update.up), update.down.shape[1])
      if shape != tuple(tensor.shape):
        raise errors.InputError(
          f'{adapter.path}: the adapter changes {theirs!r} as a matrix of '
          f'shape {shape}, but this model has {tuple(tensor.shape)}; it '
          'belongs to another model.'
        )
      tensor = stored.Derived(tensor, update.added)
    yield ours, theirs, tensor


def _check_supported(file: str, settings: dict[str, Any]) -> None:
  kind = settings.get('peft_type')
  if kind != 'LORA':
    raise errors.InputError(
      f'{file}: peft_type is {printing.short(kind)}; only LORA is known '
      f'here. {lora_modules.ADVICE}'
    )
  for key, value in settings.items():
    if key == 'init_lora_weights':
      good = value in _STARTS
    elif key == 'bias':
      good = value in (None, 'none')
    elif key == 'use_rslora':
      good = value in (None, True, False)
    else:
      good = key in _PLAIN or value in (None, False, 0, [], {}, '')
    if not good:
      raise errors.InputError(
        f'{file}: {printing.short(key)[1:-1]} is {printing.short(value)}, '
        'which is more than plain LoRA and is not supported. '
        f'{lora_modules.ADVICE}'
      )


def _weights(path: str) -> str:
  file = os.path.join(path, _TENSORS)
  if not os.path.exists(file) and os.path.exists(os.path.join(path, _PICKLE)):
    raise errors.InputError(
      f'{path}: the adapter is there only as {_PICKLE}, a pickle, which can '
      'run any code and is never read; save it as safetensors.'
    )
  return file


def _update(path, weight, pair, rank, alpha, by_root, turned) -> Update:
  """Returns B, A and the scale of one weight, checked.

  `by_root`: its scale is rank-stabilised. `turned`: of an embedding, whose
  weight is [tokens, width] where that of a matrix would be [width, tokens].
  """
  if set(pair) != {'A', 'B'}:
    (there,) = pair
    raise errors.InputError(
      f'{path}: of the weight {weight!r} there is only lora_{there}; the '
      'adapter is incomplete, save it again.'
    )
  up, down = (stored.read(pair[part], np.float32) for part in 'BA')
  if not up.shape[1] == down.shape[0] == rank or rank < 1:
    raise errors.InputError(
      f'{path}: the adapter of {weight!r} has shapes {up.shape} and '
      f'{down.shape}, which is not of the rank {rank} that its config '
      'states; the files belong to different adapters.'
    )
  scale = alpha / (math.sqrt(rank) if by_root else rank)
  return Update(down.T, up.T, scale) if turned else Update(up, down, scale)
