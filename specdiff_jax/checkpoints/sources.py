"""A model on disk, whatever its form, opened by its headers alone.

Four forms are known: a GGUF file, a directory of Hugging Face, our own
directory, and a name on the hub. Nothing here runs code out of a file: pickles
are refused.
"""

from collections.abc import Callable, Iterator
import dataclasses
import os
from typing import Any, NamedTuple

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import lora
from specdiff_jax.checkpoints import native
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.gguf import header as gguf_io
from specdiff_jax.checkpoints.gguf import models
from specdiff_jax.checkpoints.gguf import tensors as gguf_tensors
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.text import tokenizer as tokenizer_lib


class Entry(NamedTuple):
  """What a file's header says of a tensor."""

  name: str
  kind: str  # 'BF16', 'Q4_K'
  shape: tuple[int, ...]
  nbytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A model whose headers are read, and whose tensors are not.

  Attributes:
    name: as the user gave it.
    form: 'gguf', 'hf' or 'native'.
    family: the architecture, as the files call it.
    folder: where what lies beside the weights is; '' for a GGUF file.
    config: sizes, which say what network it is.
    tensors: () -> iterator of (our name, the file's or, of our own form,
      Hugging Face's, tensor).
    entries: () -> what the headers say of every tensor.
    tokenizer: () -> the tokenizer.
    drafter: what a published drafter is besides, else None.
  """

  name: str
  form: str
  family: str
  folder: str
  config: Any
  tensors: Callable[[], Iterator[tuple[str, str, stored.Tensor]]]
  entries: Callable[[], list[Entry]]
  tokenizer: Callable[[], tokenizer_lib.Tokenizer]
  drafter: Any = None


def open_model(path: str, adapter: str = '') -> Source:
  """Opens a .gguf file, a directory or a hub name; InputError if it is none.

  adapter: the directory of a LoRA adapter (PEFT), merged into the tensors.

  Example: open_model('org/name').config.layers
  """
  source = _open(path)
  same = os.path.realpath(adapter) == os.path.realpath(source.folder)
  if not (adapter and same):
    _refuse_adapter(source)
  if not adapter:
    return source
  changes = lora.read(adapter, source.config)
  return dataclasses.replace(
    source,
    name=f'{path} with {adapter}',
    tensors=lambda: lora.merged(source.tensors(), changes),
  )


def _refuse_adapter(source: Source) -> None:
  """Raises InputError where a model's folder says that it is to be adapted."""
  file = os.path.join(source.folder, 'adapter_config.json')
  if source.folder and os.path.exists(file):
    raise errors.InputError(
      f'{file}: beside the model there is a LoRA adapter, which may or may '
      f'not be merged into it. Give {source.folder} as the adapter too '
      '(where it is not), or remove this file (where it is).'
    )


def _open(path: str) -> Source:
  if os.path.isdir(path):
    return _directory(path, path)
  if os.path.isfile(path):
    return _file(path)
  if hub.is_name(path) and not path.endswith('.gguf'):
    return _directory(hub.folder(path), path)
  if os.path.exists(path):
    raise errors.InputError(
      f'{path}: not a regular file (a pipe, a socket or a device); give a '
      '.gguf file or a directory.'
    )
  raise errors.InputError(
    f'{path}: there is no such file or directory; give a .gguf file, a '
    "Hugging Face directory, or a name on its hub ('org/name')."
  )


def entries(folder: str, stem: str) -> list[Entry]:
  """Returns what the headers of a directory say of every tensor."""
  return [
    Entry(name, tensor.kind, tensor.shape, tensor.nbytes)
    for name, tensor in directory.tensors(folder, stem).items()
  ]


def _file(path: str) -> Source:
  if path.endswith(directory.PICKLES):
    raise errors.InputError(
      f'{path}: a pickle can run any code and is never read; take or write '
      'the model as safetensors, and give its directory.'
    )
  if path.endswith('.safetensors'):
    raise errors.InputError(
      f'{path}: a file of tensors alone does not say what model it is; give '
      'its directory, with config.json and tokenizer.json.'
    )
  header = gguf_io.read_header(path)
  config = models.read_config(header)
  return Source(
    name=path,
    form='gguf',
    family=header.fields['general.architecture'],
    folder='',
    config=config,
    tensors=lambda: gguf_tensors.iterate_tensors(header, config),
    entries=lambda: [
      Entry(name, info.kind.name, info.shape, info.nbytes)
      for name, info in header.tensors.items()
    ],
    tokenizer=lambda: tokenizer_lib.Tokenizer.from_gguf(header.fields, path),
  )


def _directory(folder: str, name: str) -> Source:
  if native.is_native(folder):
    if directory.has_tensors(folder):
      raise errors.InputError(
        f'{folder}: there are two models in this directory, one of '
        f'{native.FILE} and one of {directory.STEM}.safetensors; remove '
        'one of the two.'
      )
    form, stem = 'native', native.STEM
    config, names = native.read(folder)
    family = native.family(folder)
    tensors = lambda: native.iterate_tensors(folder, names)
  else:
    _check_is_model(folder)
    form, stem = 'hf', directory.STEM
    config = families.read_config(folder)
    file = os.path.join(folder, 'config.json')
    family = families.architecture(file, files.read_json(file))
    tensors = lambda: directory.iterate_tensors(folder, config)
  return Source(
    name=name,
    form=form,
    family=family,
    folder=folder,
    config=config,
    tensors=tensors,
    entries=lambda: entries(folder, stem),
    tokenizer=lambda: tokenizer_lib.Tokenizer.from_directory(folder),
  )


def _check_is_model(folder: str) -> None:
  if not os.path.exists(os.path.join(folder, 'config.json')):
    names = sorted(os.listdir(folder))
    found = [n for n in names if n.endswith('.gguf')]
    hint = 'the directory of a model in the form of Hugging Face.'
    if found:
      hint = f'the file {found[0]} in it.'
    elif 'adapter_config.json' in names:
      hint = 'the model, and this LoRA adapter beside it as the adapter.'
    raise errors.InputError(
      f'{folder}: there is no config.json in this directory; give {hint}'
    )
