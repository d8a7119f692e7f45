"""What the registered families say together: tables over all of them."""

from typing import Any

from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import registry
from specdiff_jax.parallel import rules


def _every() -> list[family_lib.Family]:
  """Returns all families, imported."""
  return [registry.family(name) for name in registry.FAMILIES]


def sharding(over_data: bool = False) -> tuple[rules.Rule, ...]:
  """Returns the sharding rules of a verifier and of every family's networks.

  With `over_data`, what is trained is split over 'data' too (`rules.FSDP`).
  """
  base = rules.FSDP if over_data else rules.TRANSFORMER
  return base + tuple(
    rule
    for one in _every()
    for rule in (
      *rules.dense(one.by_output, one.by_input, over_data),
      *one.sharding,
    )
  )


def matrices() -> frozenset[str]:
  """Returns the names of every family's matrices, for `int8.quantise`."""
  return frozenset(
    name for one in _every() for name in one.by_output + one.by_input
  )


def merged(what: str) -> dict[str, Any]:
  """Returns the entries of every family's `readers`, `architectures`.

  Example: merged('architectures')['LLaDAModelLM'] == 'llada'
  """
  return {
    name: value
    for one in _every()
    for name, value in getattr(one, what).items()
  }
