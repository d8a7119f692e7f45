"""N-gram models on disk: our safetensors file, and ARPA files of others."""

import codecs
from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

import numpy as np

from specdiff_jax.checkpoints import safetensors_io
from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.drafters.ngram import model
from specdiff_jax.text import tokenizer as tokenizer_lib

FORMAT = 'specdiff_jax ngram 1'
MOST_ORDER = 8
_PARTS = {
  'parent': np.int32,
  'token': np.int32,
  'log_p': np.float32,
  'backoff': np.float32,
}
_LONGEST_LINE = 1 << 16  # bytes, of an ARPA file
_ABSENT = -99 * math.log(10)  # of tokens that an ARPA file does not have
_WANTS = (
  'An ARPA file of tokens is written by KenLM (lmplz) from texts whose words '
  "are the tokenizer's tokens, as its vocabulary spells them."
)


def save(
  path: str,
  levels: Sequence[model.Level],
  tokenizer: tokenizer_lib.Tokenizer,
  facts: Mapping[str, Any],
) -> None:
  """Writes a model, whole or not at all; `facts` say where it comes from."""
  metadata = {name: str(value) for name, value in facts.items()} | {
    'format': FORMAT,
    'tokenizer': tokenizer.fingerprint,
    'vocab_size': str(levels[0].token.size - 1),
    'order': str(len(levels)),
  }
  tensors = {f'{n}': level._asdict() for n, level in enumerate(levels, 1)}
  safetensors_io.save(path, tensors, metadata)


def load(
  path: str, tokenizer: tokenizer_lib.Tokenizer, vocab_size: int
) -> list[model.Level]:
  """Returns the levels of a model; one that ends in .arpa is an ARPA file.

  Args:
    path: of a file that `save` wrote, or of an ARPA file.
    tokenizer: the verifier's.
    vocab_size: V of the verifier.

  Raises:
    InputError: the file is damaged, or of another tokenizer.
  """
  if path.endswith('.arpa'):
    return read_arpa(path, tokenizer, vocab_size)
  tensors, metadata = safetensors_io.load(path)
  if metadata.get('format') != FORMAT:
    raise errors.InputError(
      f'{path}: not an n-gram model (its format is '
      f'{printing.short(metadata.get("format"))}, not {FORMAT!r}). Give a file '
      'that `specdiff ngram` wrote, or one whose name ends in .arpa.'
    )
  wanted = tokenizer.fingerprint, str(vocab_size)
  told = metadata.get('tokenizer', ''), metadata.get('vocab_size', '')
  if told != wanted:
    raise errors.InputError(
      f'{path}: this n-gram model counts the tokens of another tokenizer '
      f'(fingerprint {told[0][:40]}, {told[1][:40]} ids) than the '
      f"verifier's ({wanted[0]}, {wanted[1]} ids). Fit one with `specdiff "
      'ngram` and this verifier.'
    )
  return _checked(path, tensors, vocab_size)


def _checked(path, tensors, vocab_size: int) -> list[model.Level]:
  """Returns levels whose entries and tokens are all there."""
  order = len(tensors)
  if list(tensors) != [f'{n}' for n in range(1, order + 1)] or (
    not 1 <= order <= MOST_ORDER
  ):
    raise _damaged(path, f'it has the levels {printing.names(tensors)}')
  levels, above = [], 1
  for n, level in tensors.items():
    whole = isinstance(level, dict) and level.keys() == _PARTS.keys()
    if not whole or any(isinstance(one, dict) for one in level.values()):
      raise _damaged(path, f'level {n} lacks tensors')
    size = vocab_size + 1 if n == '1' else level['token'].size
    for name, dtype in _PARTS.items():
      if level[name].shape != (size,) or level[name].dtype != dtype:
        raise _damaged(path, f'{n}.{name} has another form')
    one = model.Level(**level)
    for name, most in (('parent', above), ('token', vocab_size + 1)):
      ids = level[name]
      if ids.size and not 0 <= ids.min() <= ids.max() < most:
        raise _damaged(path, f'{n}.{name} points outside of its table')
    if n == '1' and (one.token != np.arange(size)).any():
      raise _damaged(path, '1.token is not all ids in their order')
    for name in ('log_p', 'backoff'):
      if not (level[name] < 1e4).all():  # NaN too
        raise _damaged(path, f'{n}.{name} holds no log-probabilities')
    pair = one.parent.astype(np.int64) * (vocab_size + 1) + one.token
    if np.unique(pair).size < pair.size:
      raise _damaged(path, f'level {n} has an n-gram twice')
    levels.append(one)
    above = size
  return levels


def _damaged(path: str, why: str) -> errors.InputError:
  return errors.InputError(
    f'{path}: not a whole n-gram model ({why}). It is damaged or of another '
    'version; fit it again with `specdiff ngram`.'
  )


def read_arpa(
  path: str,
  tokenizer: tokenizer_lib.Tokenizer,
  vocab_size: int,
  progress: Callable[[int], None] = lambda lines: None,
) -> list[model.Level]:
  """Returns the levels of an ARPA file whose words are tokens.

  <s> is a text's beginning, <unk> stands for tokens that are not listed, and
  n-grams with </s> are left out, where the tokenizer has no tokens of these
  names.

  Raises:
    InputError: which names the line that is malformed, or has a word that is no
      token.
  """
  return _Arpa(path, tokenizer, vocab_size, progress).levels()


class _Arpa:
  """An ARPA file, line by line."""

  def __init__(self, path, tokenizer, vocab_size, progress):
    self.path, self.number, self.progress = path, 0, progress
    ids = {t: i for t, i in tokenizer.tokens().items() if i < vocab_size}
    self.ids = {text.encode(): i for text, i in ids.items()}
    self.ids.setdefault(b'<s>', vocab_size)
    self.skipped = {b'</s>', b'<unk>'} - self.ids.keys()
    self.size = vocab_size + 1

  def levels(self) -> list[model.Level]:
    with files.open_file(self.path) as self.file:
      counts, line = self._header()
      levels, entries = [], []
      for n, count in enumerate(counts, 1):
        if line != b'\\%d-grams:' % n:
          raise self._fault(f'where \\{n}-grams: should stand')
        one, found, line = self._section(n, count, entries)
        levels.append(one)
        entries.append(found)
      if line != b'\\end\\':
        raise self._fault('where \\end\\ should stand')
    return levels

  def _line(self) -> bytes:
    """Returns the next line that is not empty; b'' past the end."""
    while True:
      line = self.file.readline(_LONGEST_LINE + 1)
      self.number += 1
      if self.number % 65536 == 0:
        self.progress(self.number)
      if self.number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      if not line or line.strip():
        return line.strip(b' \t\r\n')

  def _header(self) -> tuple[list[int], bytes]:
    while (line := self._line()) != b'\\data\\':
      if not line:
        raise self._fault('without the line \\data\\ before')
    counts, line = [], self._line()
    while match := re.fullmatch(rb'ngram\s+(\d+)\s*=\s*(\d+)', line):
      counts.append(int(match[2][:12]))
      if int(match[1][:3]) != len(counts):
        raise self._fault('where the orders have to come as 1, 2, ...')
      line = self._line()
    if not 1 <= len(counts) <= MOST_ORDER:
      raise self._fault(f'after {len(counts)} orders, of 1 to {MOST_ORDER}')
    return counts, line

  def _section(self, n: int, count: int, entries):
    """Returns level n, its entries by (parent, token), and the line after it."""
    found: dict[tuple[int, int], int] = {}
    rows = []
    absent = _ABSENT
    lines = 0
    while (line := self._line()) and not line.startswith(b'\\'):
      lines += 1
      log_p, words, backoff = self._fields(line, n)
      if words == [b'<unk>'] and b'<unk>' in self.skipped:
        absent = log_p
      if any(word in self.skipped for word in words):
        continue
      parent = 0
      for at, word in enumerate(words):
        if word not in self.ids:
          raise self._fault(
            f'with the word {printing.short(word.decode("utf-8", "replace"))}, '
            f'which is no token of the verifier. {_WANTS}',
          )
        pair = parent, self.ids[word]
        if at == n - 1:
          break
        if pair not in entries[at]:
          raise self._fault('whose context is not among the shorter n-grams')
        parent = entries[at][pair]
      if pair in found:
        raise self._fault('which repeats an n-gram')
      found[pair] = pair[1] if n == 1 else len(rows)
      rows.append((*pair, log_p, backoff))
    if lines != count:
      raise self._fault(
        f'after {lines} {n}-grams, of which \\data\\ has {count}'
      )
    values = list(zip(*rows)) if rows else [()] * 4
    columns = [np.array(x, t) for x, t in zip(values, _PARTS.values())]
    if n == 1 and not rows:
      raise self._fault('without the probability of any token')
    if n > 1:
      return model.Level(*columns), found, line
    one = model.Level(
      np.zeros(self.size, np.int32),
      np.arange(self.size, dtype=np.int32),
      np.full(self.size, absent, np.float32),
      np.zeros(self.size, np.float32),
    )
    for name in ('log_p', 'backoff'):
      getattr(one, name)[columns[1]] = columns[list(_PARTS).index(name)]
    # What is not listed has an entry all the same.
    return one, {(0, i): i for i in range(self.size)}, line

  def _fields(self, line: bytes, n: int):
    """Returns log p, words and back-off of a line, in nats."""
    fields = re.split(rb'[ \t]+', line)
    if len(line) > _LONGEST_LINE or len(fields) - n not in (1, 2):
      raise self._fault(f'with {len(fields)} fields, of which {n} are words')
    try:
      numbers = [float(x) * math.log(10) for x in (fields[0], *fields[n + 1 :])]
    except ValueError:
      raise self._fault('whose numbers cannot be read') from None
    if not (numbers[0] <= 1e-6 and all(abs(x) < 1e4 for x in numbers)):
      raise self._fault('whose numbers are no logarithms of probabilities')
    return numbers[0], fields[1 : n + 1], (numbers + [0.0])[1]

  def _fault(self, what: str) -> errors.InputError:
    return errors.InputError(
      f'{self.path}, line {self.number}: not what an ARPA file has, {what}'
      + ('' if what.endswith('.') else '; write it again.')
    )
