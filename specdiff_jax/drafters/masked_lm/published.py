"""Published masked language models: from a directory to a drafter.

What a model's own files do not tell, or tell wrongly, `Serving.told` says.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.drafters import family
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters import told as told_lib
from specdiff_jax.drafters.masked_lm import drafter as drafter_lib
from specdiff_jax.drafters.masked_lm import formats
from specdiff_jax.drafters.masked_lm import model as model_lib
from specdiff_jax.models import networks
from specdiff_jax.text import id_map

VERIFIER = 'verifier'  # a tokenizer that is the verifier's own
# Of drafters that are known by their shape: mask token, and whether shifted.
SHAPES = {
  'dream_7b': (151666, True),
  'diffullama_7b': (811, True),
  'llada_8b': (126336, False),
}
_ALIGNMENTS = {'same': False, 'shifted': True}


def drafter(
  folder: str,
  published: published_lib.Published,
  params: Any,
  checkpoint: weights.Checkpoint,
  serving: family.Serving,
) -> family.Made:
  """Returns the drafter of a directory, and its params.

  Raises InputError where it is not one for this verifier.
  """
  told = serving.told
  if told.alignment and told.alignment not in _ALIGNMENTS:
    raise errors.InputError(
      f'masked_lm.alignment is {told.alignment!r}, but it has to be one of '
      f'{", ".join(_ALIGNMENTS)}, or empty.'
    )
  mapped, tokens = _ids(folder, told, checkpoint)
  mask_id = _mask_id(folder, told.mask_id, published.mask_id, tokens)
  return _with_ids(
    folder,
    published._replace(mask_id=mask_id),
    params,
    mapped,
    checkpoint,
    serving,
  )


def of_shape(
  name: str, checkpoint: weights.Checkpoint, serving: family.Serving
) -> family.Made:
  """Returns the drafter preset:NAME of zeros; its ids are the verifier's."""
  mask_id, shifted = SHAPES[name]
  sizes = presets.published(name)  # unrolled, as those that are loaded
  params = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    networks.abstract(sizes, checkpoint.dtype),
  )
  published = published_lib.Published(
    sizes, lambda name: None, mask_id, formats.FAMILY, shifted
  )
  mapped = np.arange(sizes.vocab_size)
  return _with_ids(name, published, params, mapped, checkpoint, serving)


def _with_ids(
  folder,
  published: published_lib.Published,
  params,
  mapped,
  checkpoint,
  serving: family.Serving,
) -> family.Made:
  """Returns drafter and params, once mask token and ids are known."""
  told = serving.told
  model = model_lib.MaskedLM(
    network=published.sizes,
    mask_id=published.mask_id,
    shifted=_ALIGNMENTS.get(told.alignment, published.shifted),
    prefix=told.prefix or 'full',
  )
  if model.prefix == 'causal':
    family.no_context_window(
      serving, folder, 'the keys of a causal prefix are kept'
    )
  size = checkpoint.config.vocab_size
  return of_model(model, serving), drafter_lib.make_params(
    model, params, mapped, size
  )


def of_model(
  model: model_lib.MaskedLM, serving: family.Serving
) -> drafter_lib.MaskedLMDrafter:
  """Returns the drafter that serves a model."""
  return drafter_lib.MaskedLMDrafter(
    model=model,
    **serving.window,
    context_window=serving.context_window,
    largest=serving.gamma,
  )


def _ids(
  folder: str, told: told_lib.Told, checkpoint: weights.Checkpoint
) -> tuple[np.ndarray, dict[str, int]]:
  """Returns the verifier's id of each of the drafter's, and its vocabulary."""
  theirs = checkpoint.tokenizer.tokens()
  if told.tokenizer == VERIFIER:
    return np.arange(1 + max(theirs.values())), theirs
  where = told.tokenizer or folder
  tokens = id_map.tokens_in(where)
  try:
    mapped, _ = id_map.match(
      id_map.spelled(tokens), id_map.spelled(theirs), told.unknown
    )
  except errors.InputError as error:
    raise errors.InputError(
      f'{where}: {error} masked_lm.unknown={told.unknown} is the fraction '
      'that is allowed; such tokens are masks to the drafter.'
    ) from error
  return mapped, tokens


def _mask_id(
  folder: str, wanted: int, told: int, tokens: dict[str, int]
) -> int:
  """Returns the mask token: as asked for, as config.json or tokens tell it."""
  for value in (wanted, told, id_map.mask_id(tokens)):
    if value not in (None, published_lib.NO_MASK):
      return value
  raise errors.InputError(
    f'{folder}: neither config.json (mask_token_id) nor the tokenizer tells '
    'the mask token of this drafter; give masked_lm.mask_id.'
  )
