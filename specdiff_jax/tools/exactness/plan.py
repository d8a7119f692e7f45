"""From a recipe to the checks of `verify`."""

from collections.abc import Sequence
import dataclasses

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.decoding import session as session_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.tools.exactness import verification

_EQUAL_IN_DISTRIBUTION = (
  '{} is {!r}. Its output has the distribution of plain decoding, but '
  'not its tokens: it draws coins and residuals of its own, so that no two runs '
  'can be compared token for token. What proves it is the enumeration of '
  'all outcomes in tests/decoding/test_rules_enumeration.py. To verify this '
  'verifier and drafter, give --config.rule=match, under which the output '
  'of every drafter equals plain decoding.'
)


def settle(recipe: recipe_lib.Recipe, fast: bool) -> recipe_lib.Recipe:
  """Returns the recipe that `verify` runs: float32 and exact, unless `fast`."""
  decoding.check(recipe)
  if stop := recipe.decoding.stop:
    raise errors.InputError(
      f'config.stop is {printing.short(stop)}, but whole texts are compared, to '
      'an end token or the limit; leave it empty.'
    )
  if (rule := recipe.flat()['rule']) != 'match':
    raise errors.InputError(_EQUAL_IN_DISTRIBUTION.format('config.rule', rule))
  if fast:
    return recipe.change(exact=False)
  return recipe.change(exact=True, dtype='float32')


def plan(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  names: Sequence[str] | None,
) -> verification.Plan:
  """Returns what `verify` does under a settled recipe.

  Every system of `names` (else config.systems) at temperature 0 and at the
  config's (1.0 if that is 0), a prompt at a time and in the config's batches.
  """
  names = tuple(n for n in names or recipe.bench.systems if n != 'ar')
  for name in names:
    systems.one_of('systems', name, systems.SYSTEMS)
    if (rule := systems.rule(recipe, name)) != 'match':
      told = f'the rule of the system {name!r}'
      raise errors.InputError(_EQUAL_IN_DISTRIBUTION.format(told, rule))
  if not names:
    raise errors.InputError(
      'There is nothing to verify: --systems (or config.systems) names none '
      'but ar, which is what the others are compared with. Give some of '
      f'{", ".join(n for n in systems.SYSTEMS if n != "ar")}.'
    )

  def make(name: str, slots: int) -> session_lib.Session:
    return decoding.system(recipe, checkpoint, name, slots)

  single = dataclasses.asdict(recipe.drafting.drafters)
  exact = recipe.systems['ar'].exact
  return verification.Plan(
    names=names,
    temperatures=(0.0, recipe.sampling.temperature or 1.0),
    batches=tuple(dict.fromkeys((1, recipe.decoding.batch))),
    plain_slots=0 if exact else systems.ar_slots(recipe, recipe.model.dtype),
    make=make,
    facts=recipe.reported('verify')
    | {'drafters': {n: single[n] for n in names if single.get(n)}},
  )
