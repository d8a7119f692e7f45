"""The family of SpecDiff-2's drafters: one network, which fills windows."""

import dataclasses

from specdiff_jax.core import errors
from specdiff_jax.core import fields
from specdiff_jax.core import limits
from specdiff_jax.drafters import family
from specdiff_jax.drafters.diffusion import drafter
from specdiff_jax.drafters.diffusion import network
from specdiff_jax.models import config as config_lib


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of a new network."""

  layers: int = family.layers()
  features: tuple[int, ...] = family.option(
    (), 'verifier layers that it reads; (): the one below its own and the last'
  )
  trunk: int = family.option(
    1024, 'hidden width of the MLP that starts the slots', low=1, high=1 << 20
  )
  vocab: int = family.vocab()
  ngram: int = family.option(
    3, 'longest match of its hint; 0: none', low=0, high=limits.MOST_NGRAM
  )

  def __post_init__(self):
    fields.check(self)

  def sizes(
    self, gamma: int, verifier: config_lib.TransformerConfig
  ) -> network.DrafterConfig:
    """Returns the sizes of a network for this verifier; see `family.Options`."""
    most = verifier.layers
    if not 1 <= self.layers < most:
      raise errors.InputError(
        f'layers is {self.layers}, but a drafter starts from the last '
        f"of the verifier's {most} layers: give 1 to {most - 1}."
      )
    features = tuple(self.features) or (most - self.layers - 1, most - 1)
    if not all(0 <= layer < most for layer in features):
      raise errors.InputError(
        f'features is {features}, but the layers of the verifier are '
        f'0 to {most - 1}.'
      )
    vocab = min(self.vocab, verifier.vocab_size)
    own = dataclasses.replace(self, features=features, vocab=vocab)
    return network.DrafterConfig(
      gamma=gamma, verifier=verifier, **dataclasses.asdict(own)
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
      options=Options,
      config=network.DrafterConfig,
      initial=network.initial,
      from_verifier=network.initial_from_verifier,
      training=f'{__package__}.training',
      remat=True,
    )
  },
  drafter=_drafter,
  by_output=('trunk', 'fuse', 'hint'),
  by_input=('expand',),
  sharding=((r'slot_(shift|scale)$', (None, 'model')),),
)
