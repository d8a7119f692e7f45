"""The TFDS side of the trajectories: `array_record` files, no TensorFlow.

Imported only where a dataset is built or read, since TFDS takes a second.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import io
import json
import os
import shutil
from typing import Any
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.data import journal

MANIFEST = 'manifest.json'
_GSM8K = (
  'https://raw.githubusercontent.com/openai/grade-school-math/master/'
  'grade_school_math/data'
)
_LARGEST = 64 << 20  # bytes of a manifest, which has the hash of each prompt

tfds.disable_progress_bar()  # the programs have others


class _Info(tfds.core.DatasetInfo):
  """A DatasetInfo that looks nothing up: the dataset is the user's."""

  def initialize_from_bucket(self) -> None:
    """Leaves the network and the temporary folder alone."""


class Trajectories(tfds.core.GeneratorBasedBuilder):
  """Completions of one verifier under one distribution, in journal order."""

  VERSION = tfds.core.Version('1.0.0')
  name = 'trajectories'
  url_infos = {}  # nothing is downloaded; TFDS would look for checksum files

  def __init__(
    self,
    records: Iterable[Mapping[str, Any]] = (),
    stored_top_k: int = 0,
    **kwargs,
  ):
    self._records, self._top_k = records, stored_top_k
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    return _Info(
      builder=self,
      description=self.__doc__,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(
        self._top()
        | {
          'id': tfds.features.Text(),
          'prompt_hash': tfds.features.Text(),
          'prompt': tokens,
          'completion': tokens,
          'temperature': tfds.features.Scalar(np.float32),
          'top_k': tfds.features.Scalar(np.int32),
          'top_p': tfds.features.Scalar(np.float32),
          'seed': tfds.features.Scalar(np.int64),
        }
      ),
    )

  def _top(self) -> dict[str, tfds.features.Tensor]:
    """Returns the features of the distribution, where it is stored."""
    if not self._top_k:
      return {}
    shape, make = (None, self._top_k), tfds.features.Tensor
    return {
      'top_ids': make(shape=shape, dtype=np.int32, encoding='bytes'),
      'top_log_p': make(shape=shape, dtype=np.float16, encoding='bytes'),
    }

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
    features: Any = self.info.features
    names = features.keys()
    for key, record in enumerate(self._records):
      yield key, {name: record[name] for name in names}


def write(
  folder: str,
  records: Iterable[Mapping[str, Any]],
  manifest: Mapping[str, Any],
) -> dict[str, Any]:
  """Puts a dataset and its `manifest.json` in the place of `folder`.

  What stood there stays until the new dataset is whole. Returns the manifest
  with checksums of the files and of itself. Raises InputError where the disk
  is full.
  """
  partial, old = folder + '.partial', folder + '.old'
  with journal.locked(os.path.dirname(folder) or '.'):
    there = read_manifest(folder)
    if there and there.items() >= manifest.items() and is_whole(folder, there):
      return there  # another process made it while this one waited
    for leftover in (partial, old):
      files.remove(leftover)
    try:
      os.makedirs(partial)
      _build(partial, records, manifest.get('stored_top_k', 0))
      made = journal.with_sum({**manifest, 'files': _digests(partial)})
      files.write_json(os.path.join(partial, MANIFEST), made)
      if os.path.lexists(folder):
        os.rename(folder, old)
      os.rename(partial, folder)
    except (OSError, RuntimeError, errors.InputError) as error:
      raise errors.InputError(  # RuntimeError: array_record's
        f'Cannot write the trajectory dataset {folder}: {error}. The journal '
        'that it is made from is whole and nothing is lost: free some space, '
        'and run the same command again.'
      ) from error
    finally:
      for leftover in (partial, old):
        files.remove(leftover)
  return made


def _digests(folder: str) -> dict[str, str]:
  """Returns the SHA-256 of every file of a dataset but the manifest."""
  found = {}
  for where, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(where, name)
      if path != os.path.join(folder, MANIFEST):
        found[os.path.relpath(path, folder)] = files.sha256(path)
  return found


def is_whole(folder: str, manifest: Mapping[str, Any]) -> bool:
  """Returns whether the files are those that the manifest was written for.

  Manifests of older versions list no files: those are taken as whole. Further
  files, such as a desktop's, are ignored.
  """
  if not isinstance(manifest.get('files', {}), dict):
    return False
  try:
    return all(
      files.sha256(os.path.join(folder, name)) == digest
      for name, digest in manifest.get('files', {}).items()
    )
  except errors.InputError:  # one is not there, or is no file
    return False


def _build(
  folder: str, records: Iterable[Mapping[str, Any]], stored_top_k: int
) -> None:
  """Runs TFDS, without its words on stdout and its empty download folder."""
  downloads = os.path.join(folder, 'downloads')
  with contextlib.redirect_stdout(io.StringIO()):
    alias = files.alias(os.path.abspath(folder))
    builder = Trajectories(records, stored_top_k, data_dir=alias)
    builder.download_and_prepare(
      download_dir=downloads, file_format='array_record'
    )
  shutil.rmtree(downloads, ignore_errors=True)


def read_manifest(folder: str) -> dict[str, Any] | None:
  """Returns the manifest that `write` left, None if there is none to use."""
  try:
    manifest = files.read_json(os.path.join(folder, MANIFEST), _LARGEST)
    journal.without_sum(manifest)
  except ValueError:
    return None
  return manifest


def read(folder: str, stored_top_k: int = 0) -> Any:
  """Returns a random-access source of dicts of numpy values."""
  alias = files.alias(os.path.abspath(folder))
  builder = Trajectories(stored_top_k=stored_top_k, data_dir=alias)
  # tfds's decorators hide the parameters.
  return builder.as_data_source(split='train')  # pyright: ignore[reportCallIssue]


class _Gsm8k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS's builder of that name, which it cannot import without TensorFlow."""

  VERSION = tfds.core.Version('1.0.0')
  name = 'gsm8k'
  url_infos = {}

  def _info(self) -> tfds.core.DatasetInfo:
    names = ('question', 'answer', 'annotation', 'short_answer')
    features = {name: tfds.features.Text() for name in names}
    return _Info(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # it tries for minutes where there is no network
    return {name: self._generate_examples(name) for name in ('train', 'test')}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    with urllib.request.urlopen(f'{_GSM8K}/{split}.jsonl', timeout=30) as lines:
      for key, line in enumerate(lines):
        one = json.loads(line)
        steps, result = one['answer'].split('#### ')
        yield key, {**one, 'annotation': steps, 'short_answer': result}


def published(name: str, split: str) -> Any:
  """Returns a split of a dataset that TFDS knows; None where it knows none.

  It is fetched and prepared first where it is not on this disk. Raises
  InputError where that fails, or there is no such split.
  """
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder = _Gsm8k() if name == 'gsm8k' else tfds.builder(name)
      if not builder.data_path.exists():
        builder.download_and_prepare(file_format='array_record')
      return builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
  except tfds.core.DatasetNotFoundError:
    return None
  except Exception as error:  # of any kind: of the network, of the dataset
    raise errors.InputError(
      f'tensorflow_datasets does not give the split {split!r} of {name} '
      f'({printing.error(error)}). Correct the names, or fetch the data and '
      'give its file.'
    ) from error
