"""SentencePiece's own file, tokenizer.model (Llama 2, Mistral, Gemma).

The file is a protocol buffer, of which the few fields that matter are read
here (sentencepiece_model.proto states them), every size checked against the
file. Not by the package sentencepiece: its Python reader registers that proto
under the name that transformers registers its own under, and the second of the
two to be imported in a process fails.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import struct
from typing import Any

import tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_json

_BPE = 2
_MODEL_TYPES = {1: 'unigram', _BPE: 'bpe', 3: 'word', 4: 'char'}
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
# Numbers of fields: of a model, of a piece, of a trainer, of a normaliser.
_PIECES, _TRAINER, _NORMALISER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _SPACE_BEHIND = 3, 24
_CHARSMAP, _SPACE_PREFIX, _STRIP, _ESCAPE = 2, 3, 4, 5
_IDS = {  # role: field of the trainer, and its default
  'unk_token': (40, 0),
  'bos_token': (41, 1),
  'eos_token': (42, 2),
  'pad_token': (43, -1),
}


@dataclasses.dataclass(frozen=True)
class Model:
  """What a tokenizer.model says."""

  tokens: list[str]
  scores: list[float]
  types: list[int]
  special: dict[str, str]  # role, as in 'bos_token', -> text
  space_prefix: bool


def backend(path: str) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
  """Returns the tokenizer of a file, and its special tokens by role."""
  found = read(path)
  result = tokenizer_bpe.from_scores(
    path,
    found.tokens,
    found.scores,
    found.types,
    found.special['unk_token'],
    found.space_prefix,
  )
  return result, found.special


def read(path: str) -> Model:
  """Reads a tokenizer.model; InputError where it is damaged or not BPE."""
  data = files.read(path, tokenizer_json.MOST)
  pieces, trainer, normaliser = [], {}, {}
  try:
    for number, value in _fields(data):
      if number == _PIECES:
        if len(pieces) == tokenizer_bpe.MOST_TOKENS:
          raise ValueError(f'it holds more than {len(pieces)} tokens')
        pieces.append(_piece(value))
      elif number == _TRAINER:
        trainer = dict(_fields(value))
      elif number == _NORMALISER:
        normaliser = dict(_fields(value))
    if not pieces:
      raise ValueError('it holds no tokens')
    special = _special(trainer, [text for text, _, _ in pieces])
  except (TypeError, ValueError, struct.error) as e:
    raise errors.InputError(
      f'{path}: not a complete SentencePiece model ({e}); download the file '
      'again.'
    ) from e
  _check_supported(path, trainer, normaliser)
  tokens, scores, types = map(list, zip(*pieces))
  prefix = bool(normaliser.get(_SPACE_PREFIX, True))
  return Model(tokens, scores, types, special, prefix)


def _check_supported(path: str, trainer, normaliser) -> None:
  kind = trainer.get(_MODEL_TYPE, 1)
  wrong = ''
  if kind != _BPE:
    wrong = f'is of the kind {_MODEL_TYPES.get(kind, kind)!r}, not bpe'
  elif normaliser.get(_CHARSMAP) or normaliser.get(_STRIP, True):
    wrong = 'normalises the text (not by identity)'
  elif not normaliser.get(_ESCAPE, True) or trainer.get(_SPACE_BEHIND):
    wrong = 'does not write a space as a letter before the word'
  if wrong:
    raise errors.InputError(
      f'{path}: this SentencePiece model {wrong}, which is not supported; '
      'put the tokenizer.json of this model beside it.'
    )


def _special(trainer: Mapping[int, Any], tokens: list[str]) -> dict[str, str]:
  """Returns special tokens by role; ids below 0 mean that there is none."""
  special = {}
  for role, (number, default) in _IDS.items():
    i = trainer.get(number, default)
    i = i - (1 << 64) if i >= 1 << 63 else i  # a varint has no sign
    if i >= len(tokens):
      raise ValueError(f'its {role} is {i}, of {len(tokens)} tokens')
    if i >= 0:
      special[role] = tokens[i]
  if 'unk_token' not in special:
    raise ValueError('it names no unknown token')
  return special


def _piece(data: bytes) -> tuple[str, float, int]:
  """Returns (text, score, type) of one token."""
  values = dict(_fields(data))
  if not values.get(_TEXT):
    raise ValueError('a token has no text')
  score = struct.unpack('<f', values.get(_SCORE, bytes(4)))[0]
  kind = values.get(_TYPE, tokenizer_bpe.NORMAL)
  return str(values.get(_TEXT, b''), 'utf-8'), score, int(kind)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """Yields (number of the field, value) of one message."""
  at, end = 0, len(data)
  while at < end:
    key, at = _varint(data, at)
    number, wire = key >> 3, key & 7
    if wire == _VARINT:
      value, at = _varint(data, at)
      yield number, value
      continue
    if wire == _BYTES:
      size, at = _varint(data, at)
    elif wire in (_EIGHT, _FOUR):
      size = 8 if wire == _EIGHT else 4
    else:
      raise ValueError(f'byte {at} begins no field')
    if size > end - at:
      raise ValueError(f'a field promises {size} bytes where {end - at} are')
    yield number, data[at : at + size]
    at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Returns an integer of seven bits a byte, and where it ends."""
  value = shift = 0
  while at < len(data) and shift < 64:
    byte = data[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at
  raise ValueError(f'it ends within a number, or byte {at} begins none')
