"""What `verify --drafter` compares: a drafter's two sides, and recorded texts."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import strategies
from specdiff_jax.models import transformer_layer
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import training as build_training
from specdiff_jax.tools.exactness import replay

_CHAIN = strategies.Chain(mode='argmax', temperature=1.0, keep_q=True)


class Text(NamedTuple):
  """A recorded text."""

  id: str
  prompt: np.ndarray  # [P] int32
  completion: np.ndarray  # [C] int32


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A drafter's two sides.

  Attributes:
    name: of the system that it drafts for, and of its part where it has several.
    source: its file.
    served: file or directory of what is served.
    score: the training forward.
    params: of the training forward.
    vocab: [W] the draft vocabulary.
    gamma: slots of the training forward.
    replay: the serving side.
    replay_params: params of the serving drafter.
    layers: verifier layers that the training forward reads.
  """

  name: str
  source: str
  served: str
  score: scores.Score
  params: Any
  vocab: np.ndarray
  gamma: int
  replay: replay.Replay
  replay_params: Any
  layers: tuple[int, ...]


def parts(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  names: Sequence[str],
  against: str = '',
) -> list[Part]:
  """Returns the trained drafters of systems, each once.

  Args:
    recipe: checked.
    checkpoint: the verifier.
    names: systems; those without a trained drafter are passed over.
    against: file or directory of what is served in place of the drafter.

  Raises:
    InputError: no system has a trained drafter, a drafter is a published one,
      or there are several to compare with one.
  """
  found: dict[tuple[str, str, bool, str], tuple[str, str, Any]] = {}
  for name in names:
    systems.one_of('systems', name, systems.SYSTEMS)
    options = recipe.systems[name]
    if not isinstance(options, options_lib.Trained):
      continue
    of_parts = build_drafters.paths(name, options)
    for part, path in of_parts.items():
      if not path and len(of_parts) > 1:
        continue
      head = '' if against else getattr(options, 'head', '')
      prefixes = (name, part) == ('d2sd', 'second')
      label = name if part == 'drafter' else f'{name}.{part}'
      key = path, head, prefixes, name if _is_causal(name) else ''
      found.setdefault(key, (label, name, options))
  if not found:
    raise errors.InputError(
      f'No system of {", ".join(names)} has a trained drafter to check; give '
      '--systems some that have, such as specdiff.'
    )
  if against and len(found) > 1:
    told = ', '.join(label for label, *_ in found.values())
    raise errors.InputError(
      f'--against is compared with one drafter, but there are those of {told}; '
      'name one system with --systems.'
    )
  return [
    _part(checkpoint, *told, path, head, prefixes, against)
    for (path, head, prefixes, _), told in found.items()
  ]


def _is_causal(name: str) -> bool:
  """Whether the drafter of a system goes on from its own tokens.

  Those that have a system of their own do, but for pairs that fill windows.
  """
  return name in registry.systems() and registry.parts(name) == ('drafter',)


def _part(
  checkpoint, label, name, options, path, head, prefixes, against
) -> Part:
  options = dataclasses.replace(options, drafter=path)
  if hasattr(options, 'denoising_steps'):  # training sees one pass
    options = dataclasses.replace(options, denoising_steps=1)
  one, kind = build_drafters.trained(name, options, checkpoint)
  score = registry.network(kind).score(one.config)
  params, source, candidates = family_lib.cast(one, checkpoint), None, 0
  if head:
    source, own = heads.load(build_drafters.shipped(head), one, checkpoint)
    score = heads.score_of(source, score)
    params = {'drafter': params, 'head': own}
    candidates = min(options.candidates, len(one.vocab))
  options = dataclasses.replace(options, drafter=against or path)
  causal = _is_causal(name)
  is_tree = head or isinstance(options, options_lib.Eagle)
  strategy = lattice.Lattice(options.gamma + 1, 1, 1) if is_tree else _CHAIN
  drafter: Any
  if causal:
    drafter, own = build_drafters.of_system(name, options, checkpoint, strategy)
    if is_tree:
      drafter = dataclasses.replace(drafter, keep_q=True)
  else:
    drafter, own = build_drafters.window(options, checkpoint, strategy, head)
  if any(map(transformer_layer.is_merged, checkpoint.params.values())):
    own = transformer_layer.merged(own)
  return Part(
    name=label,
    source=path,
    served=against or path,
    score=score,
    params=params,
    vocab=np.asarray(one.vocab, np.int32),
    gamma=getattr(one.config, 'gamma', options.gamma),
    replay=replay.Replay(drafter, causal, source, candidates, prefixes),
    replay_params=own,
    layers=one.config.features,
  )


def texts(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  path: str | None,
  limit: int | None,
) -> list[Text]:
  """Returns recorded texts of config.data, else greedy ones of prompts.

  Those too long for the largest of prompt_buckets, or with less than two
  completion tokens, are left out.

  Args:
    recipe: checked.
    checkpoint: the verifier.
    path: file of prompts, which goes before config.data.
    limit: how many; None: config.limit, 0: all.
  """
  where = recipe.training.data
  recorded = where and not path and not build_training.is_prompts(where)
  if recorded:
    found = _recorded(recipe, checkpoint, limit)
  else:
    asked = decoding.requests(
      recipe, checkpoint, decoding.prompts(recipe, path, limit)
    )
    greedy = recipe.change(temperature=0.0, exact=False)
    made = decoding.system(greedy, checkpoint, 'ar').decode(asked)
    found = [
      Text(str(request.name), np.asarray(request.prompt), one.tokens)
      for request, one in zip(asked, made, strict=True)
    ]
  longest = max(recipe.decoding.prompt_buckets)
  most = recipe.sampling.max_new_tokens
  usable = [
    one._replace(completion=one.completion[:most])
    for one in found
    if len(one.prompt) <= longest and min(len(one.completion), most) > 1
  ]
  if not usable:
    raise errors.InputError(
      f'None of the {len(found)} texts has a prompt of at most {longest} '
      'tokens and two tokens after it: there is no window to compare. Raise '
      'config.prompt_buckets or config.max_new_tokens, or give other texts.'
    )
  return usable


def _recorded(recipe, checkpoint, limit: int | None) -> list[Text]:
  found, limit = [], recipe.bench.limit if limit is None else limit
  for folder in build_training.data(recipe, '')[0]:
    if limit and len(found) == limit:
      break
    _, source = build_training.recorded(checkpoint, folder)
    for index in range(len(source)):
      if limit and len(found) == limit:
        break
      item = source[index]
      found.append(Text(item.id, item.prompt, item.completion))
  return found
