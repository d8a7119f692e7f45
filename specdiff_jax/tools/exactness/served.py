"""Whether what was trained is what is served: `verify --drafter`.

Windows of recorded texts pass a drafter twice: through the forward that its
loss sees, many anchors at once, and through the engine, cycle by cycle. The
log-probabilities of each slot have to be the same but for rounding.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import reporting
from specdiff_jax.core import training_types
from specdiff_jax.data import windows
from specdiff_jax.decoding import engine as engine_lib
from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import lattice
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import scores
from specdiff_jax.drafters import strategies
from specdiff_jax.models import layers
from specdiff_jax.models import networks
from specdiff_jax.models import transformer_layer
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import options as options_lib
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import training as build_training
from specdiff_jax.tools.exactness import replay
from specdiff_jax.tools.exactness import served_report
from specdiff_jax.training import features
from specdiff_jax.training import objective

TOLERANCE = 1e-3
_WINDOWS = 16  # of each text whose scores exist at once
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


# --- what is compared --------------------------------------------------------


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


# --- comparing ---------------------------------------------------------------


def compare(
  part: Part,
  checkpoint: weights.Checkpoint,
  engine: engine_lib.Engine,
  given: Sequence[Text],
  buckets: Sequence[int],
  batch: int,
  tolerance: float = TOLERANCE,
) -> served_report.Row:
  """Returns how far a drafter's two sides are apart on texts.

  Args:
    part: the drafter.
    checkpoint: the verifier.
    engine: whose verifier and sizes are taken.
    given: texts that fit the largest bucket.
    buckets: that prompts are padded to.
    batch: texts that are replayed together.
    tolerance: largest difference that passes.
  """
  engine = dataclasses.replace(
    engine, drafter=part.replay, rule=replay.Follow(), cache_step=0
  )
  view = objective.view(checkpoint.params, part.vocab)
  model = networks.network(checkpoint.config)
  differ = jax.jit(functools.partial(_differences, part))
  batch = min(batch, len(given))
  found: list[tuple[np.ndarray, ...]] = []
  for first in range(0, len(given), batch):
    numbers = np.arange(first, first + batch) % len(given)
    group = [given[number] for number in numbers.tolist()]
    bucket = min(b for b in buckets if b >= max(len(t.prompt) for t in group))
    size = windows.WindowConfig(
      bucket + engine.max_new_tokens, _WINDOWS, part.gamma, batch
    )
    plain = _batch(group, np.zeros((batch, 0), np.int32), size)
    read = {}
    if part.layers:
      read = features.forward(
        model, part.layers, 0.0, checkpoint.params, plain.tokens, plain.length,
        kept=jnp.float32,
      )  # fmt: skip
    texts = replay.Texts(
      part.replay_params, *map(jnp.asarray, (plain.tokens, plain.length)),
      vocab=jnp.asarray(part.vocab),
    )  # fmt: skip
    prompt = [len(text.prompt) for text in group]
    for heard, live in _several(
      replay.walk(engine, checkpoint.params, texts, prompt, bucket)
    ):
      anchors = np.asarray(heard.anchor)
      rows = _batch(group, anchors, size).replace(**read)
      apart, same = jax.device_get(differ(part.params, view, rows, heard))
      valid = np.asarray(heard.valid) & live[..., None]
      valid &= (first + np.arange(batch) < len(given))[:, None, None]
      row, window, slot = np.nonzero(valid)
      found.append(
        (numbers[row], anchors[row, window], slot, apart[valid], same[valid])
      )
  return _row(part, given, tolerance, found)


def _row(part: Part, given, tolerance, found) -> served_report.Row:
  number, anchor, slot, apart, same = map(np.concatenate, zip(*found))
  gamma = part.replay.max_depth
  if not len(apart):
    raise errors.InputError(
      f'The drafter {part.source} was compared in no slot: the texts are too '
      'short. Give longer ones.'
    )
  by_slot = [apart[slot == j].max(initial=0.0) for j in range(gamma)]
  worst = int(np.argmax(apart))  # a NaN, if there is one
  return served_report.Row(
    name=part.name,
    source=part.source,
    served=part.served,
    windows=len(set(zip(number.tolist(), anchor.tolist()))),
    slots=len(apart),
    agreement=float(same.mean()),
    by_slot=tuple(map(float, by_slot)),
    text=given[number[worst]].id,
    anchor=int(anchor[worst]),
    slot=int(slot[worst]) + 1,
    tolerance=tolerance,
  )


def _several(
  cycles: Iterator[tuple[replay.Heard, np.ndarray]],
) -> Iterator[tuple[replay.Heard, np.ndarray]]:
  """Yields windows of several cycles together, [B, W, ...]; blank ones last."""
  kept: list[tuple[replay.Heard, np.ndarray]] = []

  def together():
    blank = kept[-1][0], np.zeros_like(kept[-1][1])
    every = kept + [blank] * (_WINDOWS - len(kept))
    return (
      jax.tree.map(lambda *x: jnp.stack(x, 1), *(heard for heard, _ in every)),
      np.stack([live for _, live in every], axis=1),
    )

  for cycle in cycles:
    kept.append(cycle)
    if len(kept) == _WINDOWS:
      yield together()
      kept.clear()
  if kept:
    yield together()


def _batch(
  group: Sequence[Text], anchors: np.ndarray, size: windows.WindowConfig
) -> training_types.TrainBatch:
  """Returns the batch of texts with these anchors [B, W]."""
  rows = [
    windows.row(number, text, anchors[number], size)  # pyright: ignore[reportArgumentType]  # it has the two fields
    for number, text in enumerate(group)
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _differences(part: Part, params, view, batch, heard: replay.Heard):
  """Returns [B, W, G] the largest difference, and whether the argmax agrees.

  Of log-probabilities over the tokens that the served drafter gives a score:
  it may leave out some that it never drafts, as DFlash does its mask.
  """
  gamma = heard.valid.shape[-1]
  shown = None
  if part.replay.prefixes:
    more = part.gamma - gamma
    shown = jnp.pad(heard.shown, ((0, 0), (0, 0), (0, more)))
  predictions = part.score(params, view, batch, part.gamma, shown)
  head = view.head if predictions.head is None else predictions.head
  rows = jnp.arange(batch.tokens.shape[0])[:, None, None]
  states = predictions.states[rows, predictions.place[..., :gamma]]
  trained = layers.dense(states, head)
  if part.replay.head is not None:
    trained = jnp.take_along_axis(trained, heard.index, axis=-1)
  given = ~jnp.isneginf(heard.scores)
  normal = lambda x: jax.nn.log_softmax(jnp.where(given, x, -jnp.inf))
  trained, served = normal(trained), normal(heard.scores)
  apart = jnp.max(jnp.where(given, jnp.abs(trained - served), 0), axis=-1)
  apart = jnp.where(jnp.any(given, axis=-1), apart, jnp.inf)
  return apart, jnp.argmax(trained, -1) == jnp.argmax(served, -1)


def check(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  names: Sequence[str] | None,
  path: str | None,
  limit: int | None,
  *,
  against: str = '',
  tolerance: float = TOLERANCE,
  report: reporting.Reporter = reporting.SILENT,
) -> served_report.Report:
  """Returns the comparison of the drafters of systems.

  `names` are by default those of the config; see `parts`, `texts`, `compare`.
  """
  if recipe.model.int8:
    raise errors.InputError(
      f'config.int8 is {recipe.model.int8!r}, but drafters are trained with '
      'weights that are not rounded; leave it empty.'
    )
  found = parts(recipe, checkpoint, names or recipe.bench.systems, against)
  rows = []
  with jax.default_matmul_precision('highest'):
    given = texts(recipe, checkpoint, path, limit)
    plain = decoding.system(recipe, checkpoint, 'ar')
    with report.progress('replaying', len(found)) as show:
      for part in found:
        show(len(rows), len(found), part.name)
        rows.append(
          compare(
            part,
            checkpoint,
            plain.engine,
            given,
            plain.buckets,
            recipe.decoding.batch,
            tolerance,
          )  # fmt: skip
        )
  return served_report.Report(
    rows,
    {
      'verifier': checkpoint.source,
      'fingerprint': checkpoint.fingerprint,
      'texts': len(given),
      'tolerance': tolerance,
      'device': decoding.device(),
      'jax': jax.__version__,
    },
  )
