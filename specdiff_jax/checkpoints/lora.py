"""LoRA adapters in the layout of PEFT, merged into the weights they adapt.

A low-rank adapter (Hu et al., 2021, arXiv:2106.09685) changes a weight W by
scale * B A, with A [r, in] and B [out, r]; scale is alpha / r, or alpha /
sqrt(r) where it is rank-stabilised (Kalajdzievski, 2023, arXiv:2312.03732).
The merged model is another model, with a fingerprint of its own.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.models import networks

_KEY = re.compile(
  r'(?s)(?:base_model\.model\.)?(.*?)'
  r'(?:\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|base_layer))?'
  r'(?:\.default)?(?:\.weight)?'
)
_WRAPPED = re.compile(r'(?:model\.|language_model\.)+')
_PICTURES = ('vision_tower.', 'multi_modal_projector.')
_TENSORS = 'adapter_model.safetensors'
_PICKLE = 'adapter_model.bin'
_ADVICE = (
  'Merge the adapter into its model with peft (merge_and_unload), and give '
  'the merged directory.'
)
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
_MOST_NAMES = 4096  # of modules that have a number of their own
_MOST_PATTERNS = 8  # that are more than names
_MOST_NAME = 500  # letters of a tensor's
_MOST_NUMBER = 1e9
_NAME = re.compile(r'[\w.]+')
# Of regular expressions those are read that cannot take long: letters, dots and
# digits, classes of them, alternatives, groups of names that are not repeated.
_LETTER = r'(?:[\w-]|\\[.dw])'
_ONCE = '(?![*+?{])'
_GROUP = rf'\((?:\?:)?{_LETTER}*(?:\|{_LETTER}*)*\){_ONCE}'
_SAFE = re.compile(
  rf'(?:{_LETTER}|\.|\[[\w-]+\]|\||\^|\$|{_GROUP}|[*+?]{_ONCE})*'
)
_MOST_LOOPS, _MOST_GROUPS, _MOST_LETTERS = 2, 3, 500


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


def read(path: str, config: networks.Config) -> Adapter:
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
  targets = _Targets(file, settings)
  ranks = _Numbers(file, settings, 'r', 'rank_pattern')
  alphas = _Numbers(file, settings, 'lora_alpha', 'alpha_pattern')
  names = hf_names.names(config)
  ours = {theirs: name for name, theirs in names.items()}
  pairs: dict[str, dict[str, stored.InFile]] = {}
  modules, copies = {}, {}
  for name, tensor in safetensors_io.tensors(_weights(path)).items():
    module, part = _KEY.fullmatch(name).groups()
    usual = (
      _WRAPPED.sub('', module, count=1) if _WRAPPED.match(module) else (module)
    )
    if usual.startswith(_PICTURES):
      continue  # text never goes through it
    weight = _weight(ours, usual) if len(name) <= _MOST_NAME else None
    if weight is None and usual == 'lm_head' and config.tied_head:
      weight = 'embed'  # of the head there is no other
      if part in (None, 'base_layer'):
        copies[weight] = tensor
        continue
    _check_part(path, config, name, tensor, weight, part)
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


def _check_part(path, config, name, tensor, weight, part) -> None:
  """Raises InputError unless a tensor is one of a plain LoRA of this model."""
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
      f'model both are one. {_ADVICE}'
    )
  good = tensor.dtype is not None and len(tensor.shape) == 2
  if not good or not copied and embedding != (weight == 'embed'):
    raise errors.InputError(
      f'{path}: {told} ({tensor.kind}) adapts no matrix in the way of plain '
      f'LoRA. {_ADVICE}'
    )


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
        f'{tuple(tensor.shape)}). {_ADVICE}'
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
      f'here. {_ADVICE}'
    )
  for key, value in settings.items():
    if key == 'init_lora_weights':
      good = value in _STARTS
    elif key == 'bias':
      good = value in (None, 'none')
    else:
      good = key in _PLAIN or value in (None, False, 0, [], {}, '')
    if not good:
      raise errors.InputError(
        f'{file}: {printing.short(key)[1:-1]} is {printing.short(value)}, '
        f'which is more than plain LoRA and is not supported. {_ADVICE}'
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


class _Numbers:
  """A number of each module: one for all, and others by patterns of names.

  Of the patterns that mean a module the first counts, as in peft.
  """

  def __init__(self, file: str, settings: Mapping, key: str, others_key: str):
    self._others = settings.get(others_key) or {}
    if not isinstance(self._others, dict):
      raise _unexpected(file, others_key, self._others, 'an object')
    self._file, self._key, self._usual = file, key, settings.get(key)
    self._patterns = _Patterns(file, others_key, self._others)

  def of(self, module: str) -> int | float:
    pattern = self._patterns.first(module)
    value = self._usual if pattern is None else self._others[pattern]
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not -_MOST_NUMBER < value < _MOST_NUMBER:
      raise _unexpected(self._file, self._key, value, 'a number')
    return value


class _Patterns:
  """Patterns of modules' names, each checked and compiled once.

  A pattern means a module whose name ends in it, behind a dot or in whole.

  Raises InputError for too many, or one that might take long.
  """

  def __init__(self, file: str, key: str, patterns: Collection[str]):
    self._names: dict[int, list[tuple[int, str]]] = {}  # by length
    self._others = []
    for i, pattern in enumerate(patterns):
      if _NAME.fullmatch(pattern):
        self._names.setdefault(len(pattern), []).append((i, pattern))
      else:
        self._others.append((i, pattern))
    if max(len(patterns) - _MOST_NAMES, len(self._others) - _MOST_PATTERNS) > 0:
      raise errors.InputError(
        f'{file}: {key} has {len(patterns)} patterns, of which '
        f'{len(self._others)} are more than names of modules; {_MOST_NAMES} '
        f'and {_MOST_PATTERNS} are read at most. {_ADVICE}'
      )
    self._others = [(i, p, _compiled(p)) for i, p in self._others]
    for _, pattern, read in self._others:
      if read is None:
        raise errors.InputError(
          f'{file}: {key} has {printing.short(pattern)}, which is no name '
          'and not a regular expression that is read here: names, dots, '
          f'digits, alternatives, two repetitions at most. {_ADVICE}'
        )

  def first(self, module: str) -> str | None:
    """Returns the first pattern that means a module."""
    starts = _starts(module)
    found = [
      (i, pattern)
      for i, pattern, read in self._others
      if any(read.fullmatch(module, start) for start in starts)
    ]
    for start in starts:  # a dot in a name stands for any character
      for i, pattern in self._names.get(len(module) - start, ()):
        if all(
          one in ('.', other) for one, other in zip(pattern, module[start:])
        ):
          found.append((i, pattern))
          break
    return min(found)[1] if found else None


def _starts(module: str) -> list[int]:
  """Returns where a module's name and those behind its dots begin."""
  return [0, *(i + 1 for i, letter in enumerate(module) if letter == '.')]


def _compiled(pattern: str) -> re.Pattern[str] | None:
  """Returns a regular expression, or None if it could take long or is none."""
  loops = len(re.findall(r'[*+]|(?<!\()\?', pattern))
  short = len(pattern) <= _MOST_LETTERS and loops <= _MOST_LOOPS
  if short and pattern.count('(') <= _MOST_GROUPS and _SAFE.fullmatch(pattern):
    with contextlib.suppress(re.error):
      return re.compile(f'(?:{pattern})')
  return None


class _Targets:
  """Which modules an adapter's config says that it adapts, as peft reads it.

  peft leaves the tensors of all others aside. Not known, and so taken for all,
  are the modules where target_modules are absent (then they depend on peft's
  version) or a regular expression that is not read here.
  """

  def __init__(self, file: str, settings: Mapping[str, Any]):
    self._file = file
    self._told = {
      key: self._texts(settings, key)
      for key in ('target_modules', 'exclude_modules', 'layers_pattern')
    }
    layers = settings.get('layers_to_transform')
    layers = [layers] if type(layers) is int else layers
    if not isinstance(layers, list | None) or not all(
      type(layer) is int for layer in layers or ()
    ):
      raise _unexpected(file, 'layers_to_transform', layers, 'a list of ints')
    self._layers = frozenset(layers or ())
    above = self._told['layers_pattern'] or ()
    above = [above] if isinstance(above, str) else sorted(above)
    name = '|'.join(above) or r'[^.]*'
    good = all(re.fullmatch(r'\w+', part) for part in above)
    if not good or len(name) > _MOST_LETTERS:
      raise _unexpected(file, 'layers_pattern', above, "a name like 'layers'")
    self._layer = re.compile(rf'(?:^|.*?\.)(?:{name})\.(\d+)\.')

  def _texts(self, settings, key: str) -> str | frozenset[str] | None:
    value = settings.get(key)
    if isinstance(value, list) and all(isinstance(x, str) for x in value):
      return frozenset(value)
    if not isinstance(value, str | None):
      raise _unexpected(self._file, key, value, 'a list of names')
    return value

  def check(self, path: str, name: str, module: str) -> None:
    """Raises InputError for a tensor's module that peft would leave aside."""
    if self._means('exclude_modules', module):
      why = 'exclude_modules of its config names it'
    elif self._means('target_modules', module) is False:
      why = 'target_modules of its config does not name it'
    elif self._layers and not self._is_in_layers(module):
      why = 'it is not of the layers_to_transform of its config'
    else:
      return
    raise errors.InputError(
      f'{path}: there is the tensor {printing.short(name)}, but {why}, so '
      'peft would leave it out. Correct the config, or take the tensors '
      'away.'
    )

  def _is_in_layers(self, module: str) -> bool:
    found = self._layer.match(module)
    return bool(found) and int(found[1]) in self._layers

  def _means(self, key: str, module: str) -> bool | None:
    """Returns whether a setting means a module; None if it is not known."""
    told = self._told[key]
    if not told and key == 'exclude_modules':
      return False
    if told is None:
      return None
    if not isinstance(told, str):
      return any(module[start:] in told for start in _starts(module))
    if key == 'target_modules' and told.lower() == 'all-linear':
      return not module.endswith(('embed_tokens', 'wte', 'wpe', 'lm_head'))
    read = _compiled(told)
    return None if read is None else bool(read.fullmatch(module))


def _unexpected(file: str, key: str, value: Any, wanted: str):
  return errors.InputError(
    f'{file}: {key} is {printing.short(value)}, where {wanted} is expected; '
    'save the adapter again.'
  )
