"""From a config to what of a drafter is trained, and what it starts from."""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import scores
from specdiff_jax.models import adapters
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import groups
from specdiff_jax.training import distill
from specdiff_jax.training import objective as objective_lib
from specdiff_jax.training import trainable_subset

Config = groups.Training
_LORA = r'^lora/'  # the adapters among the params that are trained
_HEAD = r'^head/'


class Tuning(NamedTuple):
  """A drafter as it is trained, whole or in part."""

  network: drafter_file.Config
  # (network, key, verifier's params, start) -> params
  initial: Callable[..., Any]
  start: Any = ()  # params of the drafter that it starts from
  vocab: np.ndarray | None = None  # of the drafter that it starts from
  trained: str = ''  # expression of the names of what is trained; '': all
  # Of the params that are trained to the drafter's own: when all is done, and
  # in every step, where what is held has no gradient.
  finished: Callable[[Any], Any] = lambda params: params
  viewed: Callable[[Any], Any] = lambda params: params
  head: heads.Head | None = None  # which is trained in place of the drafter
  drafter: str = ''  # fingerprint of that drafter
  seen: frozenset[str] = frozenset()  # prompts of what it starts from

  def student(self, score: scores.Score) -> distill.Student:
    """Returns the drafter, scored by the params that are trained."""
    if self.head:
      score = heads.score_of(self.head, score)
    return distill.Student(
      self.network,
      self.initial,
      lambda params, *rest: score(self.viewed(params), *rest),
      self.finished,
      self.vocab,
      self.head,
      {'drafter': self.drafter} if self.head else {},
      self.seen,
      self.start,
    )

  def objective(
    self, objective: objective_lib.Objective
  ) -> objective_lib.Objective:
    """Returns the objective of the params that are trained."""
    whole = objective.whole
    if whole is None:
      return objective
    return dataclasses.replace(
      objective, whole=lambda params, *rest: whole(self.viewed(params), *rest)
    )


def masks(config: Config) -> bool:
  """Returns whether what is trained reads config.masked_lm.mask_id."""
  return hasattr(registry.options(config.network.kind), 'mask_id')


def check(config: Config) -> None:
  """Raises InputError on settings that no part could work with."""
  mask_id = config.masked_lm.mask_id
  if masks(config) and not config.start_from and mask_id < 0:
    raise errors.InputError(
      f'config.masked_lm.mask_id is {mask_id}, but it has to be at least 0.'
    )
  if config.head_kind:
    _check_head(config)
  if config.new_vocab and not config.start_from:
    raise errors.InputError(
      f'config.new_vocab is {config.new_vocab}, but config.start_from is empty: '
      'a new drafter has config.network.vocab tokens.'
    )
  try:
    re.compile(config.train_only)
  except re.error as error:
    raise errors.InputError(
      f'config.train_only is {config.train_only!r}, which is not a regular '
      f'expression ({error}); correct it.'
    ) from error


def _check_head(config: Config) -> None:
  """Raises InputError where no head could be trained."""
  told = f'config.head_kind is {config.head_kind!r}'
  if not config.start_from:
    raise errors.InputError(
      f'{told}, but config.start_from is empty: give the drafter that the head '
      'is to be trained on.'
    )
  for name in ('lora_rank', 'train_only', 'new_vocab'):
    if value := getattr(config, name):
      raise errors.InputError(
        f'{told} and config.{name} is {value!r}, but with a head all of it and '
        'nothing else is trained; leave one of them out.'
      )
  kinds = build_drafters.heads_go_with()
  if config.network.kind not in kinds:
    raise errors.InputError(
      f'{told}, but a drafter of kind {config.network.kind!r} takes no head: '
      f'network.kind has to be one of {", ".join(kinds)}.'
    )


def make(config: Config, checkpoint: weights.Checkpoint) -> Tuning:
  """Returns what is trained, of a checked config and a verifier."""
  if config.start_from:
    network, params, vocab = _started(config, checkpoint)
    if config.new_vocab:
      network, vocab = _of_vocab(network, config, checkpoint), None
    initial = lambda network, key, verifier, start: start
    seen = drafter_file.trained_on(build_drafters.shipped(config.start_from))
    whole = Tuning(network, initial, params, vocab, seen=seen)
    if config.head_kind:
      assert vocab is not None  # no new one with a head: `_check_head`
      one = family.Trained(network, params, vocab, config.start_from)
      return _with_head(whole, config, one)
  else:
    network = build_drafters.sizes(config, checkpoint)
    made = registry.network(config.network.kind).from_verifier
    initial = lambda network, key, verifier, start: made(network, key, verifier)
    whole = Tuning(network, initial)
  if config.lora_rank:
    chosen = _chosen(config.train_only, network, 'matrix', 2)
    return _with_adapters(whole, config.lora_rank, chosen)
  if config.train_only:
    _chosen(config.train_only, network, 'parameter', 0)
    return whole._replace(
      trained=config.train_only,
      viewed=lambda params: trainable_subset.held(params, config.train_only),
    )
  return whole


def _started(config: Config, checkpoint):
  """Returns network, params and draft vocabulary of config.start_from."""
  network, params, vocab = drafter_file.load(
    build_drafters.shipped(config.start_from),
    checkpoint,
    registry.network(config.network.kind).config,
  )
  gamma = getattr(network, 'gamma', config.gamma)
  if gamma != config.gamma:
    raise errors.InputError(
      f'config.gamma is {config.gamma}, but the drafter {config.start_from} '
      f'drafts {gamma} tokens at once. Give {gamma}.'
    )
  return (
    network,
    jax.tree.map(lambda x: np.asarray(x, np.float32), params),
    (np.asarray(vocab)),
  )


def _of_vocab(network: drafter_file.Config, config: Config, checkpoint):
  """Returns the network with room for another draft vocabulary."""
  size, most = config.new_vocab, checkpoint.config.vocab_size
  if size > most:
    raise errors.InputError(
      f'config.new_vocab is {size}, but the verifier has {most} tokens.'
    )
  one: Any = network
  with_vocab = functools.partial(dataclasses.replace, one)
  free = 'vocab' in {field.name for field in dataclasses.fields(one)} and (
    with_vocab(vocab=network.vocab + 1).shapes() == network.shapes()
  )
  if not free:
    raise errors.InputError(
      f'config.new_vocab is {size}, but the drafter {config.start_from} has '
      f'weights for each of its {network.vocab} tokens; leave it out, or train '
      'a new drafter.'
    )
  return with_vocab(vocab=size)


def _chosen(
  pattern: str, network: drafter_file.Config, kind: str, rank: int
) -> list[str]:
  """Returns the names that the pattern is found in; there have to be some."""
  names = adapters.names(network.shapes(), rank)
  found = [name for name in names if re.search(pattern, name)]
  if not found:
    raise errors.InputError(
      f'config.train_only is {pattern!r}, which is found in the name of no '
      f'{kind} of the drafter: {", ".join(names)}.'
    )
  return found


def _with_head(whole: Tuning, config: Config, one: family.Trained) -> Tuning:
  """Trains a new head, and of the drafter nothing."""
  sizes = one.config
  head = (heads.KINDS | heads.CONFIDENCES)[config.head_kind](
    config.head_rank, sizes.vocab, sizes.verifier
  )

  def initial(network, key, verifier, start):
    drafter = whole.initial(network, key, verifier, start)
    return {'drafter': drafter, 'head': head.initial(key)}

  return whole._replace(
    initial=initial,
    trained=_HEAD,
    finished=lambda params: params['head'],
    viewed=lambda params: trainable_subset.held(params, _HEAD),
    head=head,
    drafter=heads.fingerprint(one),
  )


def _with_adapters(whole: Tuning, rank: int, chosen: list[str]) -> Tuning:
  """Trains adapters of the matrices that are chosen."""

  def initial(network, key, verifier, start):
    params = whole.initial(network, key, verifier, start)
    new = adapters.initial(params, chosen, rank, jax.random.fold_in(key, 1))
    return {'base': params, 'lora': new}

  def finished(params):
    return adapters.merged(params['base'], params['lora'])

  return whole._replace(
    initial=initial,
    trained=_LORA,
    finished=finished,
    viewed=lambda params: finished(trainable_subset.held(params, _LORA)),
  )
