"""Our own directory of a model: our config and names, all else kept.

    specdiff.json        form, network, config, and the names of the tensors in
                         the form of Hugging Face
    params*.safetensors  tensors under our names, in the dtype they had
    config.json, ...     what else belongs to a model, to the byte

So a model that came from Hugging Face goes back there without a loss, and what
is read here needs to know no family.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import Any

from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints.hf import directory
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.models import config as config_lib
from specdiff_jax.models import gpt2

FILE = 'specdiff.json'
STEM = 'params'  # of the files with tensors
FORMAT = 'specdiff_jax model 1'
_CONFIGS = {
  kind.__name__: kind
  for kind in (config_lib.TransformerConfig, gpt2.GPT2Config)
}


def is_native(folder: str) -> bool:
  """True for a directory that `specdiff convert --format=native` wrote."""
  return os.path.exists(os.path.join(folder, FILE))


def describe(config: Any, names: dict[str, str]) -> dict[str, Any]:
  """Returns what specdiff.json says; `names`: ours -> Hugging Face's."""
  return {
    'format': FORMAT,
    'network': type(config).__name__,
    'config': dataclasses.asdict(config),
    'names': names,
  }


def family(folder: str) -> str:
  """Returns the architecture that the config.json beside it states."""
  raw = files.read_json(os.path.join(folder, 'config.json'))
  found = raw.get('architectures') or ['unknown']
  return printing.names(found if isinstance(found, list) else [found])


def read(folder: str) -> tuple[Any, dict[str, str]]:
  """Returns (config, names) of specdiff.json; raises InputError."""
  file = os.path.join(folder, FILE)
  raw = files.read_json(file)
  kind = _CONFIGS.get(str(raw.get('network')))
  if raw.get('format') != FORMAT or kind is None:
    raise errors.InputError(
      f'{file}: a model of the format {printing.short(raw.get("format"))} '
      f'with the network {printing.short(raw.get("network"))}; known are '
      f'{FORMAT!r} with {", ".join(_CONFIGS)}. Another version wrote it: '
      'convert the model again.'
    )
  names = raw.get('names')
  try:
    config = kind(**raw['config'])
    # How weights are laid out in memory, which a file does not decide.
    if getattr(config, 'scan_layers', False) or getattr(
      config, 'attention', ''
    ):
      raise TypeError('scan_layers and attention are to be left out')
    if not isinstance(names, dict) or not all(
      isinstance(text, str) for pair in names.items() for text in pair
    ):
      raise TypeError('names has to be a table of texts')
  except (KeyError, TypeError, AttributeError, errors.InputError) as e:
    raise errors.InputError(
      f'{file}: config or names cannot be read ({e}); convert the model again.'
    ) from e
  return config, names


def iterate_tensors(
  folder: str, names: dict[str, str]
) -> Iterator[tuple[str, str, stored.Tensor]]:
  """Yields (our name, Hugging Face's, tensor), none of them read yet."""
  for ours, tensor in directory.tensors(folder, STEM).items():
    yield ours, names.get(ours, ours), tensor
