"""The family of DFlash drafters, published and trained ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import published as published_lib
from specdiff_jax.drafters.dflash import drafter
from specdiff_jax.drafters.dflash import format as format_lib
from specdiff_jax.drafters.dflash import network
from specdiff_jax.drafters.dflash import options as options_lib
from specdiff_jax.drafters.dflash import speculators
from specdiff_jax.drafters.dflash import variants
from specdiff_jax.models import config as config_lib

_KEEPS_ALL = 'a DFlash drafter keeps all its keys'


def _sizes(
  options: options_lib.Options,
  gamma: int,
  verifier: config_lib.TransformerConfig,
) -> network.TrainedConfig:
  most = verifier.layers
  if not 1 <= options.layers <= most:
    raise errors.InputError(
      f'layers is {options.layers}, but a drafter starts from the last '
      f"of the verifier's {most} layers: give 1 to {most}."
    )
  usual = network.published_features(most)
  features = family.read_layers(options.features, usual, most)
  if not 0 <= options.mask_id < verifier.vocab_size:
    raise errors.InputError(
      f'masked_lm.mask_id is {options.mask_id}, but the tokens of the verifier '
      f'are 0 to {verifier.vocab_size - 1}; give one that no text has.'
    )
  return network.TrainedConfig(
    gamma=gamma,
    layers=options.layers,
    features=features,
    mask_id=options.mask_id,
    vocab=min(options.vocab, verifier.vocab_size),
    window=options.window,
    verifier=verifier,
    taps=options.conv,
    from_anchor=int(options.from_anchor),
  )


def _drafter(parts, checkpoint, serving: family.Serving) -> family.Made:
  one = parts['drafter']
  family.no_context_window(serving, one.source, _KEEPS_ALL)
  made = drafter.Block(config=one.config.run_as, **serving.window)
  if one.config.vocab == checkpoint.config.vocab_size:
    return made, family.DrafterParams(family.cast(one, checkpoint))
  return made, family.with_head(one, checkpoint)


def _published(
  folder: str,
  published: published_lib.Published,
  params: Any,
  checkpoint: weights.Checkpoint,
  serving: family.Serving,
) -> family.Made:
  """Returns the drafter; InputError where it is another verifier's."""
  sizes, model = published.sizes, checkpoint.config
  family.same_verifier(f'{folder}: the DFlash drafter', sizes, checkpoint)
  if sizes.verifier_layers not in (0, model.layers):
    raise errors.InputError(
      f'{folder}: the DFlash drafter was made for a verifier of '
      f'{sizes.verifier_layers} layers (num_target_layers), but '
      f'{checkpoint.source} has {model.layers}. Take the drafter of this '
      'verifier.'
    )
  told = format_lib.facts(folder).get('verifier', checkpoint.fingerprint)
  if told != checkpoint.fingerprint:
    raise errors.InputError(
      f'{folder}: the DFlash drafter was trained for the verifier with the '
      f'fingerprint {printing.short(told)}, but {checkpoint.source} has '
      f'{checkpoint.fingerprint}. Take the drafter of this verifier.'
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
  family.no_context_window(serving, folder, _KEEPS_ALL)
  edges = None
  if sizes.head:
    params = dict(params)
    edges = params.pop('head')
    strategy = heads.with_own_head(serving.strategy, sizes.head)
    serving = dataclasses.replace(serving, strategy=strategy)
  network = dataclasses.replace(sizes, head=None)
  one = drafter.Block(config=network, **serving.window)
  return one, family.DrafterParams(params, edges=edges)


def _shape(
  name: str, checkpoint: weights.Checkpoint, serving: family.Serving
) -> family.Made:
  """Returns a drafter of zeros, of the shape that DFlash has for a verifier.

  Five layers as wide as the verifier's (half of its own, where they are few),
  five of its layers read; a block of gamma tokens and the last committed one.
  """
  verifier = checkpoint.config
  if not isinstance(verifier, config_lib.TransformerConfig):
    raise errors.InputError(
      f'preset:{name} is a drafter for transformers of the Llama and Qwen '
      f'families, not for {checkpoint.source}; take another verifier.'
    )
  sizes = network.TrainedConfig(
    gamma=serving.gamma,
    layers=max(1, min(5, verifier.layers // 2)),
    features=network.published_features(verifier.layers),
    mask_id=verifier.vocab_size - 1,
    vocab=verifier.vocab_size,
    window=0,
    verifier=verifier,
  )
  params = jax.tree.map(
    lambda x: jnp.zeros(x.shape, checkpoint.dtype), sizes.shapes()
  )
  one = drafter.Block(config=sizes.run_as, **serving.window)
  return one, family.DrafterParams(params)


def _describe(found: published_lib.Published) -> dict[str, Any]:
  told = {'kind': 'DFlash', 'mask_id': found.mask_id}
  if found.sizes.head:
    told['head'] = found.sizes.head.kind
  return told


def _read(file: str, raw: published_lib.Raw) -> published_lib.Published:
  """Reads either form: both know the same architectures."""
  reader = speculators if format_lib.speculators_type(raw) else format_lib
  return reader.read(file, raw)


FAMILY = family.Family(
  networks={
    'drafter': family.Network(
      sizes=_sizes,
      config=network.TrainedConfig,
      initial=network.initial,
      from_verifier=network.initial_from_verifier,
      training=f'{__package__}.training',
      remat=True,
    )
  },
  drafter=_drafter,
  readers={'dflash': _read, 'speculators': speculators.read},
  architectures={
    **dict.fromkeys(variants.ARCHITECTURES.values(), 'dflash'),
    'DFlashSpeculator': 'speculators',
    'DSparkSpeculator': 'speculators',
  },
  source=format_lib.trained,
  published=_published,
  shapes=('dflash',),
  shape=_shape,
  describe=_describe,
  heads=True,
  by_output=('fuse',),
)
