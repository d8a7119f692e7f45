"""Published diffusion drafters: from a directory of Hugging Face to a drafter.

What a model's own files do not tell, or tell wrongly, `config.masked_lm` says.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import hf_drafters
from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import placing
from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.drafters import block as block_lib
from specdiff_jax.drafters import masked_lm as masked_lm_lib
from specdiff_jax.models import dflash
from specdiff_jax.models import masked_lm as model_lib
from specdiff_jax.models import networks
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.text import id_map

Config = options_lib.Diffusion
VERIFIER = 'verifier'  # a tokenizer that is the verifier's own
PRESET = 'preset:'
# Of drafters that are known by their shape: mask token, and whether shifted.
_PRESETS = {
  'dream_7b': (151666, True),
  'diffullama_7b': (811, True),
  'llada_8b': (126336, False),
}
_ALIGNMENTS = {'same': False, 'shifted': True}


def drafter(
  folder: str, config: Config, checkpoint: weights.Checkpoint, **common: Any
) -> tuple[types.Drafter, Any]:
  """Returns the drafter of a directory, and its params.

  Args:
    folder: with config.json and weights.
    config: for gamma, context_window and masked_lm.
    checkpoint: the verifier.
    **common: strategy, cache_dtype and denoising of the drafter.

  Raises:
    InputError: the directory is not a drafter, or not one for this verifier.
  """
  family = config.masked_lm.family
  if family and family not in hf_drafters.FAMILIES:
    raise errors.InputError(
      f'config.masked_lm.family is {family!r}, but it has to be one of '
      f'{", ".join(hf_drafters.FAMILIES)}, or empty.'
    )
  dtype = checkpoint.params['final_norm'].dtype.name
  published, params = _load(folder, family, dtype)
  block = isinstance(published.sizes, dflash.DFlashConfig)
  make = _block if block else _masked_lm
  return make(folder, config, checkpoint, published, params, common)


def of_shape(
  config: Config, checkpoint: weights.Checkpoint, **common: Any
) -> tuple[types.Drafter, Any]:
  """Returns the drafter preset:NAME, without weights: for tracing (`aot`).

  Its ids are the verifier's.

  Raises:
    InputError: there is no such masked language model, or this is no tracing.
  """
  name = config.drafter.removeprefix(PRESET)
  if name not in _PRESETS:
    raise errors.InputError(
      f'config.drafter is {config.drafter!r}, but the masked language models '
      f'whose shape is known are {", ".join(_PRESETS)}.'
    )
  if not isinstance(checkpoint.params['final_norm'], jax.core.Tracer):
    raise errors.InputError(
      f'config.drafter is {config.drafter!r}, a shape without weights, which '
      'only `aot` takes; give the directory of the model.'
    )
  mask_id, shifted = _PRESETS[name]
  sizes = dataclasses.replace(
    presets.published(name), scan_layers=checkpoint.config.scan_layers
  )
  params = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    networks.abstract(sizes, checkpoint.params['final_norm'].dtype),
  )
  published = hf_drafters.Published(sizes, lambda name: None, mask_id, shifted)
  mapped = np.arange(sizes.vocab_size)
  return _with_ids(
    config.drafter, config, checkpoint, published, params, mapped, common
  )


@functools.lru_cache(maxsize=1)
def _load(
  folder: str, family: str, dtype: str
) -> tuple[hf_drafters.Published, Any]:
  """Reads a directory; several systems share one copy of large weights."""
  published = hf_drafters.read(folder, family)
  tensors = hf_drafters.tensors(folder, published)
  params, _ = params_lib.gather(
    published.sizes, tensors, dtype, folder, placing.default
  )
  return published, params


def _masked_lm(folder, config, checkpoint, published, params, common):
  own = config.masked_lm
  if own.alignment and own.alignment not in _ALIGNMENTS:
    raise errors.InputError(
      f'config.masked_lm.alignment is {own.alignment!r}, but it has to be '
      f'one of {", ".join(_ALIGNMENTS)}, or empty.'
    )
  mapped, tokens = _ids(folder, config, checkpoint)
  mask_id = _mask_id(folder, own.mask_id, published.mask_id, tokens)
  published = published._replace(mask_id=mask_id)
  return _with_ids(
    folder, config, checkpoint, published, params, mapped, common
  )


def _with_ids(folder, config, checkpoint, published, params, mapped, common):
  own = config.masked_lm
  model = model_lib.MaskedLM(
    network=published.sizes,
    mask_id=published.mask_id,
    shifted=_ALIGNMENTS.get(own.alignment, published.shifted),
    prefix=own.prefix or 'full',
  )
  if config.context_window and model.prefix == 'causal':
    _no_context_window(config, folder, 'the keys of a causal prefix are kept')
  one = masked_lm_lib.MaskedLMDrafter(
    model=model,
    gamma=config.gamma,
    context_window=config.context_window,
    largest=config.gamma,
    **common,
  )
  size = checkpoint.config.vocab_size
  return one, masked_lm_lib.make_params(model, params, mapped, size)


def _ids(
  folder: str, config: Config, checkpoint: weights.Checkpoint
) -> tuple[np.ndarray, dict[str, int]]:
  """Returns the verifier's id of each of the drafter's, and its vocabulary."""
  own = config.masked_lm
  theirs = id_map.tokens_of(checkpoint.tokenizer)
  if own.tokenizer == VERIFIER:
    return np.arange(1 + max(theirs.values())), theirs
  where = own.tokenizer or folder
  tokens = id_map.tokens_in(where)
  try:
    mapped, _ = id_map.match(
      id_map.spelled(tokens), id_map.spelled(theirs), own.unknown
    )
  except errors.InputError as error:
    raise errors.InputError(
      f'{where}: {error} config.masked_lm.unknown={own.unknown} is the '
      'fraction that is allowed; such tokens are masks to the drafter.'
    ) from error
  return mapped, tokens


def _mask_id(folder: str, wanted: int, own: int, tokens: dict[str, int]) -> int:
  """Returns the mask token: as asked for, as config.json or tokens tell it."""
  for value in (wanted, own, id_map.mask_id(tokens)):
    if value not in (None, hf_drafters.NO_MASK):
      return value
  raise errors.InputError(
    f'{folder}: neither config.json (mask_token_id) nor the tokenizer tells '
    'the mask token of this drafter; give config.masked_lm.mask_id.'
  )


def _block(folder, config, checkpoint, published, params, common):
  sizes, model = published.sizes, checkpoint.config
  for name in ('width', 'vocab_size'):
    own, wanted = getattr(sizes.network, name), getattr(model, name)
    if own != wanted:
      raise errors.InputError(
        f'{folder}: the DFlash drafter was made for a verifier with {name} '
        f'{own}, but that of {checkpoint.source} is {wanted}. Take the '
        'drafter of this verifier.'
      )
  if not all(0 <= layer < model.layers for layer in sizes.features):
    raise errors.InputError(
      f'{folder}: the DFlash drafter reads the verifier layers '
      f'{sizes.features} (target_layer_ids), but those of '
      f'{checkpoint.source} are 0 to {model.layers - 1}. Take the drafter '
      'of this verifier.'
    )
  if config.gamma > sizes.gamma:
    raise errors.InputError(
      f'config.gamma is {config.gamma}, but the blocks of {folder} have '
      f'{sizes.block} slots, of which the first is the last committed token: '
      f'it drafts {sizes.gamma} tokens at once. Lower gamma.'
    )
  if config.context_window:
    _no_context_window(config, folder, 'a DFlash drafter keeps all its keys')
  one = block_lib.Block(
    config=sizes, verifier=model, gamma=config.gamma, **common
  )
  return one, params


def _no_context_window(config: Config, folder: str, why: str) -> None:
  raise errors.InputError(
    f'config.context_window is {config.context_window}, but with {folder} '
    f'nothing is gained by it: {why}. Give 0.'
  )
