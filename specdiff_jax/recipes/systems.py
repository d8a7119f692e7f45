"""The systems by name: what drafts, and which rule accepts.

A new drafter or rule is an entry of `SYSTEMS` or `RULES`.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import protocols
from specdiff_jax.decoding.rules import accept
from specdiff_jax.decoding.rules import block_verification
from specdiff_jax.decoding.rules import rejection
from specdiff_jax.drafters import adaptive
from specdiff_jax.drafters import diffuspec
from specdiff_jax.drafters import early_exit
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import lookup
from specdiff_jax.drafters import none
from specdiff_jax.drafters import path_search
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters.d2sd import drafter as d2sd
from specdiff_jax.drafters.dflash import drafter as block
from specdiff_jax.drafters.mixture import drafter as mixture
from specdiff_jax.drafters.ngram import edges
from specdiff_jax.models import int8 as int8_lib
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import ngrams
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import recipe as recipe_lib


class Parts(NamedTuple):
  """What a system is made of besides the verifier."""

  drafter: protocols.Drafter
  params: Any
  rule: protocols.AcceptanceRule
  drafts: int  # of one pass


RULES: Mapping[str, protocols.AcceptanceRule] = {
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


def _ar(options: options_lib.Plain, checkpoint):
  fastest = getattr(options.ar_slots, checkpoint.dtype.name)
  return none.NoDraft(options.gamma + 1 if options.exact else fastest), ()


def _lookup(options: options_lib.Lookup, checkpoint):
  del checkpoint
  return lookup.PromptLookup(options.gamma, options.ngram), ()


def _specdiff(options: options_lib.SpecDiff, checkpoint):
  """One chain."""
  return build_drafters.window(options, checkpoint, _chain(options))


def _dflash(options: options_lib.DFlash, checkpoint):
  """The same of a DFlash drafter (2602.06036), and of no other."""
  made = _specdiff(options, checkpoint)
  if not isinstance(made[0], block.Block):
    raise errors.InputError(
      f'config.drafter is {options.drafter!r}, which is no DFlash drafter; the '
      'system dflash drafts with a published one, or with one that was trained '
      'with network.kind=dflash. Other drafters of windows go with specdiff.'
    )
  return made


def _specdiff2(options: options_lib.SpecDiff2, checkpoint):
  """K chains, of which the verifier selects one (2511.00606, Algorithm 1)."""
  strategy = _drafts(options, 'chains')
  return build_drafters.window(options, checkpoint, strategy)


def _tree(options: options_lib.Tree, checkpoint):
  """K drafts merged into a tree; the rule walks all of it."""
  arrangement = _ARRANGEMENTS[options.rule]
  strategy = _drafts(options, arrangement, budget=options.budget)
  return build_drafters.window(options, checkpoint, strategy)


def _best_first(options: options_lib.BestFirst, checkpoint):
  """The most probable prefixes of the marginals."""
  strategy = strategies.BestFirst(options.budget)
  return build_drafters.window(options, checkpoint, strategy)


def _lattice(options: options_lib.Lattice, checkpoint):
  """The likeliest paths through a lattice, scored by a head."""
  strategy = lattice.Lattice(
    options.budget,
    options.frontier,
    options.candidates,
    weight=options.head_weight,
  )
  path = build_drafters.shipped(options.head)
  if not path or not ngrams.is_ngram(path):
    return build_drafters.window(options, checkpoint, strategy, path)
  tables = ngrams.load(path, checkpoint)
  if len(tables.longer) > 1:
    raise errors.InputError(
      f'config.head is {path}, an n-gram model of order {1 + len(tables.longer)}, '
      'whose pairs are smoothed for what longer n-grams leave (Kneser-Ney), but '
      'edges want pairs by themselves; fit it again: ngram --order=2.'
    )
  strategy = dataclasses.replace(strategy, source=edges.Edges())
  drafter: Any
  drafter, params = build_drafters.window(options, checkpoint, strategy)
  return drafter, drafter.with_edges(params, tables)


def _diffuspec(options: options_lib.DiffuSpec, checkpoint):
  """A path through the window (2510.02358)."""
  own = options.diffuspec
  k_max = own.k_max or options.gamma
  k_min = own.k_min or max(1, 2 * k_max // 3)
  if k_max > options.gamma:
    raise errors.InputError(
      f'config.diffuspec.k_max is {k_max}, but config.gamma, the tokens that '
      f'are drafted at once, is {options.gamma}. Lower the one, or raise the '
      'other.'
    )
  if k_min > k_max:
    raise errors.InputError(
      f'config.diffuspec.k_min is {k_min}, but the longest draft has {k_max} '
      'tokens (config.diffuspec.k_max, or config.gamma where that is 0). Lower '
      'the one, or raise the other.'
    )
  search = length = ngram = None
  if own.cps:
    search = path_search.PathSearch(own.beam, own.tau, own.m_max, own.lam)
    ngram = ngrams.load(own.ngram, checkpoint) if own.ngram else None
  if own.adl:
    length = diffuspec.DraftLength(k_min, k_max, own.delta, own.rho, own.sizes)
  inner, params = build_drafters.window(
    dataclasses.replace(options, gamma=k_max),
    checkpoint,
    strategies.Chain(mode='shared_noise'),
  )
  confidence = scores = None
  if own.confidence:
    one, _ = build_drafters.trained('diffuspec', options, checkpoint)
    file = build_drafters.shipped(own.confidence)
    confidence, scores = heads.load(file, one, checkpoint, heads.CONFIDENCES)
  params = diffuspec.DiffuSpecParams(params, ngram, jnp.int32(-1), scores)
  inner = cast(Any, inner)
  return (
    diffuspec.DiffuSpec(inner, search, length, confidence, own.threshold),
    params,
  )


def _of_family(name, options: options_lib.OfFamily, checkpoint):
  """Chains of the one family that drafts for the system `name`."""
  return build_drafters.of_system(name, options, checkpoint, _chain(options))


def _d2sd(options: options_lib.D2SD, checkpoint):
  """Branches of a second drafter, behind prefixes of a first draft."""
  longer = {'second': options.second_gamma or options.gamma}
  parts = build_drafters.parts('d2sd', options, checkpoint, longer)
  with fields.rim():
    return d2sd.make(parts, options.branches, options.budget)


def _mixture(options: options_lib.Mixture, checkpoint):
  """A chain of each of two or three drafters."""
  parts = build_drafters.parts('mixture', options, checkpoint)
  with fields.rim():
    return mixture.make(parts, options.gamma, options.budget)


def _eagle(options: options_lib.Eagle, checkpoint):
  """The likeliest prefixes (2406.16858), or one where there is room for one."""
  alone = options.budget <= options.gamma + 1
  width = (1, 1) if alone else (options.frontier, options.candidates)
  tree = lattice.Lattice(options.budget, *width)
  return build_drafters.of_system('eagle', options, checkpoint, tree)


def _early_exit(options: options_lib.EarlyExit, checkpoint):
  """The verifier's own first layers."""
  most = checkpoint.config.layers - 1
  layers = options.exit_layer or max(1, 4 * most // 5)
  if not 1 <= layers <= most:
    raise errors.InputError(
      f'config.exit_layer is {options.exit_layer}, but the system early_exit '
      f"drafts with 1 to {most} of the verifier's {most + 1} layers."
    )
  one = early_exit.EarlyExit(
    config=checkpoint.config,
    layers=layers,
    gamma=options.gamma,
    strategy=_chain(options),
  )
  return one, ()


def _adaptive(options: options_lib.Adaptive, checkpoint):
  """Chains and trees of several sizes, or no draft, whichever pays."""
  whole: Any
  whole, params = _specdiff(options, checkpoint)
  plain = none.NoDraft(getattr(options.ar_slots, checkpoint.dtype.name))
  arms = [
    dataclasses.replace(whole, gamma=min(gamma, options.gamma))
    for gamma in options.gammas
  ] + [
    dataclasses.replace(whole, strategy=strategies.BestFirst(budget))
    for budget in options.budgets
  ]
  # One arm of each size; those no larger than plain decoding draft nothing.
  by_size = {arm.buckets[-1]: arm for arm in arms}
  sizes = sorted(size for size in by_size if size > plain.slots)
  if not sizes:
    raise errors.InputError(
      f'config.gammas is {options.gammas} and config.budgets '
      f'{options.budgets}, which leave the system adaptive no draft '
      f'that is larger than the {plain.slots} tokens of a plain cycle. Give '
      'longer ones.'
    )
  drafter = adaptive.Adaptive(tuple(by_size[n] for n in sizes), plain)
  return drafter, adaptive.uncalibrated(drafter, params)


# (options, verifier) -> drafter and its params
SYSTEMS: Mapping[str, Callable[..., tuple[Any, Any]]] = {
  'ar': _ar,
  'lookup': _lookup,
  'specdiff': _specdiff,
  'dflash': _dflash,
  'deer': _specdiff,
  'specdiff2': _specdiff2,
  'tree': _tree,
  'best_first': _best_first,
  'lattice': _lattice,
  'diffuspec': _diffuspec,
  'adaptive': _adaptive,
  **{name: functools.partial(_of_family, name) for name in registry.systems()},
  'd2sd': _d2sd,
  'mixture': _mixture,
  'eagle': _eagle,
  'early_exit': _early_exit,
}


def parts(
  name: str,
  options: Any,
  checkpoint: weights.Checkpoint,
  platform: str = '',
) -> Parts:
  """Returns the parts of the system `name`, of its options.

  `platform` is what it will be compiled for, by default where this runs.
  """
  if isinstance(options, options_lib.PlainSlots):
    rounded = int8_lib.is_int8(checkpoint.params)
    slots = _fastest_slots(
      options.ar_slots, checkpoint.dtype.name, rounded, platform
    )
    both = options_lib.SlotsByDtype(float32=slots, bfloat16=slots)
    options = dataclasses.replace(options, ar_slots=both)
  plain = name == 'ar'  # whatever rule others have
  rule = accept.SampleAndMatch() if plain else RULES[options.rule]
  if name == 'specdiff2':
    rule = paired(options, name, functools.partial(accept.SelfSelection, rule))
  drafts = getattr(options, 'drafts', 1)
  return Parts(*SYSTEMS[name](options, checkpoint), rule, drafts)


def _chain(options: options_lib.Drawn) -> strategies.Chain:
  if options.draft_top_k and not options.draft_temperature:
    raise errors.InputError(
      f'config.draft_top_k is {options.draft_top_k}, but a chain is drawn among '
      'so many tokens only beside config.draft_temperature. Give that too.'
    )
  return strategies.Chain(
    mode=options.draft,
    temperature=options.draft_temperature,
    top_k=options.draft_top_k,
    keep_q=RULES[options.rule].reads_q,
  )


def _drafts(
  options: options_lib.SpecDiff2 | options_lib.Tree, arrangement: str, **more
) -> strategies.Drafts:
  """Returns K drafts, which have to differ from another."""
  return strategies.Drafts(
    drafts=options.drafts,
    arrangement=arrangement,
    temperature=options.draft_temperature or 1.0,
    top_k=options.draft_top_k,
    keep_q=RULES[options.rule].reads_q,
    **more,
  )


def ar_slots(recipe: recipe_lib.Recipe, dtype: str) -> int:
  """Returns the tokens that plain AR scores at once, where it is fastest."""
  rounded = is_int8(recipe, 'verifier')
  return _fastest_slots(recipe.systems['ar'].ar_slots, dtype, rounded)


def _fastest_slots(
  asked: options_lib.SlotsByDtype, dtype: str, rounded: bool, platform: str = ''
) -> int:
  """Returns the slots of plain AR: those asked for, or one.

  But on a CPU a second row spares bf16 weights a detour by float32
  (`models.layers.dense`), which int8 weights do not take; and a TPU multiplies
  two rows in its matrix unit, one in its slower vector unit.
  """
  two = dtype == 'bfloat16' and on_cpu(platform) and not rounded
  two |= (platform or jax.default_backend()) == 'tpu'
  return getattr(asked, dtype) or (2 if two else 1)


def on_cpu(platform: str = '') -> bool:
  """Returns whether a program is for a CPU; '' stands for where this runs."""
  return (platform or jax.default_backend()) == 'cpu'


def rule(recipe: recipe_lib.Recipe, name: str) -> str:
  """Returns the name of the rule that accepts a system's drafts."""
  return getattr(recipe.systems[name], 'rule', 'match')  # plain AR has none


def is_int8(recipe: recipe_lib.Recipe, model: str) -> bool:
  """Returns whether the weights of 'verifier' or 'drafter' are rounded."""
  return recipe.model.int8 in (model, 'both')


def decode_mesh(options: groups.Decoding) -> jax.sharding.Mesh | None:
  """Returns the devices that decode together; None for a single one."""
  if options.decode_mesh == (1, 1):
    return None
  mesh = mesh_lib.make_mesh(options.decode_mesh)
  processes.check_rows(options.batch, mesh.shape['data'])
  return mesh


def cache_dtype(checkpoint: weights.Checkpoint, platform: str = '') -> str:
  """Returns the weights' dtype, but float32 on CPU ('': where this runs).

  There XLA updates a bf16 array, and attends to it, by way of float32 copies.
  """
  return 'float32' if on_cpu(platform) else checkpoint.dtype.name


def scan_layers(platform: str = '') -> bool:
  """Returns whether a verifier's layers run in a loop ('': where this runs).

  On a TPU, where that moves the same bytes and compiles several times as fast.
  Elsewhere slices of stacked weights would be copies.
  """
  return (platform or jax.default_backend()) == 'tpu'


def paired(options: Any, name: str, make: Callable[[], Any]) -> Any:
  """Calls `make`; names the fields where drafts and rule do not fit."""
  try:
    return make()
  except errors.InputError as error:
    draft = getattr(options, 'draft', '')
    told = f' (config.draft={draft!r})' if draft else ''
    raise errors.InputError(
      f'config.rule={options.rule!r} does not go with the system {name!r}'
      f'{told}: {error} In a config SampleAndMatch is rule=match, '
      'GreedyAcceptance is rule=greedy, and draft=sample draws a chain from '
      'its distribution.'
    ) from error


def room(
  recipe: recipe_lib.Recipe, name: str, drafter: protocols.Drafter
) -> None:
  """Raises InputError if a pass has more tokens than the cache is made for."""
  slots, options = drafter.buckets[-1], recipe.systems[name]
  most = max(recipe.decoding.prompt_buckets) + recipe.sampling.max_new_tokens
  if slots > most:
    sizes = ', '.join(
      f'{field}={getattr(options, field)}'
      for field in ('budget', 'drafts', 'gamma')
      if hasattr(options, field)
    )
    raise errors.InputError(
      f'The system {name!r} verifies {slots} tokens at once (config.{sizes}), '
      f'but the cache holds {most}: the largest of config.prompt_buckets and '
      'config.max_new_tokens. Lower the former, or raise the latter.'
    )


def one_of(field: str, name: str, names: Collection[str]) -> None:
  """Raises InputError unless `name` is one of `names`."""
  if name not in names:
    raise errors.InputError(
      f'config.{field} is {name!r}, but it has to be one of {", ".join(names)}.'
    )
