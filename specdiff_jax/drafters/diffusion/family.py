"""The family of SpecDiff-2's drafters: one network, which fills windows."""

from specdiff_jax.core import errors
from specdiff_jax.drafters import family
from specdiff_jax.drafters.diffusion import drafter
from specdiff_jax.drafters.diffusion import network
from specdiff_jax.drafters.diffusion import options as options_lib
from specdiff_jax.models import config as config_lib


def _sizes(
  options: options_lib.Options,
  gamma: int,
  verifier: config_lib.TransformerConfig,
) -> network.DrafterConfig:
  most = verifier.layers
  if not 1 <= options.layers < most:
    raise errors.InputError(
      f'layers is {options.layers}, but a drafter starts from the last '
      f"of the verifier's {most} layers: give 1 to {most - 1}."
    )
  usual = most - options.layers - 1, most - 1
  features = family.read_layers(options.features, usual, most)
  return network.DrafterConfig(
    gamma=gamma,
    verifier=verifier,
    layers=options.layers,
    features=features,
    trunk=options.trunk,
    vocab=min(options.vocab, verifier.vocab_size),
    ngram=options.ngram,
  )


def _drafter(parts, checkpoint, serving: family.Serving) -> family.Made:
  one = parts['drafter']
  if serving.denoising.steps > 1 and not one.config.ngram:
    raise errors.InputError(
      f'denoising_steps is {serving.denoising.steps}, but the drafter '
      f'{one.source} has no input for decided slots (its ngram is 0). Give 1.'
    )
  made = drafter.MaskedDiffusion(
    config=one.config, **serving.window, context_window=serving.context_window
  )
  return made, family.with_head(one, checkpoint)


FAMILY = family.Family(
  networks={
    'drafter': family.Network(
      sizes=_sizes,
      config=network.DrafterConfig,
      initial=network.initial,
      from_verifier=network.initial_from_verifier,
      training=f'{__package__}.training',
      remat=True,
    )
  },
  drafter=_drafter,
  heads=True,
  by_output=('trunk', 'fuse', 'hint'),
  by_input=('expand',),
  sharding=((r'slot_(shift|scale)$', (None, 'model')),),
)
