"""The family of SpS's drafters: a small causal network, token by token."""

import typing

from specdiff_jax.core import errors
from specdiff_jax.drafters import family
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.autoregressive import drafter
from specdiff_jax.drafters.autoregressive import network
from specdiff_jax.drafters.autoregressive import options as options_lib
from specdiff_jax.models import config as config_lib


def _sizes(
  options: options_lib.Options,
  gamma: int,
  verifier: config_lib.TransformerConfig,
) -> network.CausalConfig:
  del gamma  # it drafts as long as it is asked to
  start = tuple(options.start) or tuple(range(options.layers))
  if not all(0 <= layer < verifier.layers for layer in start):
    raise errors.InputError(
      f'start is {start}, but the layers of the verifier are 0 to '
      f'{verifier.layers - 1}; correct it, or layers where it is empty.'
    )
  return network.CausalConfig(
    start=start,
    vocab=min(options.vocab, verifier.vocab_size),
    verifier=verifier,
  )


def _drafter(parts, checkpoint, serving: family.Serving) -> family.Made:
  one = parts['drafter']
  made = drafter.Autoregressive(
    config=one.config,
    gamma=serving.gamma,
    # What is not drawn token by token, its system does not ask for.
    strategy=typing.cast(strategies.Chain, serving.strategy),
  )
  return made, family.with_head(one, checkpoint)


FAMILY = family.Family(
  networks={
    'drafter': family.Network(
      sizes=_sizes,
      config=network.CausalConfig,
      initial=network.initial,
      from_verifier=network.initial_from_verifier,
      training=f'{__package__}.training',
    )
  },
  drafter=_drafter,
)
