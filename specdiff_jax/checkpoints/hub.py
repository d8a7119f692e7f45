"""Names on the Hugging Face hub: its cache on disk first, then the network."""

import os
import re

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
  own = os.environ.get('HF_HUB_CACHE') or os.environ.get(
    'HUGGINGFACE_HUB_CACHE'  # its older name
  )
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  home = os.environ.get('HF_HOME') or os.path.join(base, 'huggingface')
  return os.path.expanduser(own or os.path.join(home, 'hub'))


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
  commit = _commit(root, revision or 'main') or revision
  if commit:
    names = [commit]
  elif os.path.lexists(os.path.join(root, 'refs', 'main')):
    names = []
  else:
    names = _names(os.path.join(root, 'snapshots'))
  found = [commit for commit in names if _is_whole(root, commit)]
  if len(found) > 1:
    raise errors.InputError(
      f"{name}: the hub's cache has {len(found)} snapshots of it and no "
      f'refs/main that says which is current; give one of them, as in '
      f'{name}@{found[0]}: {printing.names(found)}.'
    )
  if not found:
    return ''
  snapshot = os.path.join(root, 'snapshots', found[0])
  _check_links(root, snapshot)
  return snapshot


def _names(folder: str) -> list[str]:
  try:
    return sorted(os.listdir(folder))
  except OSError:
    return []


def _commit(root: str, ref: str) -> str:
  """Returns the commit that a branch is at; '' if the cache does not say."""
  path = os.path.join(root, 'refs', ref)
  if not os.path.isfile(path):
    return ''
  with files.open_file(path) as file:
    return file.read(200).decode('ascii', 'replace').strip()


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


def _is_whole(root: str, commit: str) -> bool:
  """True if config and all the weights are there; a download may have died.

  The tokenizer has to be more than a vocab.json without its merges. A drafter
  may have none.
  """
  if os.path.basename(commit) != commit or commit in ('', '.', '..'):
    return False
  snapshot = os.path.join(root, 'snapshots', commit)
  there = lambda name: os.path.exists(os.path.join(snapshot, name))
  if not there('config.json'):
    return False
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
  try:
    import huggingface_hub  # optional, and slow to import
  except ImportError as e:
    raise errors.InputError(
      f'{name}: there is no such file or directory, nor a whole model of '
      f"this name in the hub's cache ({cache_dir()}), and to fetch it from "
      'the Hugging Face hub the package huggingface_hub is needed; correct '
      'the path, or `pip install huggingface_hub`.'
    ) from e
  try:
    name, _, revision = name.partition('@')
    more = {'revision': revision} if revision else {}
    return huggingface_hub.snapshot_download(
      name, allow_patterns=list(_WANTED), **more
    )
  except Exception as e:  # it raises dozens of kinds, from several packages
    first = (str(e).strip() or type(e).__name__).splitlines()[0]
    raise errors.InputError(
      f'{name}: there is no such file or directory, nor a whole model of '
      f"this name in the hub's cache ({cache_dir()}), and the Hugging Face "
      f'hub did not give one ({first}). Check the name and the network, log '
      'in if the model is gated, or give a local directory.'
    ) from e
