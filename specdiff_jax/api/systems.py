"""Verifiers, and the systems that draft for them, made of keyword arguments."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from specdiff_jax.api import checks
from specdiff_jax.api import generation
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import paths as paths_lib
from specdiff_jax.models import int8 as int8_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems


def load_verifier(
  name: str | os.PathLike[str],
  dtype: str = 'bfloat16',
  *,
  adapter: str | os.PathLike[str] = '',
  int8: bool = False,
  cache_dir: str | os.PathLike[str] = 'runs/verifier',
) -> weights.Checkpoint:
  """Loads a verifier: sizes, weights on the devices, tokenizer, fingerprint.

  The weights are as serving wants them: those that meet the same input are one
  (`query_key_value`, `gate_up`). On a TPU `gate` and `up` stay apart, and layers
  are stacked.

  Args:
    name: a directory, a .gguf file, a hub name (org/name), 'quickstart' or
      'random:tiny'.
    dtype: of weights and KV cache, 'float32' or 'bfloat16'.
    adapter: directory of a LoRA adapter, merged into the weights.
    int8: rounds the weights to int8: another verifier then.
    cache_dir: where the quickstart's weights are kept.

  Raises:
    InputError: for whatever is wrong with the files, named with its file.

  Example:
    >>> import specdiff_jax as sd
    >>> sd.load_verifier('random:tiny').config.vocab_size
    320
  """
  checks.flags(int8=int8)
  values = {
    'verifier': name,
    'dtype': dtype,
    'adapter': adapter,
    'int8': 'verifier' if int8 else '',
    'cache_dir': cache_dir,
  }
  with fields.arguments():
    recipe = fields.typed(values, 'load_verifier')
    decoding.check(recipe)
    return decoding.verifier(recipe)


def system(
  name: str,
  verifier: weights.Checkpoint,
  *,
  drafter: Any = None,
  drafter_params: Any = None,
  **options: Any,
) -> generation.System:
  """Returns the system `name` for a verifier.

  Args:
    name: 'ar', 'lookup', 'specdiff', 'specdiff2', 'tree', 'best_first',
      'lattice', 'diffuspec', 'adaptive', 'dflash', 'deer', 'd2sd', 'mixture',
      'sps', 'eagle' or 'early_exit'; a name of your own with a drafter of
      your own.
    verifier: of `load_verifier`.
    drafter: file of `distill`, directory or hub name of a published drafter,
      or 'random'; by default the one that was shipped for this verifier. Or a
      `Drafter`, whose rule is `rule`, a name or an `AcceptanceRule`.
    drafter_params: of a `Drafter`.
    **options: of the system (gamma, drafts, rule, ...), of sampling
      (temperature, max_new_tokens, ...) and of decoding (batch,
      prompt_buckets, ...), as recipes have them.

  Raises:
    InputError: which names the argument, what it was, what it may be.

  Example:
    >>> import specdiff_jax as sd
    >>> verifier = sd.load_verifier('random:tiny', dtype='float32')
    >>> system = sd.system('early_exit', verifier, gamma=4)
    >>> system.session.engine.drafter.max_depth
    4
  """
  if not isinstance(name, str):
    raise checks.wrong('name', name, "a text, such as 'lookup'")
  checks.verifier(verifier)
  if drafter is None or isinstance(drafter, (str, os.PathLike, Mapping)):
    if drafter_params is not None:
      raise errors.InputError(
        'drafter_params is given, but it goes with a Drafter object as '
        f'drafter, which is {drafter!r}.'
      )
    if drafter is not None:
      options['drafter'] = drafter
    recipe = told([name], verifier, options)
    with fields.arguments():
      return generation.System(
        decoding.system(recipe, verifier, name), verifier, recipe
      )
  checks.drafter(drafter, verifier.config.layers)
  rule = options.pop('rule', 'match')
  if isinstance(rule, str):
    if rule not in systems.RULES:
      raise fields.unknown('There is no rule', rule, systems.RULES)
    rule = systems.RULES[rule]
  checks.rule(rule)
  params = () if drafter_params is None else drafter_params
  recipe = told([], verifier, options)
  with fields.arguments():
    parts = systems.Parts(drafter, params, rule, drafts=1)
    session = decoding.session(recipe, verifier, name, parts)
  return generation.System(session, verifier, recipe)


def told(
  names: Sequence[str],
  verifier: weights.Checkpoint,
  options: Mapping[str, Any],
  **more: Any,
) -> recipe_lib.Recipe:
  """Returns the recipe of systems for a loaded verifier, of keyword arguments.

  Systems that are given no drafter get the shipped one; by default no drafts are
  longer than a drafter makes.
  """
  given = dict(options)
  if isinstance(stop := given.get('stop'), str):
    given['stop'] = (stop,)
  if given.get('chat') is None:
    given['chat'] = bool(verifier.tokenizer.chat_template)
  paths = paths_lib.each(
    given.pop('drafter', None), lambda path: paths_lib.expand(path, 'drafter')
  )
  if paths is None:
    paths = _shipped(names, verifier)
    more['drafters'] = paths
  elif isinstance(paths, Mapping):
    more['drafters'] = paths if len(names) > 1 else {names[0]: paths}
  else:
    given['drafter'] = paths
  files = paths.values() if isinstance(paths, Mapping) else [paths]
  longest = [drafters.longest(x) for x in files if isinstance(x, str)]
  if 'gamma' not in given and any(longest):
    given['gamma'] = min(options_lib.Gamma.gamma, *filter(None, longest))
  more |= {
    'dtype': verifier.dtype.name,
    'int8': 'verifier' if int8_lib.is_int8(verifier.params) else '',
  }
  return decoding.told(names, given, **more)


def _shipped(
  names: Sequence[str], verifier: weights.Checkpoint
) -> dict[str, str]:
  """Returns the shipped drafter of each system that has a trained one."""
  kinds = {name: options_lib.SYSTEMS.get(name, object) for name in names}
  found = {
    name: drafters.of_zoo(name, verifier)
    for name, kind in kinds.items()
    if issubclass(kind, options_lib.Trained)
  }
  for name in (name for name, path in found.items() if not path):
    raise errors.InputError(
      f'drafter is not given, but the system {name!r} needs one, and none '
      f'was shipped for the verifier {verifier.source} (fingerprint '
      f"{verifier.fingerprint}): give a file of `distill`, 'random', or a "
      'Drafter.'
    )
  return found
