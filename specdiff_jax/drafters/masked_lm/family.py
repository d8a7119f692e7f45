"""The family of masked language models: published ones, and adapted verifiers.

An adapted one is all of the verifier, trained on (`network`); published ones
have networks, embeddings and vocabularies of their own (`formats`).
"""

import numpy as np

from specdiff_jax.drafters import family
from specdiff_jax.drafters.masked_lm import drafter
from specdiff_jax.drafters.masked_lm import formats
from specdiff_jax.drafters.masked_lm import network
from specdiff_jax.drafters.masked_lm import options as options_lib
from specdiff_jax.drafters.masked_lm import published
from specdiff_jax.models import config as config_lib


def _sizes(
  options: options_lib.Options,
  gamma: int,
  verifier: config_lib.TransformerConfig,
) -> network.AdaptedConfig:
  del gamma  # it drafts as long as it is asked to
  return network.AdaptedConfig(options.mask_id, verifier)


def _drafter(parts, checkpoint, serving: family.Serving) -> family.Made:
  one = parts['drafter']
  params = drafter.make_params(
    one.config.model,
    network.whole(family.cast(one, checkpoint), checkpoint.params),
    np.arange(one.config.vocab),
    one.config.vocab,
  )
  return published.of_model(one.config.model, serving), params


def _describe(found):
  return {
    'kind': 'masked language model',
    'mask_id': None if found.mask_id < 0 else found.mask_id,
    'shifted': found.shifted,
  }


FAMILY = family.Family(
  networks={
    'drafter': family.Network(
      sizes=_sizes,
      config=network.AdaptedConfig,
      initial=network.initial,
      from_verifier=network.initial_from_verifier,
      training=f'{__package__}.training',
    )
  },
  drafter=_drafter,
  readers=formats.READERS,
  architectures=formats.ARCHITECTURES,
  published=published.drafter,
  shapes=tuple(published.SHAPES),
  shape=published.of_shape,
  describe=_describe,
)
