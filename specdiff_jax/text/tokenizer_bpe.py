"""Byte-pair vocabularies as tokenizers: with merges, or with scores alone."""

from collections.abc import Sequence
import math
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import processors

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer_json

# Types of tokens in SentencePiece's files; GGUF has taken them over.
NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6
_SPACE = '\u2581'  # how SentencePiece writes a space
MOST_IDS = 1 << 24  # a damaged file must not make us count on
MOST_TOKENS = 1 << 19  # in a file; the largest known have 262,144
_MOST_WORK = 1 << 25  # letters copied to find all pairs; Gemma 3 has half
# How Llama 3 and Qwen 2 split a text before BPE, by their tokenizer.json.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def model(
  source: str,
  tokens: Sequence[str],
  merges: Sequence[tuple[str, str]],
  **options,
) -> models.BPE:
  """Returns the model of a vocabulary; InputError where it makes none."""
  with tokenizer_json.calls(
    f'{source}: its tokens and merges do not make a vocabulary',
    'the file is damaged, download it again',
  ):
    vocabulary = {text: i for i, text in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
      raise ValueError('a token is listed twice')
    return models.BPE(vocab=vocabulary, merges=merges, **options)


def from_scores(
  source: str,
  tokens: Sequence[str],
  scores: Sequence[float],
  types: Sequence[int],
  unknown: str,
  space_prefix: bool,
) -> tokenizers.Tokenizer:
  """Returns SentencePiece's BPE: neighbours of the best score merge first.

  Tokens of the user (such as runs of newlines or spaces) are split off the text
  before, the longest first; what is in no token falls back to bytes.
  """
  if sum(len(text) ** 2 for text in tokens) > _MOST_WORK:
    raise errors.InputError(
      f'{source}: its tokens are so long that merges cannot be found (the '
      f'longest has {max(map(len, tokens))} letters); take the '
      'tokenizer.json of this model instead.'
    )
  if not all(map(math.isfinite, scores)):
    raise errors.InputError(
      f'{source}: a score of its tokens is not finite, so no order of merges '
      'follows; the file is damaged, download it again.'
    )
  tokens = [
    text.replace(_SPACE, ' ') if kind == USER else text
    for text, kind in zip(tokens, types, strict=True)
  ]
  backend = tokenizers.Tokenizer(
    model(
      source,
      tokens,
      _merges(tokens, scores, types),
      unk_token=unknown,
      fuse_unk=True,
      byte_fallback=BYTE in types,
    )
  )
  before: list[Any] = [normalizers.Replace(' ', _SPACE)]
  after = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback()]
  after.append(decoders.Fuse())
  if space_prefix:
    before.insert(0, normalizers.Prepend(_SPACE))
    after.append(decoders.Strip(' ', 1, 0))
  backend.normalizer = normalizers.Sequence(before)
  backend.decoder = decoders.Sequence(after)
  add_tokens(backend, tokens, types)
  return backend


def byte_letters() -> list[str]:
  """Returns the printable stand-in of each byte, as in GPT-2's vocabulary."""
  plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  return [chr(b if b in plain else next(others)) for b in range(256)]


def add_tokens(
  backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]
) -> None:
  """Has control tokens and those of the user found in the text as it is."""

  def of_type(wanted, special):
    return [
      tokenizers.AddedToken(text, special=special, normalized=False)
      for text, kind in zip(tokens, types)
      if kind == wanted
    ]

  backend.add_special_tokens(of_type(CONTROL, True))
  backend.add_tokens(of_type(USER, False))


def add_ends(
  backend: tokenizers.Tokenizer, first: str | None, last: str | None
) -> None:
  """Has a token added before a text, and one behind it, where one is given."""
  ends = [text for text in (first, last) if text]
  single = [text for text in (first, '$A', last) if text]
  if ends:
    backend.post_processor = processors.TemplateProcessing(
      single=single,
      special_tokens=[(text, backend.token_to_id(text)) for text in {*ends}],
    )


def _merges(tokens, scores, types) -> list[tuple[str, str]]:
  """Returns the pairs that join to a token, by the score of what they make.

  Of pairs that make the same token the longest left part goes first, as in
  the tokenizer.json that transformers makes. (SentencePiece itself takes the
  leftmost place in the text, which no order of merges says; only in texts such
  as aaaaa can that differ.)
  """
  vocabulary = set(tokens)
  made = [i for i, kind in enumerate(types) if kind == NORMAL]
  made.sort(key=lambda i: -scores[i])
  merges = []
  for i in made:
    text = tokens[i]
    for cut in range(len(text) - 1, 0, -1):
      left, right = text[:cut], text[cut:]
      if left in vocabulary and right in vocabulary:
        merges.append((left, right))
  return merges
