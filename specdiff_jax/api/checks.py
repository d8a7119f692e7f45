"""Kinds of arguments that are no fields of a recipe, which checks its own."""

import inspect
from typing import Any

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.core import protocols
from specdiff_jax.recipes import systems

_DRAFTER = (
    'buckets', 'max_depth', 'proposal', 'chain', 'features', 'init', 'draft',
    'observe',
)  # fmt: skip
_ADAPTIVE = 'calibrates', 'wanted', 'enter', 'forced', 'calibrated'
_RULE = ('needs', 'reads_q', 'one_chain', '__call__')


def wrong(name: str, value: Any, wanted: str) -> errors.InputError:
  """Returns the error for an argument that is not what is wanted."""
  return errors.InputError(
    f'{name} is {printing.short(value)} of type {type(value).__name__}, but it '
    f'has to be {wanted}.'
  )


def flags(**values: Any) -> None:
  """Raises InputError, which names the argument, where one is no bool."""
  for name, value in values.items():
    if not isinstance(value, bool):
      raise wrong(name, value, 'True or False')


def verifier(value: Any) -> None:
  """Raises InputError unless this is what `load_verifier` returns."""
  if not isinstance(value, weights.Checkpoint):
    raise errors.InputError(
      f'verifier is of type {type(value).__name__}, but it has to be what '
      "load_verifier returns, such as load_verifier('quickstart')."
    )


def drafter(value: Any, layers: int) -> None:
  """Raises InputError where a drafter of the caller's breaks its protocol.

  `layers` are the verifier's.
  """
  kind = type(value).__name__
  if missing := [name for name in _DRAFTER if not hasattr(value, name)]:
    raise errors.InputError(
      f'drafter is a {kind}, which lacks {", ".join(missing)} of the protocol '
      "Drafter; it has to be a path, 'random', or an object that has them."
    )
  if not value.buckets or min(value.buckets) < 1:
    raise errors.InputError(
      f'drafter is a {kind} whose buckets are {printing.short(value.buckets)}, '
      'but they have to be the sizes of its trees, in ascending order, such as '
      '(5,): see the protocol Drafter.'
    )
  if value.proposal not in protocols.PROPOSALS:
    raise errors.InputError(
      f'drafter is a {kind} whose proposal is {printing.short(value.proposal)}, '
      f'but it has to be one of {", ".join(protocols.PROPOSALS)}: it decides which '
      'rules are lossless.'
    )
  if len(value.buckets) > 1:
    if missing := [name for name in _ADAPTIVE if not hasattr(value, name)]:
      raise errors.InputError(
        f'drafter is a {kind} of {len(value.buckets)} buckets, but has no '
        f'{", ".join(missing)} to choose among them: see the protocol '
        'AdaptiveDrafter.'
      )
  if value.features and not hasattr(value, 'read'):
    raise errors.InputError(
      f'drafter is a {kind}, which wants features of the layers '
      f'{tuple(value.features)}, but has no `read` that takes them: see the '
      'protocol FeatureDrafter.'
    )
  if not all(0 <= layer < layers for layer in value.features):
    raise errors.InputError(
      f'drafter is a {kind}, which wants features of the layers '
      f'{tuple(value.features)}, but those of the verifier are 0 to {layers - 1}.'
    )
  try:
    hash(value)
  except TypeError:
    raise errors.InputError(
      f'drafter is a {kind}, which cannot be hashed: programs are compiled for '
      'it, so make it a frozen dataclass: see the protocol Drafter.'
    ) from None
  try:
    inspect.signature(value.init).bind(None, None)
  except TypeError:
    raise errors.InputError(
      f'drafter is a {kind}, whose init{inspect.signature(value.init)} is '
      'called as init(params, context): see the protocol Drafter.'
    ) from None


def rule(value: Any) -> None:
  """Raises InputError unless this is an object of the protocol AcceptanceRule."""
  if isinstance(value, type) or not all(hasattr(value, x) for x in _RULE):
    names = ', '.join(map(repr, systems.RULES))
    raise wrong('rule', value, f'one of {names}, or an AcceptanceRule')
