"""Published drafters: directories in the form of Hugging Face.

What the config.json of each form says, its family reads (`Family.readers`);
here is what all have in common.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import functools
import os
from typing import Any, NamedTuple

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import native
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import placing
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import architectures as hf_architectures
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.checkpoints.hf import families
from specdiff_jax.checkpoints.hf import sizes as hf_sizes
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.drafters import tables
from specdiff_jax.models import config as config_lib
from specdiff_jax.text import tokenizer as tokenizer_lib

Raw = Mapping[str, Any]  # config.json
NO_MASK = -1


class Published(NamedTuple):
  """A drafter as its directory describes it.

  `mask_id` is NO_MASK where only the tokenizer tells it; `shifted` is that of
  `masked_lm.model.MaskedLM`, and means nothing for a DFlash drafter.
  """

  sizes: Any  # of its network
  our_name: Callable[[str], str | None]  # as `hf_names.our_name`
  mask_id: int
  family: str  # in the registry
  shifted: bool = False


def read(folder: str, form: str = '') -> Published:
  """Reads config.json of a drafter's directory.

  Args:
    folder: of the drafter.
    form: of `Family.readers`, for a model whose config.json does not tell it.

  Raises:
    InputError: names the file, and what in it is not known or not supported.
  """
  file = os.path.join(folder, 'config.json')
  raw = files.read_json(file)
  with errors.naming(file):
    return tables.merged('readers')[form or _form(file, raw)](file, raw)


def tensors(
  folder: str, published: Published
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, name in the file, tensor) as `directory` does."""
  return directory.iterate_tensors(folder, published.sizes, published.our_name)


def load(folder: str, form: str, dtype: str) -> tuple[Published, Any]:
  """Reads a directory; several systems share one copy of large weights."""
  return _loaded(folder, form, dtype, tuple(files.contents([folder])))


@functools.lru_cache(maxsize=1)
def _loaded(
  folder: str, form: str, dtype: str, contents: tuple[str, ...]
) -> tuple[Published, Any]:
  del contents  # others on disk are read anew
  published = read(folder, form)
  params, _ = params_lib.gather(
    published.sizes, tensors(folder, published), dtype, folder, placing.default
  )
  return published, params


def open_drafter(path: str) -> sources.Source | None:
  """Opens a published drafter; None if `path` is anything else."""
  folder = path
  if not os.path.exists(path) and hub.is_name(path):
    folder = hub.folder(path)
  file = os.path.join(folder, 'config.json')
  if not os.path.isfile(file) or native.is_native(folder):
    return None
  found = architectures(files.read_json(file))
  if not set(found) & set(tables.merged('architectures')):
    return None
  published = read(folder)
  return sources.Source(
    name=path,
    form='hf',
    family=printing.names(found),
    folder=folder,
    config=published.sizes,
    tensors=lambda: tensors(folder, published),
    entries=lambda: sources.entries(folder, directory.STEM),
    tokenizer=lambda: tokenizer_lib.Tokenizer.from_directory(folder),
    drafter=published,
  )


def architectures(raw: Raw) -> list[str]:
  """Returns what config.json calls the network: architectures, or its type."""
  found = raw.get('architectures') or [raw.get('model_type')]
  found = found if isinstance(found, list) else [found]
  return [str(name)[:80] for name in found]


def _form(file: str, raw: Raw) -> str:
  """Returns the form that config.json tells."""
  found, forms = architectures(raw), tables.merged('architectures')
  for name in found:
    if name in forms:
      return forms[name]
  if set(found) & set(hf_architectures.FAMILIES):
    hint = (
      'which is that of an autoregressive model. If it is a diffusion '
      "drafter of this form, say which: config.masked_lm.family is 'diffugpt'"
      " or 'diffullama'; or 'eagle3', if it is an EAGLE-3 drafter"
    )
  else:
    hint = f'which is not known here; known: {", ".join(forms)}'
  raise errors.InputError(
    f'{file}: the drafter has the architecture {printing.names(found)}, {hint}.'
  )


def like(architecture: str, file: str, raw: Raw, **more: Any) -> Any:
  """Returns the sizes of a model that is another one without its causal mask.

  What is said of the mask is of no account, nor are biases that the
  architecture has in any case.
  """
  ours = {**raw, 'attention_bias': None, 'is_causal': None, **more}
  if ours.get('tie_word_embeddings') is None:
    names = directory.tensors(os.path.dirname(file))
    ours['tie_word_embeddings'] = 'lm_head.weight' not in names
  return families.config_of(architecture, file, ours)


def mask(file: str, raw: Raw, default: int | None = None) -> int:
  """Returns the mask token that config.json tells; NO_MASK only by default."""
  if default == NO_MASK and raw.get('mask_token_id') is None:
    return NO_MASK
  return hf_sizes.integer(file, raw, 'mask_token_id', default)


def only(file: str, raw: Raw, wanted: Mapping[str, tuple[Any, ...]]) -> None:
  """Raises InputError where a key is there with none of its good values."""
  for key, good in wanted.items():
    if raw.get(key) not in (None, *good):
      raise errors.InputError(
        f'{file}: {key} is {printing.short(raw[key])}; only '
        f'{" or ".join(map(printing.short, good or (None,)))} is supported. '
        'Take another drafter.'
      )


def known(file: str, raw: Raw, keys: Collection[str], node: str = '') -> None:
  """Raises InputError where there is a key besides these; `node` is before it."""
  for key, value in raw.items():
    if value is not None and key not in keys:
      raise errors.InputError(
        f'{file}: {node}{key} is {printing.short(value)}, which may change the '
        'network and is not supported. Take another drafter.'
      )


def layers(file: str, key: str, value: Any, first: int = 0) -> tuple[int, ...]:
  """Returns the verifier's layers that a key lists, 0-based.

  In the file they are counted from `first` on.
  """
  if (
    not isinstance(value, list)
    or not 0 < len(value) <= config_lib.MOST_LAYERS
    or not all(type(x) is int and x >= first for x in value)
  ):
    wanted = f"a list of numbers of the verifier's layers, from {first} on,"
    raise hf_sizes.wrong(file, key, value, wanted)
  return tuple(x - first for x in value)
