"""Models written to disk: for `transformers`, or in our own form.

Tensors stream from file to file. A directory appears whole, under its name, or
not at all.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import os
import shutil
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import native
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks

Progress = Callable[[int, int], None]
# (source, folder, dtype or None, progress) -> what was written
Writer = Callable[..., dict[str, Any]]

LARGEST = 5 * 10**9  # bytes of one file of tensors
DTYPES = {
  'float32': safetensors_io.DTYPES['F32'],
  'bfloat16': safetensors_io.DTYPES['BF16'],
  'float16': safetensors_io.DTYPES['F16'],
}
# What else belongs to a model, and is kept: other names are not copied, since
# nobody can tell what they are.
_BESIDE = frozenset({
    'config.json', 'generation_config.json', 'preprocessor_config.json',
    'processor_config.json', 'video_preprocessor_config.json',
    'tokenizer.json', 'tokenizer_config.json', 'tokenizer.model',
    'special_tokens_map.json', 'added_tokens.json', 'vocab.json', 'vocab.txt',
    'merges.txt', 'spiece.model', 'chat_template.jinja', 'chat_template.json',
    'README.md', 'LICENSE', 'LICENSE.txt', 'LICENSE.md', 'NOTICE', 'NOTICE.txt',
    'USE_POLICY.md',
})  # fmt: skip
_CODE = '.py'  # of drafters; config.json names it, and it is never run here
_TEMPLATES = 'additional_chat_templates'  # a folder of NAME.jinja


def convert(
  source: sources.Source,
  target: str,
  form: str,
  dtype: str = '',
  progress: Progress | None = None,
  writers: Mapping[str, Writer] | None = None,
) -> dict[str, Any]:
  """Writes a model as directory `target`; returns what was written.

  Args:
    source: as `sources.open_model` gives it.
    target: a directory that is not there yet, or empty.
    form: 'hf', which `transformers` loads; 'native' (see `native`); or one of
      the writers.
    dtype: 'float32', 'bfloat16' or 'float16' for all tensors; '' for the one
      that each has, which is float32 where it was quantised.
    progress: called with (bytes written, bytes in all).
    writers: of other forms, by name.

  Raises:
    InputError: where `target` is in use, the disk is full, the source is not
      complete, or has no such form.

  Example:
    convert(sources.open_model('model.gguf'), 'model', 'hf', 'bfloat16')
  """
  make = {'hf': write_hf, 'native': _native, **(writers or {})}[form]
  with new_folder(target) as folder:
    return make(source, folder, DTYPES.get(dtype), progress)


def write_hf(source, folder, dtype, progress) -> dict[str, Any]:
  """Writes what `transformers` loads: a Writer."""
  _write_beside(source, folder, dtype)
  tensors = {
    theirs: _as_stored(source.config, ours, tensor)
    for ours, theirs, tensor in _named(source)
  }
  return write_tensors(folder, directory.STEM, tensors, dtype, progress)


def _native(source, folder, dtype, progress) -> dict[str, Any]:
  if source.drafter:
    raise errors.InputError(
      f'{source.name}: this is a drafter, which the native form does not hold; '
      'give its directory as it is, or take --format=hf.'
    )
  _write_beside(source, folder, dtype)
  tensors, names = {}, {}
  for ours, theirs, tensor in _named(source):
    tensors[ours], names[ours] = tensor, theirs
  described = native.describe(source.config, names)
  write_json(os.path.join(folder, native.FILE), described)
  return write_tensors(folder, native.STEM, tensors, dtype, progress)


def _named(
  source: sources.Source,
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, Hugging Face's, tensor) of a complete model."""
  foreign = source.form == 'gguf'
  usual = hf_names.names(source.config) if foreign else {}
  for ours, theirs, tensor in params_lib.checked(
    source.config, source.tensors(), source.name
  ):
    if tensor.dtype is None:
      raise errors.InputError(
        f'{source.name}: tensor {theirs!r} is stored as '
        f'{getattr(tensor, "kind", None)}, which '
        'cannot be written; take an unquantised copy of the model.'
      )
    yield ours, usual[ours] if foreign else theirs, tensor


def _as_stored(config, ours: str, tensor: stored.Tensor) -> stored.Tensor:
  """Returns a tensor of ours as files of Hugging Face hold it."""
  if ours in hf_names.transposed(config):
    return stored.transposed(tensor)
  if len(tensor.shape) == 1 and not ours.startswith(params_lib.SPARE):
    array = stored.read(tensor)  # small; Gemma's norms are shifted
    return stored.InMemory(hf_names.as_stored(config, ours, array))
  return tensor


def write_tensors(
  folder: str,
  stem: str,
  tensors: dict[str, stored.Tensor],
  dtype: Any,
  progress: Progress | None = None,
  facts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Writes one file, or several with an index; returns counts.

  `facts` are put into the metadata of every file.
  """
  kinds = {name: _kind(tensor, dtype) for name, tensor in tensors.items()}
  sizes = {
    name: math.prod(tensor.shape) * kinds[name].itemsize
    for name, tensor in tensors.items()
  }
  shards, total, done = _shards(sizes), sum(sizes.values()), 0
  weight_map = {}
  for number, names in enumerate(shards):
    file = f'{stem}.safetensors'
    if len(shards) > 1:
      file = f'{stem}-{number + 1:05}-of-{len(shards):05}.safetensors'
    weight_map |= dict.fromkeys(names, file)
    entries = {name: (tensors[name], kinds[name]) for name in names}
    for written in safetensors_io.write(
      os.path.join(folder, file), entries, {'format': 'pt', **(facts or {})}
    ):
      done += written
      if progress:
        progress(done, total)
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    file = os.path.join(folder, f'{stem}.safetensors.index.json')
    write_json(file, index)
  return {'tensors': len(tensors), 'bytes': total, 'files': len(shards)}


def _kind(tensor: stored.Tensor, dtype: Any) -> np.dtype:
  """Returns the dtype to write: what is no float stays as it is."""
  stored_as = np.dtype(getattr(tensor, 'kept_dtype', tensor.dtype))
  floating = stored_as.kind == 'f' or stored_as == safetensors_io.DTYPES['BF16']
  return np.dtype(dtype) if dtype and floating else stored_as


def _shards(sizes: dict[str, int]) -> list[list[str]]:
  """Returns names in groups of at most LARGEST bytes, in order."""
  shards, room = [[]], LARGEST
  for name, size in sizes.items():
    if size > room and shards[-1]:
      shards.append([])
      room = LARGEST
    shards[-1].append(name)
    room -= size
  return shards


def _write_beside(source: sources.Source, folder: str, dtype: Any) -> None:
  """Writes config.json, the tokenizer and what else lies beside weights."""
  if source.folder:
    for name in _beside(source.folder):
      _copy(source.folder, folder, name)
  else:
    _write_tokenizer(source, folder)
  file = os.path.join(folder, 'config.json')
  if dtype is None and os.path.exists(file):
    return  # kept to the byte
  copied = os.path.exists(file)
  raw = files.read_json(file) if copied else families.hf_config(source.config)
  kind = np.dtype(dtype or np.float32).name
  keys = [key for key in ('dtype', 'torch_dtype') if key in raw] or ['dtype']
  ids = {} if copied else _special_ids(source)
  write_json(file, {**raw, **ids, **dict.fromkeys(keys, kind)})


def _beside(folder: str) -> list[str]:
  """Returns the names in a model's folder that are copied."""
  names = [
    name
    for name in sorted(os.listdir(folder))
    if name in _BESIDE or name.endswith(_CODE)
  ]
  templates = os.path.join(folder, _TEMPLATES)
  if os.path.isdir(templates):
    names += [
      os.path.join(_TEMPLATES, name)
      for name in sorted(os.listdir(templates))
      if name.endswith('.jinja')
    ]
  return names


def _copy(origin: str, target: str, name: str) -> None:
  """Copies a file, through links only within the model or its hub cache."""
  path = os.path.join(origin, name)
  real, home = os.path.realpath(path), _home(origin)
  if os.path.commonpath((real, home)) != home:
    raise errors.InputError(
      f'{path}: this is a link to {real}, outside of the model, and what '
      'lies there would be copied; put the file itself here, or remove the '
      'link.'
    )
  new = os.path.join(target, name)
  os.makedirs(os.path.dirname(new), exist_ok=True)
  with files.open_file(real) as old, open(new, 'xb') as file:
    shutil.copyfileobj(old, file)


def _home(folder: str) -> str:
  """Returns where a model's links may lead: its folder, or its hub cache."""
  folder = os.path.realpath(folder)
  snapshots, _ = os.path.split(folder)
  root, last = os.path.split(snapshots)
  cached = os.path.basename(root).startswith('models--')
  return root if cached and last == 'snapshots' else folder


def _special_ids(source: sources.Source) -> dict[str, Any]:
  tokenizer = source.tokenizer()
  ids: dict[str, Any] = {'eos_token_id': list(tokenizer.end_ids)}
  for role in ('bos_token', 'pad_token'):
    text = tokenizer.special.get(role)
    ids[f'{role}_id'] = text and tokenizer.backend.token_to_id(text)
  return ids


def _write_tokenizer(source: sources.Source, folder: str) -> None:
  """Writes the tokenizer of a GGUF file as `transformers` reads it."""
  tokenizer = source.tokenizer()
  text = tokenizer.backend.to_str(pretty=True)
  with open(os.path.join(folder, 'tokenizer.json'), 'xb') as file:
    file.write(text.encode())
  settings = dict(tokenizer.special)
  settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
  settings['model_max_length'] = source.config.max_positions
  if tokenizer.chat_template:
    settings['chat_template'] = tokenizer.chat_template
  write_json(os.path.join(folder, 'tokenizer_config.json'), settings)
  ends = {'eos_token_id': list(tokenizer.end_ids)}
  write_json(os.path.join(folder, 'generation_config.json'), ends)


def write_json(path: str, value: dict[str, Any]) -> None:
  """Writes a file of JSON that people can read."""
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=2, ensure_ascii=False)
    file.write('\n')


@contextlib.contextmanager
def new_folder(target: str) -> Iterator[str]:
  """Yields a temporary folder, which gets the name `target` in the end.

  Raises InputError where `target` is there and not an empty directory, or the
  disk does not take it; then nothing is left behind.
  """
  target = os.path.abspath(target)
  parent = os.path.dirname(target)
  try:
    there = os.path.lexists(target)
    if there and os.path.isdir(target) and not os.path.islink(target):
      there = bool(os.listdir(target))
    if there:
      raise errors.InputError(
        f'{target}: is there already; give a directory that is not there or '
        'empty, or delete it yourself.'
      )
    with locks.workspace(parent, '.convert-') as outer:
      folder = os.path.join(outer, 'model')
      os.mkdir(folder)
      yield folder
      os.rename(folder, target)
  except OSError as e:
    raise errors.InputError(
      f'{target}: the model cannot be written ({e}). Nothing is left of it; '
      'make room or choose another folder, then run again.'
    ) from e
