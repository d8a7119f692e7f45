"""The family of DFlash drafters, published ones alone."""

from typing import Any

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.drafters import family
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters.dflash import drafter
from specdiff_jax.drafters.dflash import format as format_lib


def _published(
  folder: str,
  published: published_lib.Published,
  params: Any,
  checkpoint: weights.Checkpoint,
  serving: family.Serving,
) -> family.Made:
  """Returns the drafter; InputError where it is another verifier's."""
  sizes, model = published.sizes, checkpoint.config
  for name in ('width', 'vocab_size'):
    theirs, wanted = getattr(sizes.network, name), getattr(model, name)
    if theirs != wanted:
      raise errors.InputError(
        f'{folder}: the DFlash drafter was made for a verifier with {name} '
        f'{theirs}, but that of {checkpoint.source} is {wanted}. Take the '
        'drafter of this verifier.'
      )
  if not all(0 <= layer < model.layers for layer in sizes.features):
    raise errors.InputError(
      f'{folder}: the DFlash drafter reads the verifier layers '
      f'{sizes.features} (target_layer_ids), but those of '
      f'{checkpoint.source} are 0 to {model.layers - 1}. Take the drafter '
      'of this verifier.'
    )
  if serving.gamma > sizes.gamma:
    raise errors.InputError(
      f'gamma is {serving.gamma}, but the blocks of {folder} have '
      f'{sizes.block} slots, of which the first is the last committed token: '
      f'it drafts {sizes.gamma} tokens at once. Lower gamma.'
    )
  family.no_context_window(
    serving, folder, 'a DFlash drafter keeps all its keys'
  )
  one = drafter.Block(config=sizes, **serving.window)
  return one, params


def _describe(found: published_lib.Published) -> dict[str, Any]:
  return {'kind': 'DFlash', 'mask_id': found.mask_id}


FAMILY = family.Family(
  readers={'dflash': format_lib.read},
  architectures={'DFlashDraftModel': 'dflash'},
  published=_published,
  describe=_describe,
  by_output=('fuse',),
)
