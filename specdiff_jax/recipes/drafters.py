"""From a config to trained drafters: new sizes, loading, drafters that serve."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Any

import jax.core
import numpy as np

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import jax_settings
from specdiff_jax.drafters import denoising
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import heads
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import published
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import strategies
from specdiff_jax.drafters import tables
from specdiff_jax.recipes import fields
from specdiff_jax.recipes import groups
from specdiff_jax.recipes import options as options_lib

Options = options_lib.Trained
ZOO = pathlib.Path(__file__).parent.parent / 'zoo'
_PRESET = 'preset:'


def sizes(
  options: Options | groups.Training,
  checkpoint: weights.Checkpoint,
  kind: str = '',
) -> drafter_file.Config:
  """Returns the sizes of a new network of a kind, by default the config's."""
  kind = kind or options.network.kind
  new = registry.options(kind)
  # The mask of an adapted one is among those of masked_lm.
  given = {**vars(options.masked_lm), **vars(options.network)}
  names = [field.name for field in dataclasses.fields(new)]
  with fields.rim(names, 'network.'):
    return registry.network(kind).sizes(
      new(**{name: given[name] for name in names}),
      options.gamma,
      checkpoint.config,
    )


def window(
  options: Options,
  checkpoint: weights.Checkpoint,
  strategy: Any,
  head: str = '',
) -> family_lib.Made:
  """Returns the drafter options.drafter, which fills windows, and its params.

  A directory is a published drafter, whose config.json names its family; a
  file is one of ours. `head` is the file of a head, the source of a lattice.
  """
  serving, name = _serving(options, strategy), options.drafter
  if name.startswith(_PRESET):
    with fields.rim():
      _no_head(head, name)
      return _of_shape(name.removeprefix(_PRESET), checkpoint, serving)
  if _is_published(name):
    _no_head(head, name)
    return _published(_folder(name), checkpoint, serving)
  family, part = registry.kinds()[_kind(options)]
  return _made(options, checkpoint, serving, family, {part: name}, head)


def _kind(options: Options) -> str:
  """Returns the kind of options.drafter, a network that fills windows."""
  name = options.drafter
  kind = (
    options.network.kind
    if name == 'random'
    else drafter_file.kind(_drafter_path(name))
  )
  windows = [k for k, (one, _) in registry.kinds().items() if _fills(one)]
  # Of a kind that fills no windows, the file itself says what is wrong.
  return kind if kind in windows else windows[0]


def trained(
  name: str, options: Options, checkpoint: weights.Checkpoint
) -> tuple[family_lib.Trained, str]:
  """Returns options.drafter as it was trained for a system, and its kind.

  Raises InputError where it is a published one.
  """
  path = options.drafter
  if path.startswith(_PRESET) or (path and _is_published(path)):
    raise errors.InputError(
      f'config.drafter is {path}, which was trained elsewhere, but this needs '
      'a file that `specdiff distill` wrote.'
    )
  family = registry.systems().get(name, '')
  kind = family if family in registry.kinds() else _kind(options)
  return load(options, checkpoint, kind), kind


def _no_head(head: str, drafter: str) -> None:
  """Raises InputError where there is a head that the drafter cannot take."""
  if head:
    raise errors.InputError(
      f'config.head is {head!r}, but {drafter} takes no head: that is trained '
      'on a drafter that `specdiff distill` wrote, of the kinds '
      f'{", ".join(heads_go_with())}. Give such a drafter, or leave head empty.'
    )


def heads_go_with() -> list[str]:
  """Returns the kinds of networks that take a head."""
  return [
    kind
    for kind, (one, _) in registry.kinds().items()
    if registry.family(one).heads
  ]


def _of_shape(name: str, checkpoint, serving) -> family_lib.Made:
  """Returns the drafter preset:NAME, without weights: for tracing (`aot`).

  Raises InputError where there is no such drafter, or this is no tracing.
  """
  families = map(registry.family, registry.FAMILIES)
  shapes = {shape: one for one in families for shape in one.shapes}
  if name not in shapes:
    raise errors.InputError(
      f'drafter is {_PRESET + name!r}, but the drafters whose shape is known '
      f'are {", ".join(shapes)}.'
    )
  if not isinstance(checkpoint.params['final_norm'], jax.core.Tracer):
    raise errors.InputError(
      f'drafter is {_PRESET + name!r}, a shape without weights, which only '
      '`aot` takes; give the directory of the model.'
    )
  return shapes[name].shape(name, checkpoint, serving)  # pyright: ignore[reportOptionalCall]  # it has shapes


def _fills(family: str) -> bool:
  """Whether a family's drafters fill windows, for any system that wants them."""
  return not registry.FAMILIES[family].system


def of_system(
  name: str,
  options: Options,
  checkpoint: weights.Checkpoint,
  strategy: marginals.Strategy,
) -> family_lib.Made:
  """Returns the drafter of a system that one family drafts for, and params."""
  family, given = registry.systems()[name], paths(name, options)
  serving, first = _serving(options, strategy), next(iter(given.values()))
  if registry.family(family).readers and _is_published(first):
    return _published(_folder(first), checkpoint, serving, name)
  return _made(options, checkpoint, serving, family, given)


def parts(
  name: str,
  options: Options,
  checkpoint: weights.Checkpoint,
  gammas: Mapping[str, int] | None = None,
) -> dict[str, family_lib.Made]:
  """Returns the drafters of windows that a system is made of, and params.

  `gammas` are the tokens that parts draft, where they are not `options.gamma`.
  """
  given = paths(name, options)
  for part, path in given.items():
    if not path and part not in registry.optional(name):
      raise errors.InputError(
        f'config.drafters.{name}.{part} is empty, but the system {name!r} needs '
        f'its drafters {", ".join(given)}: give a path for each, or '
        'config.drafter for those that are empty.'
      )
  return {
    part: window(
      dataclasses.replace(
        options, drafter=path, gamma=(gammas or {}).get(part, options.gamma)
      ),
      checkpoint,
      strategies.Chain(),
    )
    for part, path in given.items()
    if path
  }


def paths(name: str, options: Options) -> dict[str, str]:
  """Returns the path of each part of the drafter of the system `name`."""
  with fields.rim():
    return registry.paths(name, options.drafter)


def trained_on(name: str, options: Options) -> frozenset[str]:
  """Returns hashes of the prompts that a system's drafters were trained on.

  Those of `prompts.text_hash`, as far as the files say.
  """
  if not getattr(options, 'drafter', ''):
    return frozenset()
  files_of = map(shipped, paths(name, options).values())
  return frozenset().union(
    *(drafter_file.trained_on(f) for f in files_of if drafter_file.is_one(f))
  )


def _made(
  options, checkpoint, serving, family: str, given: Mapping[str, str], head=''
):
  """Returns the drafter of a family whose networks lie in these files."""
  networks = {
    part: load(options, checkpoint, kind, given[part])
    for kind, (one, part) in registry.kinds().items()
    if one == family
  }
  made: Any = registry.family(family).drafter  # it is trained
  with fields.rim():
    if not head:
      return made(networks, checkpoint, serving)
    if not registry.family(family).heads:
      _no_head(head, f'a drafter of the kind {family}')
    (one,) = networks.values()
    source, edges = heads.load(shipped(head), one, checkpoint)
    strategy = dataclasses.replace(serving.strategy, source=source)
    serving = dataclasses.replace(serving, strategy=strategy)
    drafter, params = made(networks, checkpoint, serving)
    return drafter, drafter.with_edges(params, edges)


def _serving(options: Options, strategy) -> family_lib.Serving:
  one = family_lib.Serving(options.gamma, strategy, told=options.masked_lm)
  if not isinstance(options, options_lib.Diffusion):
    return one
  return dataclasses.replace(
    one,
    denoising=denoising.Denoising(
      options.denoising_steps, options.denoising_order, options.remask
    ),
    context_window=options.context_window,
  )


def _folder(name: str) -> str:
  """Returns the directory of a published drafter, fetched if need be."""
  return name if os.path.isdir(name) else hub.folder(name)


def _published(
  folder: str, checkpoint, serving, system: str = ''
) -> family_lib.Made:
  """Returns the published drafter of a directory, and its params.

  `system` is the one that its family alone drafts for; '' for windows.
  """
  form = serving.told.family
  with fields.rim():
    readers = tables.merged('readers')
    if form and form not in readers:
      raise errors.InputError(
        f'masked_lm.family is {form!r}, but it has to be one of '
        f'{", ".join(readers)}, or empty.'
      )
    found, params = published.load(folder, form, checkpoint.dtype.name)
    wanted = registry.FAMILIES[found.family].system
    if wanted != system:
      goes = wanted or 'specdiff and others whose drafters fill windows'
      raise errors.InputError(
        f'{folder}: this is a drafter of the family {found.family}, which goes '
        f'with the system {goes}; take that system, or another drafter.'
      )
    return registry.family(found.family).published(  # pyright: ignore[reportOptionalCall]  # it has readers
      folder, found, params, checkpoint, serving
    )


def load(
  options: Options, checkpoint: weights.Checkpoint, kind: str, path: str = ''
) -> family_lib.Trained:
  """Returns a network of this verifier's, by default options.drafter."""
  path, network = path or options.drafter, registry.network(kind)
  if path == 'random':
    found = sizes(options, checkpoint, kind)
    start = jax.jit(network.initial, static_argnums=0)  # once, not by operation
    params = start(found, jax_settings.key(options.seed))
    vocab = np.arange(found.vocab)
  else:
    found, params, vocab = drafter_file.load(
      _drafter_path(path), checkpoint, network.config
    )
  gamma = getattr(found, 'gamma', options.gamma)
  if options.gamma > gamma:
    raise errors.InputError(
      f'config.gamma is {options.gamma}, but the drafter {path} drafts '
      f'{gamma} tokens at once. Lower gamma.'
    )
  return family_lib.Trained(found, params, vocab, path)


def _drafter_path(name: str) -> str:
  """Returns the file that options.drafter names: a path, or one of the zoo."""
  if not name:
    raise errors.InputError(
      'config.drafter is empty, but this system needs one: give a '
      "safetensors file that `specdiff distill` wrote, 'random', or the "
      'directory of a published drafter.'
    )
  if _is_published(name):
    raise errors.InputError(
      f'{name}: this is a directory or a name on the hub, but this system '
      'drafts with a safetensors file that `specdiff distill` wrote '
      '(config.drafters has one for each system). Published diffusion '
      'drafters go with specdiff, dflash, deer, specdiff2, tree, best_first, '
      'lattice, diffuspec and adaptive.'
    )
  return shipped(name)


def shipped(name: str) -> str:
  """Returns the file of a drafter in the zoo; any other path as it is."""
  file = ZOO / name
  here = not os.path.exists(name) and file.is_file()
  return str(file) if here else name


def of_zoo(system: str, checkpoint: weights.Checkpoint) -> str:
  """Returns the shipped drafter of a system for this verifier; '' if none."""
  family = registry.systems().get(system)
  kinds = [
    kind
    for kind, (one, _) in registry.kinds().items()
    if (one == family if family else _fills(one))
  ]
  for path in sorted(ZOO.glob('*.safetensors')):
    told = safetensors_io.metadata(str(path))
    if (
      told.get('verifier') == checkpoint.fingerprint
      and drafter_file.kind_of(told) in kinds
    ):
      return str(path)
  return ''


def longest(name: str) -> int:
  """Returns how many tokens a drafter drafts at most; 0 if it does not say.

  What is wrong with a file is told by `load`.
  """
  path = shipped(name)
  if not os.path.isfile(path):
    return 0
  text = safetensors_io.metadata(path).get('config', '')
  try:
    gamma = files.parse_json(text).get('gamma')
  except (AttributeError, ValueError):
    return 0
  return gamma if type(gamma) is int and gamma > 0 else 0


def _is_published(name: str) -> bool:
  """True for a directory, and for a name on the hub."""
  if os.path.exists(name) or name.endswith('.safetensors'):
    return os.path.isdir(name)
  return hub.is_name(name)
