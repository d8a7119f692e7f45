"""N-gram models of a verifier's tokens: fitted for it, and loaded beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import os
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import fetch
from specdiff_jax.checkpoints import presets
from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.checkpoints import sources
from specdiff_jax.checkpoints import weights
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.data import prompt_sources
from specdiff_jax.data import trajectories
from specdiff_jax.drafters.ngram import file as ngram_file
from specdiff_jax.drafters.ngram import kneser_ney
from specdiff_jax.drafters.ngram import model as ngram_model
from specdiff_jax.recipes import groups
from specdiff_jax.text import tokenizer as tokenizer_lib


def fit(
  path: str,
  source: str,
  verifier: str,
  order: int = 3,
  *,
  fields: Sequence[str] = ('prompt',),
  split: str = 'train',
  limit: int = 0,
  overwrite: bool = False,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
  """Writes the n-gram model of texts in a verifier's tokens.

  Args:
    path: the file.
    source: a work directory of `collect`, a JSONL, CSV or parquet file, a name of
      TFDS; or a file that ends in .arpa, which is written as ours.
    verifier: whose tokenizer counts, as a config has it.
    order: tokens of the longest n-grams.
    fields: of a record, that hold a text or messages; each is a text.
    split: of a dataset of TFDS.
    limit: texts at most; 0: all.
    overwrite: whether a file that is there may be replaced.
    progress: called with the texts (of an ARPA file, the lines) read so far.

  Returns:
    order, texts, tokens, and n-grams of each order.

  Raises:
    InputError: the source is not there, cannot be read, or has no texts.
  """
  files.check_new(path, overwrite)
  if path.endswith('.arpa'):
    raise errors.InputError(
      f'{path}: what is written is no ARPA file; give another ending, such as '
      '.safetensors.'
    )
  tokenizer, size = _tokenizer(verifier)
  found: dict[str, Any] = {}
  if source.endswith('.arpa'):
    levels = ngram_file.read_arpa(source, tokenizer, size, progress)
  else:
    texts = []
    for text in _texts(source, tokenizer, size, fields, split):
      texts.append(text)
      progress(len(texts))
      if len(texts) == limit:
        break
    tokens = sum(map(len, texts))
    if not tokens:
      raise errors.InputError(
        f'{source} has no texts under {", ".join(fields)}; name the fields '
        'that hold them.'
      )
    found = {'texts': len(texts), 'tokens': tokens}
    levels = kneser_ney.fit(texts, size, order)
  facts = found | {'source': os.path.basename(source.rstrip('/'))}
  ngram_file.save(path, levels, tokenizer, facts)
  return {
    'order': len(levels),
    **found,
    'ngrams': [int(level.token.size) for level in levels],
  }


def is_ngram(path: str) -> bool:
  """Returns whether a file is an n-gram model, by its ending or metadata."""
  if path.endswith('.arpa'):
    return True
  return safetensors_io.metadata(path).get('format') == ngram_file.FORMAT


def load(path: str, checkpoint: weights.Checkpoint) -> ngram_model.Tables:
  """Returns an n-gram model of this verifier's tokens, on the device."""
  levels = ngram_file.load(
    path, checkpoint.tokenizer, checkpoint.config.vocab_size
  )
  return ngram_model.tables(levels)


def _tokenizer(verifier: str) -> tuple[tokenizer_lib.Tokenizer, int]:
  """Returns tokenizer and vocabulary of a verifier, without its weights."""
  kind, _, preset = verifier.partition(':')
  if kind == 'random':
    if preset not in presets.SIZES:
      raise errors.InputError(
        f'verifier is {verifier!r}, but the random ones are '
        f'{", ".join(f"random:{name}" for name in presets.SIZES)}.'
      )
    size = presets.SIZES[preset].vocab_size
    return tokenizer_lib.Tokenizer.bytes(size), size
  if verifier == 'quickstart':
    verifier = fetch.quickstart_file(groups.Model.cache_dir)
  source = sources.open_model(verifier)
  size = source.config.vocab_size
  return source.tokenizer().within(size, verifier), size


def _texts(source, tokenizer, size, fields, split) -> Iterator[np.ndarray]:
  """Yields texts in tokens."""
  if os.path.isdir(source):
    for one in trajectories.every(source):
      if trajectories.most_id(one) >= size:
        raise errors.InputError(
          f'{trajectories.place(source, one.id)}: holds the token '
          f'{trajectories.most_id(one)}, but the verifier has {size}; give '
          'the verifier that wrote it.'
        )
      yield np.concatenate([one.prompt, one.completion])
    return
  for where, record in prompt_sources.records(source, split):
    for field in fields:
      if field not in record:
        raise errors.InputError(
          f'{where} has no field {field!r}; it has '
          f'{printing.names(sorted(record)) or "none"}.'
        )
      for text in _said(where, field, record[field]):
        yield np.array(tokenizer.encode(text), np.int32)


def _said(where: str, field: str, value: Any) -> Iterator[str]:
  """Yields the texts of a field: one, or those of messages."""
  if isinstance(value, str | None):
    yield from filter(None, [value])
  elif isinstance(value, list) and all(isinstance(x, Mapping) for x in value):
    for one in value:
      content = one.get('content', one.get('value'))
      yield from _said(where, field, content)
  else:
    raise errors.InputError(
      f'{where}: the field {field!r} is {printing.short(value)}, but texts '
      'and lists of messages are counted; name another field.'
    )
