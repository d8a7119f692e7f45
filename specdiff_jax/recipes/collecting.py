"""From a recipe to trajectories."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from specdiff_jax.checkpoints import weights
from specdiff_jax.collecting import collect as collect_lib
from specdiff_jax.collecting import refresh
from specdiff_jax.collecting import stored_distribution
from specdiff_jax.core import errors
from specdiff_jax.core import fields as field_lib
from specdiff_jax.data import dataset
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import trajectories
from specdiff_jax.data import windows
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.decoding import rows
from specdiff_jax.drafters import family
from specdiff_jax.drafters import registry
from specdiff_jax.models import networks
from specdiff_jax.parallel import processes
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.recipes import systems
from specdiff_jax.recipes import training as build_training
from specdiff_jax.training import checksum
from specdiff_jax.training import every_anchor
from specdiff_jax.training import features
from specdiff_jax.training import objective
from specdiff_jax.training.checkpoint import saving

_SHARED_S = 600  # in which a shared disk is to show what others wrote
_DAYS_MS = 20 * 24 * 3600 * 1000  # in which every process is to do its share


@fields.rim()
def check(recipe: recipe_lib.Recipe) -> None:
  """Raises InputError on values that nothing can be collected with."""
  decoding.check(recipe)
  options = recipe.collecting
  field_lib.check(options)
  if stop := recipe.decoding.stop:
    raise errors.InputError(
      f'config.stop is {stop!r}, but trajectories are whole: '
      'they end at an end token or the limit. Leave it empty.'
    )
  if options.completions > 1 and not recipe.sampling.temperature:
    raise errors.InputError(
      f'config.completions is {options.completions}, but at temperature 0 all '
      'completions of a prompt are the same. Set config.temperature, or '
      'leave it at 1.'
    )


def requests(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  texts: Sequence[prompts_lib.Prompt],
) -> list[collect_lib.Request]:
  """Returns config.completions requests for each prompt.

  Raises InputError if a prompt is longer than the largest of prompt_buckets, or
  the verifier has no positions for it.
  """
  found = collect_lib.requests_of(
    prompts_lib.repeated(texts, recipe.collecting.completions),
    lambda prompt: decoding.tokens(recipe, checkpoint, prompt),
    max(recipe.decoding.prompt_buckets),
  )
  for one in found:
    decoding.check_positions(recipe, checkpoint, one.id, len(one.prompt))
  return found


def collect(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  wanted: Sequence[collect_lib.Request],
  workdir: str,
  progress: Callable[[int, int, int], None],
  name: str = '',
  facts: dict[str, Any] | None = None,
) -> dict[str, int]:
  """Completes what the journals in `workdir` lack; makes the dataset of them.

  The system `name` (else the config's) decides the speed, and under the rule
  `match` not the tokens. Each of several processes completes its share of what
  is wanted, and all return once all is there.

  Args:
    recipe: checked.
    checkpoint: the verifier.
    wanted: the same on all processes.
    workdir: the same folder for all processes.
    progress: called with (done, total, new tokens) of this process.
    name: of a system.
    facts: what else decides the trajectories, for the journals' header.

  Returns:
    The different prompts that were wanted, the trajectories in the dataset, the
    duplicates that it leaves out, and the new tokens of all processes.
  """
  one = decoding.system(recipe, checkpoint, name)

  def run(requests, on_done):
    one.decode(
      [request_lib.named(r.id, r.prompt) for r in requests],
      on_done=lambda request, made: on_done(request.id, made.tokens),
    )

  decides, sampling = recipe.deciding('text'), vars(recipe.sampling)
  header = (
    {name: value for name, value in sampling.items() if name in decides}
    | {
      'verifier': checkpoint.fingerprint,
      'dtype': ('int8/' if systems.is_int8(recipe, 'verifier') else '')
      + checkpoint.dtype.name,
      'slots': one.engine.drafter.buckets[-1],  # decides the last bits in bf16
    }
    | (facts or {})
  )
  extend: dict[str, Any] = {'at_once': rows.group_of(recipe.decoding.batch)}
  if recipe.collecting.store_top_k:
    top = _top_k(recipe, checkpoint)
    header |= {'store_top_k': top.k, 'law_temperature': top.temperature}
    extend = {'extend': top, 'at_once': top.rows}
  index, count = processes.process_index(), processes.process_count()
  with _all_or_none(), contextlib.ExitStack() as stack:
    processes.on_first(lambda: _no_dataset_alone(workdir))
    # All journals are open then: none is cut any more.
    journal = processes.together(
      lambda: stack.enter_context(trajectories.Journal(workdir, header, index))
    )
    before = collect_lib.done(wanted, trajectories.every(workdir), workdir)
    collect_lib.collect(
      wanted[index::count],
      run,
      journal,
      progress,
      elsewhere=before.keys(),
      **extend,
    )
  after = _all_there(workdir, {request.id for request in wanted})
  processes.on_first(lambda: dataset.build(workdir))
  manifest = dataset.build(workdir)
  return {
    'prompts': len({tuple(request.prompt) for request in wanted}),
    'trajectories': manifest['records'],
    'duplicates': manifest.get('duplicates', 0),
    'tokens': sum(n for key, n in after.items() if key not in before),
  }


def _no_dataset_alone(workdir: str) -> None:
  """Raises InputError where a dataset is, without the journals it is made of.

  A new journal's dataset would take its place.
  """
  if dataset.there(workdir) and not trajectories.paths(workdir):
    raise errors.InputError(
      f'{workdir} holds a dataset without its journal, which a run that goes on '
      'would need; give another --workdir.'
    )


@contextlib.contextmanager
def _all_or_none() -> Iterator[None]:
  """Waits at its end for all processes; an error of one is raised in all."""
  meeting = saving.meeting()
  try:
    yield
  except errors.InputError:
    with contextlib.suppress(Exception):
      meeting(key='failed', timeout_ms=_DAYS_MS)
    raise
  try:
    meeting(key='done', timeout_ms=_DAYS_MS)
  except Exception as error:
    raise errors.InputError(
      'Another process could not do its share, and says why. Nothing written '
      'is lost: start the same command again.'
    ) from error


def _all_there(workdir: str, ids: set[str]) -> dict[str, int]:
  """Returns `trajectories.lengths` once all ids are in it.

  All processes are done, but on a disk that they share it may take a moment
  until one sees what another wrote.
  """
  begin = time.monotonic()
  while True:
    start = time.monotonic()
    found = trajectories.lengths(workdir)
    if ids <= found.keys():
      return found
    if start - begin > _SHARED_S:
      raise errors.InputError(
        f'{workdir}: after {_SHARED_S // 60} minutes '
        f'{len(ids - found.keys())} of the {len(ids)} completions, which other '
        'processes have written, are not to be seen here. The work directory '
        'has to be on a disk that all processes share; with one, the same '
        'command makes what is missing.'
      )
    if processes.process_count() == 1:
      raise errors.InputError(
        f'{workdir}: {len(ids - found.keys())} of the {len(ids)} completions '
        'are not in the journals any more; another process took them away. '
        'Run the same command again, which makes them anew.'
      )
    time.sleep(max(1.0, 10 * (time.monotonic() - start)))


def _top_k(
  recipe: recipe_lib.Recipe, checkpoint: weights.Checkpoint
) -> stored_distribution.TopK:
  size, k = checkpoint.config.vocab_size, recipe.collecting.store_top_k
  if k > size:
    raise errors.InputError(
      f'config.store_top_k is {k}, but the verifier has '
      f'{size} tokens. Lower it.'
    )
  most = recipe.sampling.max_new_tokens + 1  # with the given token of a refresh
  return stored_distribution.TopK(
    model=networks.network(checkpoint.config),
    params=checkpoint.params,
    k=k,
    temperature=recipe.sampling.temperature or 1.0,
    rows=recipe.decoding.batch,
    sizes=tuple(sorted(n + most for n in recipe.decoding.prompt_buckets)),
    count=most,
  )


def refreshed(
  recipe: recipe_lib.Recipe,
  checkpoint: weights.Checkpoint,
  drafter: str,
  folder: str,
) -> tuple[list[collect_lib.Request], dict[str, Any]]:
  """Returns requests from where a drafter fails, and facts for the header.

  Raises InputError at temperature 0, where a prefix has one continuation only,
  for trajectories of another verifier, and where the drafter fails nowhere.

  Args:
    recipe: checked; its windows, tokens and eval_fraction as in training.
    checkpoint: the verifier.
    drafter: as config.drafter.
    folder: work directory of the trajectories that it drafts for.
  """
  field_lib.check(recipe.training)
  if not recipe.sampling.temperature:
    raise errors.InputError(
      'A refresh collects other continuations of the prefixes where the '
      'drafter fails, but config.temperature is 0, where there are none. '
      'Set it to the one that will be served.'
    )
  if recipe.model.int8:
    raise errors.InputError(
      f'config.int8 is {recipe.model.int8!r}, but where a drafter fails is asked '
      'with weights that are not rounded; leave it empty.'
    )
  manifest, source = build_training.recorded(checkpoint, folder)
  train, _ = windows.split(source, recipe.training.eval_fraction)
  accepted, digest = _accepted(recipe, checkpoint, drafter, train)
  options = recipe.collecting
  positions = checkpoint.config.max_positions - recipe.sampling.max_new_tokens
  most = min(max(recipe.decoding.prompt_buckets), positions)
  found = []
  for index, counts in enumerate(accepted):
    anchors = refresh.failing(
      counts, options.refresh_accepted, options.refresh_anchors
    )
    found += refresh.requests(train[index], anchors, options.completions, most)
  if not found:
    raise errors.InputError(
      f'The drafter {drafter} fails nowhere in {folder} (nowhere '
      f'{options.refresh_accepted} tokens or less are accepted) within '
      f'{most} tokens. Raise config.refresh_accepted or prompt_buckets.'
    )
  facts = {'refresh': {
      'drafter': digest,
      'from': manifest['journal_sha256'],
      'anchors': options.refresh_anchors,
      'accepted': options.refresh_accepted,
  }}  # fmt: skip
  return found, facts


def _accepted(recipe, checkpoint, drafter: str, source):
  """Returns accepted tokens at every anchor of each trajectory, and a digest.

  The digest is the drafter's.
  """
  options = recipe.training
  kind = options.network.kind
  loading = dataclasses.replace(recipe.systems['sps'], drafter=drafter)
  one = build_drafters.load(loading, checkpoint, kind)
  network, params = one.config, family.cast(one, checkpoint)
  gamma = getattr(network, 'gamma', options.gamma)
  sizes = windows.WindowConfig(
    options.tokens, options.windows, gamma, options.batch
  )
  score = registry.network(kind).score(network)
  drafted = jax.jit(
    objective.make_matches(score, gamma, recipe.memory.vocab_block)
  )
  view = objective.view(checkpoint.params, np.asarray(one.vocab))
  add = lambda batch: batch
  if network.features:
    model = networks.network(checkpoint.config)
    add = features.Features(model, checkpoint.params, network.features, 0)
  accepted = refresh.accepted_counts(
    lambda batch: drafted(params, view, add(batch)),
    every_anchor.batches(source, sizes),
    len(source),
  )
  return accepted, checksum.digest(params)
