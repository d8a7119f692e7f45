"""Trained drafters on disk: safetensors with the facts that identify them."""

from collections.abc import Mapping
import dataclasses
import json
import os
import typing
from typing import Any, ClassVar, Protocol

import jax
import ml_dtypes
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.data import overlap
from specdiff_jax.models import config as config_lib

FORMAT = 'specdiff_jax drafter 1'
TRAINED_ON = 'trained_on'  # metadata: the prompts, as `overlap.packed` has them


class Config(Protocol):
  """The sizes of a drafter of some family: a frozen dataclass."""

  kind: ClassVar[str]  # as `registry.kinds` has it
  may_be_zero: ClassVar[tuple[str, ...]]  # sizes that are 0 in some drafters
  __dataclass_fields__: ClassVar[dict[str, Any]]

  @property
  def layers(self) -> int: ...
  @property
  def features(self) -> tuple[int, ...]: ...  # verifier layers that it reads
  @property
  def vocab(self) -> int: ...  # tokens that it can draft
  @property
  def verifier(self) -> config_lib.TransformerConfig: ...

  def shapes(self) -> Any:
    """Returns the tree of trained parameters as shapes."""
    ...


def save(
  path: str,
  config: Config,
  params: dict[str, Any],
  vocab: np.ndarray,
  verifier: weights.Checkpoint,
  facts: Mapping[str, Any],
  int8: bool = False,
) -> None:
  """Writes a drafter in bfloat16; `facts` say where it comes from.

  With `int8` its matrices take half of that: each row is rounded to 255 levels,
  and what drafts is the rounded drafter.

  Example: save('drafter.safetensors', config, params, vocab, checkpoint, {})
  """
  small = jax.tree.map(_rounded if int8 else _narrow, params)
  metadata = {name: str(value) for name, value in facts.items()} | {
    'format': FORMAT,
    'kind': config.kind,
    'verifier': verifier.fingerprint,
    'vocab_size': str(verifier.config.vocab_size),
    'config': json.dumps(dataclasses.asdict(config)),
  }
  tensors = {'network': small, 'vocab': np.asarray(vocab, np.int32)}
  safetensors_io.save(path, tensors, metadata)


def _narrow(x: Any) -> np.ndarray:
  return np.asarray(x).astype(ml_dtypes.bfloat16)


def _rounded(x: Any) -> Any:
  """Returns a matrix as what `is_rounded` says; anything else in bfloat16."""
  if x.ndim < 2:
    return _narrow(x)
  x = np.asarray(x, np.float32)
  scale = np.abs(x).max(-1) / 127
  values = np.round(x / np.where(scale > 0, scale, 1)[..., None])
  return {'int8': values.astype(np.int8), 'scale': scale}


def is_rounded(x: Any) -> bool:
  """Whether this stands for a matrix: int8 [.., n], times scale [..]."""
  names = {'int8', 'scale'}
  return (
    isinstance(x, dict)
    and x.keys() == names
    and not any(isinstance(part, dict) for part in x.values())
  )


def widened(path: str, tensors: dict[str, Any]) -> dict[str, Any]:
  """Returns the tensors of a file with rounded matrices in bfloat16."""

  def widen(x):
    if not is_rounded(x):
      return x
    values, scale = x['int8'], x['scale']
    if values.dtype != np.int8 or scale.shape != values.shape[:-1]:
      raise errors.InputError(
        f'{path}: a tensor has int8 values {values.shape} of dtype '
        f'{values.dtype} and scales {scale.shape}, which do not belong to '
        'another. The file is damaged; download or train it again.'
      )
    return _narrow(values * scale[..., None].astype(np.float32))

  return jax.tree.map(widen, tensors, is_leaf=is_rounded)


def is_one(path: str) -> bool:
  """Whether a path is a drafter of this project, by its metadata alone."""
  if not path.endswith('.safetensors') or not os.path.isfile(path):
    return False
  return safetensors_io.metadata(path).get('format') == FORMAT


def trained_on(path: str) -> frozenset[str]:
  """Returns hashes of the prompts that a drafter was trained on.

  Those of `prompts.text_hash`; none where a file does not say.
  """
  told = safetensors_io.metadata(path).get(TRAINED_ON, '')
  return overlap.unpacked(told)


def kind(path: str) -> str:
  """Returns the kind of network in a file, by its metadata alone."""
  return kind_of(safetensors_io.metadata(path))


def _told(metadata: Mapping[str, str], key: str) -> str:
  return str(metadata.get(key))[:40]


def kind_of(metadata: Mapping[str, str]) -> str:
  """Returns the kind of network that a file's metadata say."""
  return metadata.get('kind', 'diffusion')  # before there were others


def load(
  path: str, verifier: weights.Checkpoint | None, family: type[Config]
) -> tuple[Config, dict[str, Any], np.ndarray]:
  """Returns config, params and draft vocabulary of this verifier's drafter.

  Without a verifier, that of any.

  Raises InputError if the file is damaged, holds a drafter of another family,
  or belongs to another verifier: its drafts would still be safe, but hardly
  ever accepted.
  """
  tensors, metadata = safetensors_io.load(path)
  if metadata.get('format') != FORMAT:
    raise errors.InputError(
      f'{path}: not a drafter of this project (its format is '
      f'{printing.short(metadata.get("format"))}, not {FORMAT!r}). Give a '
      'file that `specdiff distill` wrote.'
    )
  found = kind_of(metadata)
  if found != family.kind:
    raise errors.InputError(
      f'{path}: this is a drafter of the kind {printing.short(found)}, but '
      f'one of the kind {family.kind!r} is needed here. Give another file '
      '(config.drafters has one for each system), or choose the system that '
      'this drafter was made for; to train it further, or to refresh its texts, '
      f'give config.network.kind={printing.short(found)}.'
    )
  if verifier:
    _check_verifier(path, metadata, verifier)
  config = sizes(path, metadata.get('config', ''), family)
  tensors = widened(path, tensors)
  check_shapes(path, config, tensors)
  _check_values(path, tensors)
  _check_vocab(path, tensors['vocab'], config.verifier.vocab_size)
  return config, tensors['network'], tensors['vocab']


def _check_verifier(
  path: str, metadata: Mapping[str, str], verifier: weights.Checkpoint
) -> None:
  """Raises InputError where a file is another verifier's."""
  size = verifier.config.vocab_size
  if metadata.get('vocab_size') != str(size):
    raise errors.InputError(
      f'{path}: this drafter is for a vocabulary of '
      f'{_told(metadata, "vocab_size")} tokens, but the verifier '
      f'{verifier.source} has {size}. Use the drafter of this verifier, or '
      'train one with `specdiff distill`.'
    )
  if metadata.get('verifier') != verifier.fingerprint:
    raise errors.InputError(
      f'{path}: this drafter was trained for the verifier with the '
      f'fingerprint {_told(metadata, "verifier")}, but {verifier.source} has '
      f'{verifier.fingerprint}. Use the drafter of this verifier, or train '
      'one with `specdiff distill`.'
    )


def fields(path: str, text: str, family: type[Config]) -> dict[str, Any]:
  """Returns the sizes in a drafter's metadata, bounded, as JSON has them.

  Raises InputError where they are no numbers, or ask for more work than any
  drafter does.
  """
  lists = {
    field.name
    for field in dataclasses.fields(family)
    if typing.get_origin(field.type) is tuple
  }
  zero = lists.union(family.may_be_zero)
  try:
    found = files.parse_json(text)
    if not isinstance(found, dict):
      raise TypeError('they are no object')
    verifier = _verifier(found['verifier'])
    for name, value in found.items():
      if name == 'verifier':
        continue
      if isinstance(value, list) != (name in lists):
        raise TypeError(f'{name} is {printing.short(value)}')
      for number in value if isinstance(value, list) else [value]:
        config_lib.check_type('config', name, int, number, name in zero)
      if isinstance(value, list) and len(value) > config_lib.MOST_LAYERS:
        raise TypeError(f'{name} has {len(value)} items')
    if found.get('layers', 1) > verifier.layers:
      raise TypeError('it has more layers than its verifier')
  except (KeyError, TypeError, ValueError) as error:
    raise errors.InputError(
      f'{path}: the sizes in its metadata cannot be read ({error}). It was '
      'written by another version or is damaged; download it or train it '
      'again, or take that version.'
    ) from error
  return found


def _verifier(sizes: Any) -> config_lib.TransformerConfig:
  try:
    return config_lib.TransformerConfig(**sizes)
  except (TypeError, errors.InputError) as error:
    raise TypeError(f'verifier: {str(error).rstrip(".")}') from error


def sizes(path: str, text: str, family: type[Config]) -> Config:
  """Returns the sizes in a drafter's metadata; InputError as `fields`."""
  found = fields(path, text, family)
  for name, value in found.items():
    found[name] = tuple(value) if isinstance(value, list) else value
  found['verifier'] = config_lib.TransformerConfig(**found['verifier'])
  try:
    return family(**found)
  except (TypeError, errors.InputError) as error:  # of another version
    raise errors.InputError(
      f'{path}: the sizes in its metadata cannot be read ({error}). It was '
      'written by another version; train it again, or take that version.'
    ) from error


def check_shapes(path: str, config, tensors: dict[str, Any]) -> None:
  """Raises InputError where tensors are not those that the sizes ask for."""
  if config.layers > len(
    list(params_lib.flatten(tensors))
  ):  # before it is built
    raise errors.InputError(
      f'{path}: its config asks for {config.layers} layers, of which it does not '
      'have the tensors. The file is damaged or was put together wrongly; '
      'download or train it again.'
    )
  network = config.shapes()
  expected = {
    name: tuple(leaf.shape)
    for name, leaf in params_lib.flatten({'network': network})
  } | {'vocab': (config.vocab,)}
  found = {name: leaf.shape for name, leaf in params_lib.flatten(tensors)}
  for name in sorted(expected | found):
    if expected.get(name) != found.get(name):
      raise errors.InputError(
        f'{path}: tensor {printing.short(name)} has shape '
        f'{found.get(name, "(missing)")}, but its config asks for '
        f'{expected.get(name, "(none)")}. The file is damaged or was put '
        'together wrongly; download or train it again.'
      )


def _check_values(path: str, tensors: dict[str, Any]) -> None:
  """Raises InputError on NaN: drafts would be garbage, and nobody be told."""
  for name, leaf in params_lib.flatten(tensors):
    if not np.isfinite(leaf).all():
      raise errors.InputError(
        f'{path}: tensor {printing.short(name)} of the drafter holds a NaN '
        'or an infinity. The file is damaged, or its training diverged; '
        'download or train it again.'
      )


def _check_vocab(path: str, vocab: np.ndarray, size: int) -> None:
  good = vocab.dtype.kind == 'i' and vocab.size
  if not good or vocab.min() < 0 or vocab.max() >= size:
    raise errors.InputError(
      f"{path}: tensor 'vocab' holds ids outside 0 to {size - 1}. The file "
      'is damaged; download or train it again.'
    )
