"""What the registered families say together: tables over all of them."""

from typing import Any

from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import registry
from specdiff_jax.parallel import rules


def _every() -> dict[str, family_lib.Family]:
  """Returns all families, imported."""
  return {name: registry.family(name) for name in registry.FAMILIES}


def sharding(over_data: bool = False) -> tuple[rules.Rule, ...]:
  """Returns the sharding rules of a verifier and of every family's networks.

  With `over_data`, what is trained is split over 'data' too (`rules.FSDP`).
  """
  base = rules.FSDP if over_data else rules.TRANSFORMER
  return base + tuple(
    rule
    for one in _every().values()
    for rule in (
      *rules.dense(one.by_output, one.by_input, over_data),
      *one.sharding,
    )
  )


def matrices() -> frozenset[str]:
  """Returns the names of every family's matrices, for `int8.quantise`."""
  return frozenset(
    name for one in _every().values() for name in one.by_output + one.by_input
  )


def readers() -> dict[str, tuple[str, Any]]:
  """Returns (family, reader) of each form of published drafters."""
  return {
    form: (name, reader)
    for name, one in _every().items()
    for form, reader in one.readers.items()
  }


def architectures() -> dict[str, str]:
  """Returns the form of each architecture that a published config.json has."""
  return {
    architecture: form
    for one in _every().values()
    for architecture, form in one.architectures.items()
  }


def writers() -> dict[str, Any]:
  """Returns what writes drafters in forms of their own; see `export`."""
  return {
    form: writer
    for one in _every().values()
    for form, writer in one.writers.items()
  }
