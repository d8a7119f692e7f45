"""Names on the Hugging Face hub: its cache on disk first, then the network."""

import os
import re

import huggingface_hub
from huggingface_hub import constants

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing

_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*(@[\w-][\w.-]*)?')
_WANTED = (
    '*.json', '*.safetensors', '*.jinja', 'tokenizer.model', 'merges.txt',
)  # fmt: skip


def is_name(path: str) -> bool:
  """True for 'org/name', and 'org/name@REVISION' with a commit or branch."""
  return bool(_NAME.fullmatch(path))


def folder(name: str) -> str:
  """Returns the local directory of a model of the hub.

  What the hub's cache holds in full is taken as it is, without any network;
  else it is downloaded into that cache, by the package huggingface_hub.
  """
  return cached(name) or _download(name)


def cache_dir() -> str:
  """Returns where the hub's cache lies: HF_HUB_CACHE, or under HF_HOME."""
  return constants.HF_HUB_CACHE


def cached(name: str) -> str:
  """Returns the snapshot of a model in the cache, or '' if it is not whole.

  The cache keeps a commit's files in models--org--name/snapshots/COMMIT, and
  in refs/BRANCH which commit is the current one. Where no revision is asked
  for and there is no refs/main, since it was filled by commit, the one whole
  snapshot is taken.

  Raises InputError where there are several of them, or one has links that
  lead out of the cache.
  """
  name, _, revision = name.partition('@')
  root = os.path.join(cache_dir(), 'models--' + name.replace('/', '--'))
  if revision or os.path.lexists(os.path.join(root, 'refs', 'main')):
    revisions = [revision or 'main']
  else:
    revisions = _names(os.path.join(root, 'snapshots'))
  snapshots = (_snapshot(name, one) for one in revisions)
  found = [folder for folder in snapshots if folder and _is_whole(folder)]
  if len(found) > 1:
    commits = [os.path.basename(folder) for folder in found]
    raise errors.InputError(
      f"{name}: the hub's cache has {len(found)} snapshots of it and no "
      f'refs/main that says which is current; give one of them, as in '
      f'{name}@{commits[0]}: {printing.names(commits)}.'
    )
  if not found:
    return ''
  _check_links(root, found[0])
  return found[0]


def _names(folder: str) -> list[str]:
  try:
    return sorted(os.listdir(folder))
  except OSError:
    return []


def _snapshot(name: str, revision: str) -> str:
  """Returns the folder of a branch or commit; '' if its config is not there."""
  try:
    config = huggingface_hub.try_to_load_from_cache(
      name, 'config.json', cache_dir(), revision
    )
  except (OSError, ValueError):  # no such name, or a damaged ref
    return ''
  return os.path.dirname(config) if isinstance(config, str) else ''


def _check_links(root: str, snapshot: str) -> None:
  home = os.path.realpath(root)
  for folder, _, names in os.walk(snapshot):
    for name in (*names, ''):
      path = os.path.join(folder, name)
      real = os.path.realpath(path)
      if os.path.commonpath((real, home)) != home:
        raise errors.InputError(
          f"{path}: this file of the hub's cache is a link to {real}, "
          f'outside of {home}; delete that folder and download the model '
          'again.'
        )


def _is_whole(snapshot: str) -> bool:
  """True if all the weights are there; a download may have died.

  The tokenizer has to be more than a vocab.json without its merges. A drafter
  may have none.
  """
  there = lambda name: os.path.exists(os.path.join(snapshot, name))
  tokenizers = ('tokenizer.json', 'merges.txt', 'tokenizer.model')
  if there('vocab.json') and not any(map(there, tokenizers)):
    return False
  index = os.path.join(snapshot, 'model.safetensors.index.json')
  if there('model.safetensors') or not os.path.exists(index):
    return there('model.safetensors')
  shards = files.read_json(index).get('weight_map')
  return isinstance(shards, dict) and all(
    there(shard) for shard in set(map(str, shards.values()))
  )


def _download(name: str) -> str:
  repository, _, revision = name.partition('@')
  try:
    return huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=list(_WANTED)
    )
  except Exception as e:  # it raises dozens of kinds, from several packages
    first = (str(e).strip() or type(e).__name__).splitlines()[0]
    raise errors.InputError(
      f'{repository}: there is no such file or directory, nor a whole model of '
      f"this name in the hub's cache ({cache_dir()}), and the Hugging Face "
      f'hub did not give one ({first}). Check the name and the network, log '
      'in if the model is gated, or give a local directory.'
    ) from e
