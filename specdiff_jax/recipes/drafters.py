"""From a config to trained drafters: new sizes, loading, drafters that serve."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import os
import pathlib

import ml_collections
import numpy as np

from specdiff_jax.checkpoints import hub
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import jax_settings
from specdiff_jax.drafters import denoising
from specdiff_jax.drafters import drafter_file
from specdiff_jax.drafters import family as family_lib
from specdiff_jax.drafters import marginals
from specdiff_jax.drafters import published
from specdiff_jax.drafters import registry
from specdiff_jax.drafters import tables
from specdiff_jax.recipes import fields

Config = ml_collections.ConfigDict
ZOO = pathlib.Path(__file__).parent.parent / 'zoo'
_PRESET = 'preset:'
_SHAPES = 'masked_lm'  # the family of drafters that are known by their shape


@contextlib.contextmanager
def _named(
  names: Collection[str] = tuple(fields.ALL), node: str = ''
) -> Iterator[None]:
  """Gives the argument that an error begins with the name of its field."""
  try:
    yield
  except errors.InputError as error:
    first = str(error).split(' ', 1)[0].split('.')[0]
    if first not in names:
      raise
    raise errors.InputError(f'config.{node}{error}') from error


def sizes(
  config: Config, checkpoint: weights.Checkpoint, kind: str = ''
) -> drafter_file.Config:
  """Returns the sizes of a new network of a kind, by default the config's."""
  options = registry.network(kind or config.network.kind).options
  given = {**config.masked_lm, **config.network}  # the mask of an adapted one
  names = [field.name for field in dataclasses.fields(options)]
  with _named(names, 'network.'):
    return options(**{name: given[name] for name in names}).sizes(
      config.gamma, checkpoint.config
    )


def window(
  config: Config,
  checkpoint: weights.Checkpoint,
  strategy: marginals.Strategy,
  cache_dtype: str,
) -> family_lib.Made:
  """Returns the drafter config.drafter, which fills windows, and its params.

  A directory is a published drafter, whose config.json names its family; a
  file is one of ours.
  """
  serving, name = _serving(config, strategy, cache_dtype), config.drafter
  if name.startswith(_PRESET):
    with _named():
      return registry.family(_SHAPES).shape(
        name.removeprefix(_PRESET), checkpoint, serving
      )
  if _is_published(name):
    folder = name if os.path.isdir(name) else hub.folder(name)
    return _published(folder, checkpoint, serving)
  kind = (
    config.network.kind
    if name == 'random'
    else drafter_file.kind(_drafter_path(name))
  )
  windows = [k for k, (one, _) in registry.kinds().items() if _fills(one)]
  # Of a kind that fills no windows, the file itself says what is wrong.
  kind = kind if kind in windows else windows[0]
  family, part = registry.kinds()[kind]
  return _made(config, checkpoint, serving, family, {part: name})


def _fills(family: str) -> bool:
  """Whether a family's drafters fill windows, for any system that wants them."""
  return not registry.FAMILIES[family].system


def of_system(
  name: str,
  config: Config,
  checkpoint: weights.Checkpoint,
  strategy: marginals.Strategy,
  cache_dtype: str,
) -> family_lib.Made:
  """Returns the drafter of a system that one family drafts for, and params."""
  return _made(
    config,
    checkpoint,
    _serving(config, strategy, cache_dtype),
    registry.systems()[name],
    paths(name, config),
  )


def paths(name: str, config: Config) -> dict[str, str]:
  """Returns the path of each part of the drafter of the system `name`."""
  given = config.drafters.to_dict().get(name, '')
  with _named():
    return registry.paths(name, given, config.drafter)


def _made(config, checkpoint, serving, family: str, given: Mapping[str, str]):
  """Returns the drafter of a family whose networks lie in these files."""
  networks = {
    part: load(config, checkpoint, kind, given[part])
    for kind, (one, part) in registry.kinds().items()
    if one == family
  }
  with _named():
    return registry.family(family).drafter(networks, checkpoint, serving)


def _serving(config: Config, strategy, cache_dtype) -> family_lib.Serving:
  return family_lib.Serving(
    gamma=config.gamma,
    strategy=strategy,
    cache_dtype=cache_dtype,
    denoising=denoising.Denoising(
      config.denoising_steps, config.denoising_order, config.remask
    ),
    context_window=config.context_window,
    told=family_lib.Told(**config.masked_lm),
  )


def _published(folder: str, checkpoint, serving) -> family_lib.Made:
  """Returns the published drafter of a directory, and its params."""
  form = serving.told.family
  with _named():
    readers = tables.merged('readers')
    if form and form not in readers:
      raise errors.InputError(
        f'masked_lm.family is {form!r}, but it has to be one of '
        f'{", ".join(readers)}, or empty.'
      )
    dtype = checkpoint.params['final_norm'].dtype.name
    found, params = published.load(folder, form, dtype)
    return registry.family(found.family).published(
      folder, found, params, checkpoint, serving
    )


def load(
  config: Config, checkpoint: weights.Checkpoint, kind: str, path: str = ''
) -> family_lib.Trained:
  """Returns a network of this verifier's, by default config.drafter."""
  path, network = path or config.drafter, registry.network(kind)
  if path == 'random':
    found = sizes(config, checkpoint, kind)
    params = network.initial(found, jax_settings.key(config.seed))
    vocab = np.arange(found.vocab)
  else:
    found, params, vocab = drafter_file.load(
      _drafter_path(path), checkpoint, network.config
    )
  gamma = getattr(found, 'gamma', config.gamma)
  if config.gamma > gamma:
    raise errors.InputError(
      f'config.gamma is {config.gamma}, but the drafter {path} drafts '
      f'{gamma} tokens at once. Lower gamma.'
    )
  return family_lib.Trained(found, params, vocab, path)


def _drafter_path(name: str) -> str:
  """Returns the file that config.drafter names: a path, or one of the zoo."""
  if not name:
    raise errors.InputError(
      'config.drafter is empty, but this system needs one: give a '
      "safetensors file that `specdiff distill` wrote, 'random', or the "
      'directory of a published diffusion drafter.'
    )
  if _is_published(name):
    raise errors.InputError(
      f'{name}: this is a directory or a name on the hub, but this system '
      'drafts with a safetensors file that `specdiff distill` wrote '
      '(config.drafters has one for each system). Published diffusion '
      'drafters go with specdiff, specdiff2, tree, best_first and adaptive.'
    )
  return shipped(name)


def shipped(name: str) -> str:
  """Returns the file of a drafter in the zoo; any other path as it is."""
  file = ZOO / name
  here = not os.path.exists(name) and file.is_file()
  return str(file) if here else name


def _is_published(name: str) -> bool:
  """True for a directory, and for a name on the hub."""
  if os.path.exists(name) or name.endswith('.safetensors'):
    return os.path.isdir(name)
  return hub.is_name(name)
