"""Directories in the form of Hugging Face: where their tensors lie."""

from collections.abc import Callable, Iterator
import functools
import os

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import names as hf_names
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

STEM = 'model'  # of the files with tensors
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
_FLOATS = ('F32', 'F16', 'BF16', 'F64')


def has_tensors(path: str) -> bool:
  """True for a directory with a file of tensors or an index of several."""
  return any(map(os.path.exists, _whole_and_index(path, STEM)))


def _whole_and_index(path: str, stem: str) -> tuple[str, str]:
  whole = os.path.join(path, f'{stem}.safetensors')
  return whole, f'{whole}.index.json'


def _index(path: str, stem: str) -> dict[str, str]:
  """Returns tensor name -> file as an index has it; {} where none counts.

  As in `transformers` one whole file is the model, whatever lies beside it.
  """
  whole, index = _whole_and_index(path, stem)
  if os.path.exists(whole) or not os.path.exists(index):
    if stem != STEM and os.path.exists(index):  # never written by us
      raise errors.InputError(
        f'{path}: both {os.path.basename(whole)} and an index of other files '
        'are there, which may be two models; remove one of the two.'
      )
    return {}
  names = files.read_json(index).get('weight_map')
  if not isinstance(names, dict) or not names:
    raise errors.InputError(
      f'{index}: there is no weight_map in it; download the file again.'
    )
  for name, shard in names.items():
    is_text = isinstance(shard, str) and 0 < len(shard) < 256
    if not is_text or os.path.basename(shard) != shard:
      raise errors.InputError(
        f'{index}: tensor {printing.short(name)} is said to lie in '
        f'{printing.short(shard)}, which is not the name of a file in this '
        'directory; download the index again.'
      )
  return {name: os.path.join(path, shard) for name, shard in names.items()}


def _refuse_pickles(path: str) -> None:
  pickles = [n for n in sorted(os.listdir(path)) if n.endswith(PICKLES)]
  if pickles:
    raise errors.InputError(
      f'{path}: the weights are there only as {pickles[0]}, a pickle, which '
      'can run any code and is never read; take or write the model as '
      'safetensors.'
    )


def tensors(path: str, stem: str = STEM) -> dict[str, stored.InFile]:
  """Returns every tensor by its name, file after file; only headers are read.

  All that lies in the files of an index counts, listed or not, as it does for
  `transformers`.

  Raises InputError where an index names a file or tensor that is not there, or
  two of its files have a tensor of one name.
  """
  index = _index(path, stem)
  if not index:
    whole, _ = _whole_and_index(path, stem)
    if not os.path.exists(whole):
      _refuse_pickles(path)
    return safetensors_io.tensors(whole)
  found: dict[str, stored.InFile] = {}
  for file in dict.fromkeys(index.values()):
    for name, tensor in safetensors_io.tensors(file).items():
      if name in found:
        raise errors.InputError(
          f'{file}: tensor {printing.short(name)} is also in '
          f'{found[name].path}; one of the two is left over from another '
          'model. Download the files again.'
        )
      found[name] = tensor
  for name, file in index.items():
    if name not in found or found[name].path != file:
      raise errors.InputError(
        f'{file}: the index says that tensor {printing.short(name)} is in '
        'this file, but it is missing; download index and file again.'
      )
  return found


def iterate_tensors(
  path: str,
  config: hf_names.Config,
  our_name: Callable[[str], str | None] | None = None,
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, name in the file, tensor), none of them read yet.

  `our_name` is for files with names of their own; by default it is
  `hf_names.our_name` of this config.

  Tensors that models do without (computed tables, the copy of a tied head)
  come with `params.SPARE` before their own name, and one that our params have
  no place for under an empty name.
  """
  our_name = our_name or functools.partial(hf_names.our_name, config)
  turned = hf_names.transposed(config)
  for name, tensor in tensors(path).items():
    ours = our_name(name)
    if ours is None:
      yield params_lib.SPARE + name, name, tensor
      continue
    if tensor.kind not in _FLOATS:
      raise errors.InputError(
        f'{tensor.path}: tensor {name!r} is stored as {tensor.kind}, not as '
        f'one of {", ".join(_FLOATS)}; take an unquantised copy of the model.'
      )
    yield ours, name, stored.transposed(tensor) if ours in turned else tensor
