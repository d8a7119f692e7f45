"""From a recipe to a loss: a line in `LOSSES`."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.core import fields as field_lib
from specdiff_jax.drafters import registry
from specdiff_jax.losses import divergences
from specdiff_jax.losses import revealed
from specdiff_jax.losses import windows
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.training import objective


@dataclasses.dataclass(frozen=True)
class Choice:
  """A loss by its name in a recipe.

  Attributes:
    make: (options of the loss, steps of the run) -> the loss.
    shows: windows are partly shown to the drafter.
    drawn: it is an expectation over trajectories of the law it reads.
  """

  make: Callable[[Any, int], objective.Loss]
  shows: bool = False
  drawn: bool = False


def _plain(function, **fields: str):
  """Returns a choice of a loss of targets; fields are keyword = field name."""

  def make(options, steps):
    del steps
    given = {name: getattr(options, field) for name, field in fields.items()}
    return objective.Loss(lambda s, step: function(s.log_q, s.valid, **given))

  return Choice(make)


def _streak(options, steps) -> objective.Loss:
  """Cross-entropy for a part of the run, then Box-Cox streak."""

  def value(s, step):
    return windows.warmed_streak(
      s.log_q, s.valid, decay=options.decay, **_course(options, steps, step)
    )

  return objective.Loss(value)


def _course(options, steps: int, step) -> dict[str, Any]:
  """Returns ce_weight and beta at a step."""
  warm = round(options.ce_fraction * steps)
  return {
    'ce_weight': windows.warmup_weight(step, warm),
    'beta': windows.anneal(step, warm, steps, options.beta_end),
  }


def _warmed(options, steps: int, function, **law) -> objective.Loss:
  """Cross-entropy for a part of the run, then `function(slots, beta)`."""

  def value(s, step):
    course = _course(options, steps, step)
    ce, _ = windows.decayed_ce(s.log_q, s.valid, options.decay)
    loss, metrics = function(s, course['beta'])
    mixed = course['ce_weight'] * ce + (1 - course['ce_weight']) * loss
    return mixed, metrics | course | {'ce': ce}

  return objective.Loss(value, law, options.law_temperature)


def _soft_streak(options, steps) -> objective.Loss:
  return _warmed(
    options,
    steps,
    lambda s, beta: divergences.soft_streak_loss(
      s.log_q, s.law['agreement'], s.valid, beta
    ),
    agreement=divergences.log_agreement,
  )


def _rejection(options, steps) -> objective.Loss:
  return _warmed(
    options,
    steps,
    lambda s, beta: divergences.rejection_loss(
      s.log_q, s.log_p, s.valid, beta, s.law['overlap']
    ),
    overlap=divergences.log_overlap,
  )


def _divergence(function, options, steps) -> objective.Loss:
  return objective.Loss(
    lambda s, step: divergences.distillation(s.law['d'], s.log_q, s.valid),
    {'d': function},
    options.law_temperature,
  )


def _tv(options, steps) -> objective.Loss:
  return _warmed(
    options,
    steps,
    lambda s, beta: divergences.distillation(s.law['tv'], s.log_q, s.valid),
    tv=divergences.tv,
  )


def _lk(options, steps) -> objective.Loss:
  def value(s, step):
    overlap = jnp.exp(s.law['overlap'])
    return divergences.lk_loss(
      s.law['kl'], overlap, s.log_q, s.valid, options.lk_eta
    )

  statistics = {
    'kl': divergences.forward_kl,
    'overlap': divergences.log_overlap,
  }
  return objective.Loss(value, statistics, options.law_temperature)


def _variable_prefix(options, steps) -> objective.Loss:
  return objective.Loss(
    lambda s, step: revealed.variable_prefix(
      s.log_q, s.valid, s.shown.mask, options.decay
    ),
    show=functools.partial(revealed.draw_prefixes, base=options.prefix_base),
  )


def _elbo(options, steps) -> objective.Loss:
  schedule = revealed.SCHEDULES[options.noise_schedule]
  return objective.Loss(
    lambda s, step: revealed.elbo(s.log_q, s.valid, s.shown),
    show=functools.partial(revealed.draw_masks, schedule=schedule),
  )


LOSSES: Mapping[str, Choice] = {
  'streak': Choice(_streak),
  'soft_streak': Choice(_soft_streak, drawn=True),
  'dpace': _plain(windows.dpace, smoothing='dpace_smoothing'),
  'ce': _plain(functools.partial(windows.decayed_ce, decay=math.inf)),
  'decayed_ce': _plain(windows.decayed_ce, decay='decay'),
  'ce_streak': _plain(windows.ce_streak),
  'kl': Choice(functools.partial(_divergence, divergences.forward_kl)),
  'reverse_kl': Choice(functools.partial(_divergence, divergences.reverse_kl)),
  'js': Choice(functools.partial(_divergence, divergences.js)),
  'tv': Choice(_tv),
  'lk': Choice(_lk),
  'rejection': Choice(_rejection, drawn=True),
  'variable_prefix': Choice(_variable_prefix, shows=True),
  'elbo': Choice(_elbo, shows=True),
}


@fields.rim()
def check(recipe: recipe_lib.Recipe) -> None:
  """Raises InputError on a loss that does not exist or does not fit."""
  for group in (recipe.objective, recipe.memory, *recipe.losses.values()):
    field_lib.check(group)
  name, network = recipe.objective.loss, recipe.training.network
  fits = network.kind == 'diffusion' and network.ngram
  fits |= network.kind == 'masked_lm' and name == 'elbo'
  if LOSSES[name].shows and not fits:
    raise errors.InputError(
      f'config.loss is {name!r}, which shows the drafter a part of '
      f'its window, but a drafter of kind {network.kind!r} with ngram '
      f'{network.ngram} has no input for that. Take network.kind=diffusion '
      'and network.ngram of at least 1, or another loss.'
    )
  if recipe.objective.served:
    _check_served(recipe)


def _check_served(recipe: recipe_lib.Recipe) -> None:
  served, name = recipe.objective.served, recipe.objective.loss
  if LOSSES[name].shows:
    raise errors.InputError(
      f'config.served is {served}, but config.loss is '
      f'{name!r}, whose drafter sees a part of its window, which in '
      'serving it does not. Leave served at 0, or take another loss.'
    )
  if recipe.training.windows == 1:
    raise errors.InputError(
      f'config.served is {served}, but config.windows is 1, and a '
      "row's first window is always visited. Raise windows, best to "
      'max_new_tokens of `collect`, or leave served at 0.'
    )


def check_data(
  recipe: recipe_lib.Recipe, header: Mapping[str, Any], where: str
) -> None:
  """Raises InputError on trajectories that the loss cannot be taken of.

  That is, where it is no expectation over them, or where they lack the distribution
  that it is to read.
  """
  name, options = recipe.objective.loss, recipe.loss
  if stored_law(recipe):
    found = header.get('store_top_k', 0), header.get('law_temperature')
    if not found[0] or found[1] != options.law_temperature:
      raise errors.InputError(
        'config.stored_law is set and config.law_temperature is '
        f'{options.law_temperature}, but the trajectories in {where} were '
        'collected with store_top_k, law_temperature = '
        f'{found}. Collect them with config.store_top_k, give their '
        'temperature, or leave stored_law out.'
      )
  drawn = tuple(header.get(name) for name in ('temperature', 'top_k', 'top_p'))
  if LOSSES[name].drawn and drawn != (options.law_temperature, 0, 1):
    raise errors.InputError(
      f'config.loss is {name!r}, an expectation over what the '
      'verifier draws at config.law_temperature '
      f'{options.law_temperature} without top_k and top_p, but the '
      f'trajectories in {where} were collected with temperature, top_k, '
      f'top_p = {drawn}. Collect them so, give their temperature (if above '
      '0), or take another loss.'
    )


def stored_law(recipe: recipe_lib.Recipe) -> bool:
  """Returns whether the loss reads the distribution that `collect` stored."""
  return getattr(recipe.loss, 'stored_law', False)


def make(recipe: recipe_lib.Recipe, network: Any = None) -> objective.Loss:
  """Returns the loss of a checked recipe, for a drafter of these sizes.

  The ELBO is taken of whole texts where the drafter's family has that.
  """
  name, options = recipe.objective.loss, recipe.loss
  steps = recipe.schedule.steps
  loss = LOSSES[name].make(options, steps)
  loss = dataclasses.replace(loss, served=recipe.objective.served)
  if network is None or not loss.show:
    return loss
  whole_elbo = registry.network(network.kind).whole_elbo
  if whole_elbo is None:
    return loss
  whole = whole_elbo(
    network,
    revealed.SCHEDULES[options.noise_schedule],
    round(options.anneal_fraction * steps),
  )
  return dataclasses.replace(loss, whole=whole)
