"""From a config to what a run minimises."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import fields
from specdiff_jax.losses import making
from specdiff_jax.losses import revealed
from specdiff_jax.models import adapted_network
from specdiff_jax.recipes import systems
from specdiff_jax.training import adaptation
from specdiff_jax.training import objective

Config = systems.Config


def reads(name: str) -> tuple[str, ...]:
  """Returns the fields of a loss, its hyper-parameters."""
  options = dataclasses.fields(making.LOSSES[name].options)
  return tuple(field.name for field in options)


def _options(config: Config, name: str) -> Any:
  """Returns the hyper-parameters of a loss."""
  return making.LOSSES[name].options(**{n: config[n] for n in reads(name)})


def check(config: Config) -> None:
  """Raises InputError on a loss that does not exist or does not fit."""
  systems.one_of('loss', config.loss, making.LOSSES)
  systems.least('vocab_block', config.vocab_block, 0)
  for name in making.LOSSES:
    try:
      fields.check(_options(config, name))
    except errors.InputError as error:
      raise errors.InputError(f'config.{error}') from error
  if not 0 <= config.served <= 1:
    raise errors.InputError(
      f'config.served is {config.served}, but it has to be from 0 to 1.'
    )
  network = config.network
  fits = network.kind == 'diffusion' and network.ngram
  fits |= network.kind == 'masked_lm' and config.loss == 'elbo'
  if making.LOSSES[config.loss].show and not fits:
    raise errors.InputError(
      f'config.loss is {config.loss!r}, which shows the drafter a part of '
      f'its window, but a drafter of kind {network.kind!r} with ngram '
      f'{network.ngram} has no input for that. Take network.kind=diffusion '
      'and network.ngram of at least 1, or another loss.'
    )
  if config.served:
    _check_served(config)


def _check_served(config: Config) -> None:
  if making.LOSSES[config.loss].show:
    raise errors.InputError(
      f'config.served is {config.served}, but config.loss is '
      f'{config.loss!r}, whose drafter sees a part of its window, which in '
      'serving it does not. Leave served at 0, or take another loss.'
    )
  if config.windows == 1:
    raise errors.InputError(
      f'config.served is {config.served}, but config.windows is 1, and a '
      "row's first window is always visited. Raise windows, best to "
      'max_new_tokens of `collect`, or leave served at 0.'
    )


def check_data(config: Config, header: Mapping[str, Any], where: str) -> None:
  """Raises InputError on trajectories that the loss cannot be taken of.

  That is, where it is no expectation over them, or where they lack the
  distribution that it is to read.
  """
  if stored_law(config):
    found = header.get('store_top_k', 0), header.get('law_temperature')
    if not found[0] or found[1] != config.law_temperature:
      raise errors.InputError(
        'config.stored_law is set and config.law_temperature is '
        f'{config.law_temperature}, but the trajectories in {where} were '
        'collected with store_top_k, law_temperature = '
        f'{found}. Collect them with config.store_top_k, give their '
        'temperature, or leave stored_law out.'
      )
  drawn = tuple(header.get(name) for name in ('temperature', 'top_k', 'top_p'))
  wanted = (config.law_temperature, 0, 1)
  if making.LOSSES[config.loss].drawn and drawn != wanted:
    raise errors.InputError(
      f'config.loss is {config.loss!r}, an expectation over what the '
      'verifier draws at config.law_temperature '
      f'{config.law_temperature} without top_k and top_p, but the '
      f'trajectories in {where} were collected with temperature, top_k, '
      f'top_p = {drawn}. Collect them so, give their temperature (if above '
      '0), or take another loss.'
    )


def stored_law(config: Config) -> bool:
  """Returns whether the loss reads the distribution that `collect` stored."""
  return bool(config.stored_law and making.LOSSES[config.loss].statistics)


def make(config: Config, network: Any = None) -> objective.Objective:
  """Returns the objective of a checked config, for a drafter of these sizes.

  That of a masked language model is taken of whole texts where it is the ELBO.
  """
  name = config.loss
  options = _options(config, name)
  whole = None
  adapted = isinstance(network, adapted_network.AdaptedConfig)
  if adapted and making.LOSSES[name].show:
    whole = adaptation.whole_elbo(
      network,
      revealed.SCHEDULES[options.noise_schedule],
      round(options.anneal_fraction * config.steps),
    )
  return objective.Objective(
    making.make(name, options, config.steps),
    config.vocab_block,
    config.accumulate,
    config.served,
    whole,
    stored_law(config),
  )
