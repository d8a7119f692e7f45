"""From a config to a loss: a line in `LOSSES`."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp

from specdiff_jax.core import errors
from specdiff_jax.drafters import registry
from specdiff_jax.losses import divergences
from specdiff_jax.losses import revealed
from specdiff_jax.losses import windows
from specdiff_jax.recipes import systems
from specdiff_jax.training import objective

Config = systems.Config


@dataclasses.dataclass(frozen=True)
class Choice:
  """A loss by its name in a config.

  Attributes:
    make: the loss of a config.
    reads: fields of the config that decide it, beside those of any run.
    shows: windows are partly shown to the drafter.
    drawn: it is an expectation over trajectories of the law it reads.
  """

  make: Callable[[Config], objective.Loss]
  reads: tuple[str, ...] = ()
  shows: bool = False
  drawn: bool = False


def _plain(function, **fields: str):
  """Returns a choice of a loss of targets; fields are keyword = field name."""

  def make(config):
    options = {name: config[field] for name, field in fields.items()}
    return objective.Loss(lambda s, step: function(s.log_q, s.valid, **options))

  return Choice(make, tuple(fields.values()))


def _streak(config: Config) -> objective.Loss:
  """Cross-entropy for a part of the run, then Box-Cox streak."""

  def value(s, step):
    return windows.warmed_streak(
      s.log_q, s.valid, decay=config.decay, **_course(config, step)
    )

  return objective.Loss(value)


def _course(config: Config, step) -> dict[str, Any]:
  """Returns ce_weight and beta at a step."""
  warm = round(config.ce_fraction * config.steps)
  return {
    'ce_weight': windows.warmup_weight(step, warm),
    'beta': windows.anneal(step, warm, config.steps, config.beta_end),
  }


def _warmed(config: Config, function, **law) -> objective.Loss:
  """Cross-entropy for a part of the run, then `function(slots, beta)`."""

  def value(s, step):
    course = _course(config, step)
    ce, _ = windows.decayed_ce(s.log_q, s.valid, config.decay)
    loss, metrics = function(s, course['beta'])
    mixed = course['ce_weight'] * ce + (1 - course['ce_weight']) * loss
    return mixed, metrics | course | {'ce': ce}

  return objective.Loss(value, law, config.law_temperature)


def _soft_streak(config: Config) -> objective.Loss:
  return _warmed(
    config,
    lambda s, beta: divergences.soft_streak_loss(
      s.log_q, s.law['agreement'], s.valid, beta
    ),
    agreement=divergences.log_agreement,
  )


def _rejection(config: Config) -> objective.Loss:
  return _warmed(
    config,
    lambda s, beta: divergences.rejection_loss(
      s.log_q, s.log_p, s.valid, beta, s.law['overlap']
    ),
    overlap=divergences.log_overlap,
  )


def _divergence(function, config: Config) -> objective.Loss:
  return objective.Loss(
    lambda s, step: divergences.distillation(s.law['d'], s.log_q, s.valid),
    {'d': function},
    config.law_temperature,
  )


def _tv(config: Config) -> objective.Loss:
  return _warmed(
    config,
    lambda s, beta: divergences.distillation(s.law['tv'], s.log_q, s.valid),
    tv=divergences.tv,
  )


def _lk(config: Config) -> objective.Loss:
  def value(s, step):
    overlap = jnp.exp(s.law['overlap'])
    return divergences.lk_loss(
      s.law['kl'], overlap, s.log_q, s.valid, config.lk_eta
    )

  statistics = {
    'kl': divergences.forward_kl,
    'overlap': divergences.log_overlap,
  }
  return objective.Loss(value, statistics, config.law_temperature)


def _variable_prefix(config: Config) -> objective.Loss:
  return objective.Loss(
    lambda s, step: revealed.variable_prefix(
      s.log_q, s.valid, s.shown.mask, config.decay
    ),
    show=functools.partial(revealed.draw_prefixes, base=config.prefix_base),
  )


def _elbo(config: Config) -> objective.Loss:
  schedule = revealed.SCHEDULES[config.noise_schedule]
  return objective.Loss(
    lambda s, step: revealed.elbo(s.log_q, s.valid, s.shown),
    show=functools.partial(revealed.draw_masks, schedule=schedule),
  )


_LAW = ('law_temperature', 'stored_law')
LOSSES: Mapping[str, Choice] = {
  'streak': Choice(_streak),
  'soft_streak': Choice(_soft_streak, _LAW, drawn=True),
  'dpace': _plain(windows.dpace, smoothing='dpace_smoothing'),
  'ce': _plain(functools.partial(windows.decayed_ce, decay=math.inf)),
  'decayed_ce': _plain(windows.decayed_ce, decay='decay'),
  'ce_streak': _plain(windows.ce_streak),
  'kl': Choice(functools.partial(_divergence, divergences.forward_kl), _LAW),
  'reverse_kl': Choice(
    functools.partial(_divergence, divergences.reverse_kl), _LAW
  ),
  'js': Choice(functools.partial(_divergence, divergences.js), _LAW),
  'tv': Choice(_tv, _LAW),
  'lk': Choice(_lk, _LAW + ('lk_eta',)),
  'rejection': Choice(_rejection, _LAW, drawn=True),
  'variable_prefix': Choice(_variable_prefix, ('prefix_base',), shows=True),
  'elbo': Choice(_elbo, ('noise_schedule', 'anneal_fraction'), shows=True),
}

# Fields that losses read: where they have to lie, in words and as a check.
_BOUNDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
  'dpace_smoothing': ('from 0 to below 1', lambda x: 0 <= x < 1),
  'lk_eta': ('at least 0', lambda x: x >= 0),
  'prefix_base': ('above 0 and at most 1', lambda x: 0 < x <= 1),
  'law_temperature': ('above 0', lambda x: x > 0),
  'anneal_fraction': ('from 0 to 1', lambda x: 0 <= x <= 1),
  'served': ('from 0 to 1', lambda x: 0 <= x <= 1),
  'ce_fraction': ('from 0 to 1', lambda x: 0 <= x <= 1),
}


def check(config: Config) -> None:
  """Raises InputError on a loss that does not exist or does not fit."""
  systems.one_of('loss', config.loss, LOSSES)
  systems.one_of('noise_schedule', config.noise_schedule, revealed.SCHEDULES)
  systems.least('vocab_block', config.vocab_block, 0)
  for name, (words, fits) in _BOUNDS.items():
    if not fits(config[name]):
      raise errors.InputError(
        f'config.{name} is {config[name]}, but it has to be {words}.'
      )
  network = config.network
  fits = network.kind == 'diffusion' and network.ngram
  fits |= network.kind == 'masked_lm' and config.loss == 'elbo'
  if LOSSES[config.loss].shows and not fits:
    raise errors.InputError(
      f'config.loss is {config.loss!r}, which shows the drafter a part of '
      f'its window, but a drafter of kind {network.kind!r} with ngram '
      f'{network.ngram} has no input for that. Take network.kind=diffusion '
      'and network.ngram of at least 1, or another loss.'
    )
  if config.served:
    _check_served(config)


def _check_served(config: Config) -> None:
  if LOSSES[config.loss].shows:
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

  That is, where it is no expectation over them, or where they lack the law
  that it is to read.
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
  if LOSSES[config.loss].drawn and drawn != wanted:
    raise errors.InputError(
      f'config.loss is {config.loss!r}, an expectation over what the '
      'verifier draws at config.law_temperature '
      f'{config.law_temperature} without top_k and top_p, but the '
      f'trajectories in {where} were collected with temperature, top_k, '
      f'top_p = {drawn}. Collect them so, give their temperature (if above '
      '0), or take another loss.'
    )


def stored_law(config: Config) -> bool:
  """Returns whether the loss reads the law that `collect` stored."""
  return bool(config.stored_law and make(config).law)


def make(config: Config, network: Any = None) -> objective.Loss:
  """Returns the loss of a checked config, for a drafter of these sizes.

  The ELBO is taken of whole texts where the drafter's family has that.
  """
  loss = LOSSES[config.loss].make(config)
  loss = dataclasses.replace(loss, served=config.served)
  if network is None or not loss.show:
    return loss
  whole_elbo = registry.network(network.kind).whole_elbo
  if whole_elbo is None:
    return loss
  whole = whole_elbo(
    network,
    revealed.SCHEDULES[config.noise_schedule],
    round(config.anneal_fraction * config.steps),
  )
  return dataclasses.replace(loss, whole=whole)
