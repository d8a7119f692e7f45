"""The systems by name: what drafts, and which rule accepts.

`if kind == ...` is a dict from name to constructor here, and nowhere else: a
new drafter or rule is one line.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import types
from specdiff_jax.decoding.rules import accept
from specdiff_jax.decoding.rules import block_verification
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import adaptive
from specdiff_jax.drafters import early_exit
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import none
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import strategies
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import drafters as build_drafters

Config = ml_collections.ConfigDict
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Far beyond what pays; the programs of more take minutes to compile.
MOST_DEEP, MOST_DRAFTED = 512, 1024  # tokens of a window, and of a tree
# Values of config.int8: whose weights are int8.
INT8 = {
    '': (), 'verifier': ('verifier',), 'drafter': ('drafter',),
    'both': ('verifier', 'drafter'),
}  # fmt: skip


class Parts(NamedTuple):
  """What a system is made of besides the verifier."""

  drafter: types.Drafter
  params: Any
  rule: types.AcceptanceRule
  drafts: int = 1  # of one pass


RULES: Mapping[str, types.AcceptanceRule] = {
  'match': accept.SampleAndMatch(),
  'greedy': rejection.GreedyAcceptance(),
  'rejection': rejection.Rejection(),
  'without_replacement': rejection.RejectionWithoutReplacement(),
  'block': block_verification.BlockVerification(),
}

# How K drafts are laid out for each rule.
_ARRANGEMENTS = {
  'match': 'merged',
  'greedy': 'merged',
  'rejection': 'chains',
  'without_replacement': 'distinct',
  'block': 'chains',
}


def _ar(config, checkpoint, slots):
  if not slots:
    own = ar_slots(config, dtype(checkpoint))
    slots = config.gamma + 1 if config.exact else own
  return Parts(none.NoDraft(slots), (), accept.SampleAndMatch())


def _lookup(config, checkpoint, slots):
  del checkpoint, slots
  drafter = lookup.PromptLookup(config.gamma, config.ngram)
  return Parts(drafter, (), RULES[config.rule])


def _specdiff(config, checkpoint, slots):
  """One chain."""
  del slots
  strategy = strategies.Chain(mode=config.draft, **_tempered(config))
  return _diffusion(config, checkpoint, strategy, RULES[config.rule])


def _specdiff2(config, checkpoint, slots):
  """K chains, of which the verifier selects one (2511.00606, Algorithm 1)."""
  del slots
  strategy = strategies.Drafts(
    drafts=config.drafts,
    arrangement='chains',
    **_tempered(config, spread=True),
  )
  rule = paired(
    config, 'specdiff2', lambda: accept.SelfSelection(RULES[config.rule])
  )
  one = _diffusion(config, checkpoint, strategy, rule)
  return one._replace(drafts=config.drafts)


def _tree(config, checkpoint, slots):
  """The same K drafts; the rule walks all of them."""
  del slots
  strategy = strategies.Drafts(
    drafts=config.drafts,
    arrangement=_ARRANGEMENTS[config.rule],
    budget=config.budget,
    **_tempered(config, spread=True),
  )
  one = _diffusion(config, checkpoint, strategy, RULES[config.rule])
  return one._replace(drafts=config.drafts)


def _best_first(config, checkpoint, slots):
  """The most probable prefixes of the marginals."""
  del slots
  strategy = strategies.BestFirst(config.budget)
  return _diffusion(config, checkpoint, strategy, RULES[config.rule])


def _of_family(name, config, checkpoint, slots):
  """Chains of the one family that drafts for the system `name`."""
  del slots
  strategy = strategies.Chain(mode=config.draft, **_tempered(config))
  one, params = build_drafters.of_system(name, config, checkpoint, strategy)
  return Parts(one, params, RULES[config.rule])


def _early_exit(config, checkpoint, slots):
  """The verifier's own first layers."""
  del slots
  most = checkpoint.config.layers - 1
  layers = config.exit_layer or max(1, 4 * most // 5)
  if not 1 <= layers <= most:
    raise errors.InputError(
      f'config.exit_layer is {config.exit_layer}, but the system early_exit '
      f"drafts with 1 to {most} of the verifier's {most + 1} layers."
    )
  one = early_exit.EarlyExit(
    config=checkpoint.config,
    layers=layers,
    gamma=config.gamma,
    strategy=strategies.Chain(mode=config.draft, **_tempered(config)),
  )
  return Parts(one, (), RULES[config.rule])


def _adaptive(config, checkpoint, slots):
  """Chains and trees of several sizes and no draft, by what pays."""
  del slots
  whole = _specdiff(config, checkpoint, 0)
  plain = none.NoDraft(ar_slots(config, dtype(checkpoint)))
  arms = [
    dataclasses.replace(whole.drafter, gamma=min(gamma, config.gamma))
    for gamma in config.gammas
  ] + [
    dataclasses.replace(whole.drafter, strategy=strategies.BestFirst(budget))
    for budget in config.budgets
  ]
  # One arm of each size; those no larger than plain decoding draft nothing.
  by_size = {arm.buckets[-1]: arm for arm in arms}
  sizes = sorted(size for size in by_size if size > plain.slots)
  if not sizes:
    raise errors.InputError(
      f'config.gammas is {tuple(config.gammas)} and config.budgets '
      f'{tuple(config.budgets)}, which leave the system adaptive no draft '
      f'that is larger than the {plain.slots} tokens of a plain cycle. Give '
      'longer ones.'
    )
  drafter = adaptive.Adaptive(tuple(by_size[n] for n in sizes), plain)
  params = adaptive.uncalibrated(drafter, whole.params)
  return Parts(drafter, params, whole.rule)


SYSTEMS: Mapping[str, Callable[..., Parts]] = {
  'ar': _ar,
  'lookup': _lookup,
  'specdiff': _specdiff,
  'specdiff2': _specdiff2,
  'tree': _tree,
  'best_first': _best_first,
  'adaptive': _adaptive,
  **{name: functools.partial(_of_family, name) for name in registry.systems()},
  'early_exit': _early_exit,
}


def parts(
  name: str, config: Config, checkpoint: weights.Checkpoint, slots: int = 0
) -> Parts:
  """Returns the parts of the system `name`, with its own drafter if any."""
  own = build_drafters.paths(name, config).get('drafter')
  if own:
    config = config.copy_and_resolve_references()
    config.drafter = own
  return SYSTEMS[name](config, checkpoint, slots)


def _tempered(config, spread: bool = False) -> dict[str, Any]:
  """Returns the drafter's law; `spread`: drafts have to differ from another."""
  temperature = config.draft_temperature
  return {
    'temperature': temperature or (1.0 if spread else 0.0),
    'top_k': config.draft_top_k,
    'keep_q': RULES[config.rule].reads_q,
  }


def _diffusion(config, checkpoint, strategy, rule) -> Parts:
  one, params = build_drafters.window(config, checkpoint, strategy)
  return Parts(one, params, rule)


def dtype(checkpoint: weights.Checkpoint) -> str:
  """Returns the name of the dtype of weights, or of what is beside int8."""
  return checkpoint.params['final_norm'].dtype.name


def ar_slots(config: Config, dtype: str) -> int:
  """Returns the tokens that plain AR scores at once, where it is fastest.

  One, but on a CPU a second row spares bf16 weights a detour by float32
  (`models.layers.dense`), which int8 weights do not take.
  """
  two = dtype == 'bfloat16' and jax.default_backend() == 'cpu'
  two = two and 'verifier' not in INT8[config.int8]
  return config.ar_slots[dtype] or (2 if two else 1)


def decode_mesh(config: Config) -> jax.sharding.Mesh | None:
  """Returns the devices that decode together; None for a single one."""
  if tuple(config.decode_mesh) == (1, 1):
    return None
  mesh = mesh_lib.make_mesh(tuple(config.decode_mesh))
  processes.check_rows(config.batch, mesh.shape['data'])
  return mesh


def cache_dtype(checkpoint: weights.Checkpoint, platform: str = '') -> str:
  """Returns the weights' dtype, but float32 on CPU ('': where this runs).

  There XLA updates a bf16 array, and attends to it, by way of float32 copies.
  """
  on_cpu = (platform or jax.default_backend()) == 'cpu'
  return 'float32' if on_cpu else dtype(checkpoint)


def paired(config: Config, name: str, make: Callable[[], Any]) -> Any:
  """Calls `make`; names the fields where drafts and rule do not fit."""
  try:
    return make()
  except errors.InputError as error:
    raise errors.InputError(
      f'config.rule={config.rule!r} does not go with the system {name!r} '
      f'(config.draft={config.draft!r}): {error} In a config SampleAndMatch '
      'is rule=match, GreedyAcceptance is rule=greedy, and draft=sample '
      'draws a chain from its law.'
    ) from error


def room(config: Config, name: str, drafter: types.Drafter) -> None:
  """Raises InputError if a pass has more tokens than the cache is made for."""
  slots = drafter.buckets[-1]
  most = max(config.prompt_buckets) + config.max_new_tokens
  if slots > most:
    raise errors.InputError(
      f'The system {name!r} verifies {slots} tokens at once (config.budget='
      f'{config.budget}, drafts={config.drafts}, gamma={config.gamma}), but '
      f'the cache holds {most}: the largest of config.prompt_buckets and '
      'config.max_new_tokens. Lower the former, or raise the latter.'
    )


def one_of(field: str, name: str, known) -> None:
  """Raises InputError unless `name` is one of `known`."""
  if name not in known:
    raise errors.InputError(
      f'config.{field} is {name!r}, but it has to be one of {", ".join(known)}.'
    )


def between(field: str, value: int, low: int, high: int) -> None:
  """Raises InputError unless `value` is at least `low` and at most `high`."""
  least(field, value, low)
  if value > high:
    raise errors.InputError(
      f'config.{field} is {value}, but it has to be at most {high}.'
    )


def least(field: str, value: float, bound: float) -> None:
  """Raises InputError unless `value` is at least `bound`."""
  if not value >= bound:  # NaN fails too
    raise errors.InputError(
      f'config.{field} is {value}, but it has to be at least {bound}.'
    )
