"""Names on the Hugging Face hub: its cache on disk first, then the network."""

import os
import re

from specdiff_jax.core import errors
from specdiff_jax.core import files

_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_WANTED = ('*.json', '*.safetensors', '*.jinja', 'tokenizer.model')


def is_name(path: str) -> bool:
  """True for 'org/name'."""
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
  """Returns the snapshot of `main` in the cache, or '' if it is not whole.

  The cache keeps a commit's files in models--org--name/snapshots/COMMIT, and
  in refs/main which commit is the current one.
  """
  root = os.path.join(cache_dir(), 'models--' + name.replace('/', '--'))
  try:
    with open(os.path.join(root, 'refs', 'main'), encoding='utf-8') as file:
      commit = file.read().strip()
  except OSError:
    return ''
  snapshot = os.path.join(root, 'snapshots', commit)
  whole = commit and os.path.basename(commit) == commit and _is_whole(snapshot)
  return snapshot if whole else ''


def _is_whole(snapshot: str) -> bool:
  """True if config and all the weights are there; a download may have died."""
  there = lambda name: os.path.exists(os.path.join(snapshot, name))
  if not there('config.json'):
    return False
  index = os.path.join(snapshot, 'model.safetensors.index.json')
  if not os.path.exists(index):
    return there('model.safetensors')
  shards = files.read_json(index).get('weight_map')
  return isinstance(shards, dict) and all(
      isinstance(shard, str) and there(shard) for shard in shards.values()
  )


def _download(name: str) -> str:
  try:
    import huggingface_hub  # optional, and slow to import
  except ImportError as e:
    raise errors.InputError(
        f'{name}: there is no such file or directory, nor a whole model of '
        f'this name in the hub\'s cache ({cache_dir()}), and to fetch it from '
        'the Hugging Face hub the package huggingface_hub is needed; correct '
        'the path, or `pip install huggingface_hub`.'
    ) from e
  try:
    return huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED))
  except Exception as e:  # it raises dozens of kinds, from several packages
    first = (str(e).strip() or type(e).__name__).splitlines()[0]
    raise errors.InputError(
        f'{name}: there is no such file or directory, nor a whole model of '
        f'this name in the hub\'s cache ({cache_dir()}), and the Hugging Face '
        f'hub did not give one ({first}). Check the name and the network, log '
        'in if the model is gated, or give a local directory.'
    ) from e
