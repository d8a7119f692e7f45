"""From a recipe to what a run minimises."""

from collections.abc import Mapping
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import fields as field_lib
from specdiff_jax.drafters import options as drafter_options
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import scores
from specdiff_jax.losses import making
from specdiff_jax.losses import revealed
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.training import objective


@fields.rim()
def check(recipe: recipe_lib.Recipe) -> None:
  """Raises InputError on a loss that does not exist or does not fit."""
  for group in (recipe.objective, recipe.memory, *recipe.losses.values()):
    field_lib.check(group)
  name = recipe.objective.loss
  if not recipe.training.start_from:  # else `make` knows the network
    _check_shown(name, recipe.training.network)
  head, own = recipe.training.head_kind, drafter_options.CONFIDENCE
  if (name == own) != (head == own):
    raise errors.InputError(
      f'config.loss is {name!r} and config.head_kind is {head!r}, but the head '
      f'{own!r} is trained with the loss {own!r}, and nothing else is. Give both, '
      'or neither.'
    )


def _check_shown(name: str, network: Any) -> None:
  """Raises InputError where a loss shows what the network cannot see."""
  ngram = getattr(network, 'ngram', 0)
  fits = network.kind == 'diffusion' and ngram
  fits |= network.kind == 'dflash'
  fits |= network.kind == 'masked_lm' and name == 'elbo'
  if making.LOSSES[name].show and not fits:
    raise errors.InputError(
      f'config.loss is {name!r}, which shows the drafter a part of '
      f'its window, but a drafter of kind {network.kind!r} with ngram '
      f'{ngram} has no input for that. Take network.kind=diffusion '
      'and network.ngram of at least 1, network.kind=dflash, or another loss.'
    )


def check_data(
  recipe: recipe_lib.Recipe, header: Mapping[str, Any], where: str
) -> None:
  """Raises InputError on trajectories that the loss cannot be taken of.

  That is, where it is no expectation over them, or where they lack the
  distribution that it is to read.
  """
  name, options = recipe.objective.loss, recipe.loss
  if reads_stored(recipe):
    found = header.get('store_top_k', 0), header.get('law_temperature')
    if not found[0] or found[1] != options.law_temperature:
      raise errors.InputError(
        'config.stored_law is set and config.law_temperature is '
        f'{options.law_temperature}, but the trajectories in {where} were '
        f'collected with store_top_k={found[0]} and law_temperature={found[1]}. '
        'Collect them with config.store_top_k, give their temperature, or set '
        'stored_law=False.'
      )
  drawn = tuple(header.get(name) for name in ('temperature', 'top_k', 'top_p'))
  if making.LOSSES[name].drawn and drawn != (options.law_temperature, 0, 1):
    raise errors.InputError(
      f'config.loss is {name!r}, an expectation over what the '
      'verifier draws at config.law_temperature '
      f'{options.law_temperature} without top_k and top_p, but the '
      f'trajectories in {where} were collected with temperature, top_k, '
      f'top_p = {drawn}. Collect them so, give their temperature (if above '
      '0), or take another loss.'
    )


def reads_stored(recipe: recipe_lib.Recipe) -> bool:
  """Returns whether the loss reads the distribution that `collect` stored."""
  return getattr(recipe.loss, 'stored_law', False)


def make(recipe: recipe_lib.Recipe, network: Any = None) -> objective.Objective:
  """Returns the objective of a checked recipe, for a drafter of these sizes.

  The ELBO is taken of whole texts where the drafter's family has that.
  """
  name, options = recipe.objective.loss, recipe.loss
  if network is not None:
    _check_shown(name, network)
  steps, memory = recipe.schedule.steps, recipe.memory
  whole = network and registry.network(network.kind).whole_elbo
  if whole and making.LOSSES[name].show:
    whole = whole(
      network,
      revealed.SCHEDULES[options.noise_schedule],
      round(options.anneal_fraction * steps),
    )
    whole = scores.in_dtype(whole, memory.train_dtype)
  else:
    whole = None
  return objective.Objective(
    making.make(name, options, steps),
    memory.vocab_block,
    memory.accumulate,
    whole,
    reads_stored(recipe),
  )
