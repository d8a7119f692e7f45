"""From a config to the checks of `verify`."""

from collections.abc import Sequence
import copy

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.decoding import system as system_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems
from specdiff_jax.tools.exactness import verification

_LOSSLESS_IN_LAW = (
  'config.rule is {!r}. Its output has the law of plain decoding, but not '
  'its tokens: it draws coins and residuals of its own, so that no two runs '
  'can be compared token for token. What proves it is the enumeration of '
  'all outcomes in tests/decoding/test_rules_enumeration.py. To verify this '
  'verifier and drafter, give --config.rule=match, under which the output '
  'of every drafter equals plain decoding.'
)


def settle(config: decoding.Config, fast: bool) -> decoding.Config:
  """Returns the config that `verify` runs: float32 and exact, unless `fast`."""
  decoding.check(config)
  if config.rule != 'match':
    raise errors.InputError(_LOSSLESS_IN_LAW.format(config.rule))
  config = copy.deepcopy(config)
  config.exact = not fast
  if not fast:
    config.dtype = 'float32'
  return config


def plan(
  config: decoding.Config,
  checkpoint: weights.Checkpoint,
  names: Sequence[str] | None,
) -> verification.Plan:
  """Returns what `verify` does under a settled config.

  Every system of `names` (else config.systems) at temperature 0 and at the
  config's (1.0 if that is 0), a prompt at a time and in the config's batches.
  """
  names = tuple(n for n in names or config.systems if n != 'ar')
  for name in names:
    systems.one_of('systems', name, systems.SYSTEMS)
  if not names:
    raise errors.InputError(
      'There is nothing to verify: --systems (or config.systems) names none '
      'but ar, which is what the others are compared with. Give some of '
      f'{", ".join(n for n in systems.SYSTEMS if n != "ar")}.'
    )

  def make(name: str, slots: int) -> system_lib.System:
    return decoding.system(config, checkpoint, name, slots)

  shown = ('drafter', 'rule', 'draft', 'gamma', 'drafts', 'budget', 'dtype')
  shown += ('max_new_tokens', 'top_k', 'top_p', 'seed', 'chat')
  drafters = config.drafters.to_dict()
  return verification.Plan(
    names=names,
    temperatures=(0.0, config.temperature or 1.0),
    batches=tuple(dict.fromkeys((1, config.batch))),
    plain_slots=(0 if config.exact else systems.ar_slots(config, config.dtype)),
    make=make,
    facts={name: config[name] for name in shown}
    | {'drafters': {n: drafters[n] for n in names if drafters.get(n)}},
  )
