"""The tokenizer that a GGUF file carries in its metadata.

Two kinds are known: 'gpt2', byte-level BPE with merges, and 'llama', the
SentencePiece form of Llama 2, whose merges follow from the tokens' scores.
"""

from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from specdiff_jax.core import errors

_NORMAL, _CONTROL, _USER = 1, 3, 4  # values of tokenizer.ggml.token_type
_ROLES = {
    'bos': 'bos_token',
    'eos': 'eos_token',
    'unknown': 'unk_token',
    'padding': 'pad_token',
}
_SPACE = '\u2581'  # how SentencePiece writes a space
# Llama 3 splits a text so before BPE, by its tokenizer.json.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_BYTE_LEVEL = ('gpt-2', 'smollm', 'llama-bpe')  # values of tokenizer.ggml.pre


def read(
    fields: dict[str, Any], source: str
) -> tuple[tokenizers.Tokenizer, dict[str, str], list[int]]:
  """Returns (backend, special tokens by role, end ids)."""
  kind = fields.get('tokenizer.ggml.model')
  if kind not in ('gpt2', 'llama'):
    raise errors.InputError(
        f"{source}: tokenizer.ggml.model is {kind!r}; known are 'gpt2' and "
        "'llama'. Take the Hugging Face directory of this model instead, with "
        'its tokenizer.json.'
    )
  tokens = _list(fields, 'tokens', str, source)
  types = _list(fields, 'token_type', int, source, len(tokens))
  ids = _special_ids(fields, len(tokens), source)
  if kind == 'gpt2':
    backend, adds_bos = _byte_level(fields, tokens, source)
  else:
    unknown = tokens[ids.get('unknown', 0)]
    backend = _sentencepiece(fields, tokens, types, unknown, source)
    adds_bos = True
  backend.add_special_tokens(_of_type(tokens, types, _CONTROL))
  backend.add_tokens(_of_type(tokens, types, _USER))
  if 'bos' in ids and fields.get('tokenizer.ggml.add_bos_token', adds_bos):
    bos = tokens[ids['bos']]
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, '$A'], special_tokens=[(bos, ids['bos'])]
    )
  special = {
      _ROLES[role]: tokens[i] for role, i in ids.items() if role in _ROLES
  }
  ends = [ids[role] for role in ('eos', 'eot', 'eom') if role in ids]
  return backend, special, ends


def _special_ids(
    fields: dict[str, Any], size: int, source: str
) -> dict[str, int]:
  """Returns the ids of special tokens that the metadata name, by role."""
  ids = {}
  for role in (*_ROLES, 'eot', 'eom'):
    value = fields.get(f'tokenizer.ggml.{role}_token_id')
    if value is None:
      continue
    if not isinstance(value, int) or not 0 <= value < size:
      raise errors.InputError(
          f'{source}: the id of the {role} token is {value!r}, outside the '
          f'vocabulary of {size}; the file is damaged, download it again.'
      )
    ids[role] = value
  return ids


def _of_type(tokens: list[str], types: list[int], wanted: int) -> list[str]:
  return [t for t, kind in zip(tokens, types) if kind == wanted]


def _list(
    fields: dict[str, Any],
    name: str,
    kind: type,
    source: str,
    length: int | None = None,
) -> list:
  """Returns a list of the metadata, of `length` items where that is given."""
  value = fields.get(f'tokenizer.ggml.{name}')
  if not isinstance(value, list) or not value:
    raise errors.InputError(
        f'{source}: the metadata lack tokenizer.ggml.{name}, so the tokenizer '
        'is not in the file; convert the model again, with its vocabulary.'
    )
  if length is not None and len(value) != length:
    raise errors.InputError(
        f'{source}: tokenizer.ggml.{name} has {len(value)} entries for '
        f'{length} tokens; the file is damaged, download it again.'
    )
  if not all(isinstance(v, kind) for v in value):
    raise errors.InputError(
        f'{source}: tokenizer.ggml.{name} holds other things than '
        f'{kind.__name__}; the file is damaged, download it again.'
    )
  return value


def _bpe(source: str, tokens: list[str], merges, **options) -> models.BPE:
  try:
    vocabulary = {text: i for i, text in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
      raise ValueError('a token is listed twice')
    return models.BPE(vocab=vocabulary, merges=merges, **options)
  except Exception as e:  # the library raises bare Exception
    raise errors.InputError(
        f'{source}: tokenizer.ggml.tokens and merges do not make a vocabulary '
        f'({e}); the file is damaged, download it again.'
    ) from e


def _byte_level(
    fields: dict[str, Any], tokens: list[str], source: str
) -> tuple[tokenizers.Tokenizer, bool]:
  """Returns byte-level BPE, and whether it adds a bos token by default."""
  name = fields.get('tokenizer.ggml.pre', 'gpt-2')
  if name not in _BYTE_LEVEL:
    raise errors.InputError(
        f'{source}: tokenizer.ggml.pre is {name!r}, which is not known here '
        f'(known: {", ".join(_BYTE_LEVEL)}); take the Hugging Face directory '
        'of this model instead, with its tokenizer.json.'
    )
  llama3 = name == 'llama-bpe'
  merges = [tuple(m.split(' ')) for m in _list(fields, 'merges', str, source)]
  backend = tokenizers.Tokenizer(
      _bpe(source, tokens, merges, ignore_merges=llama3)
  )
  steps = []
  if name == 'smollm':
    steps.append(pre_tokenizers.Digits(individual_digits=True))
  if llama3:
    pattern = tokenizers.Regex(_LLAMA3_SPLIT)
    steps.append(pre_tokenizers.Split(pattern, behavior='isolated'))
  steps.append(
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  backend.decoder = decoders.ByteLevel()
  return backend, llama3


def _sentencepiece(
    fields: dict[str, Any],
    tokens: list[str],
    types: list[int],
    unknown: str,
    source: str,
) -> tokenizers.Tokenizer:
  """Returns SentencePiece's BPE: neighbours of the best score merge first."""
  scores = _list(fields, 'scores', float, source, len(tokens))
  vocabulary = set(tokens)
  order = sorted(
      (i for i, kind in enumerate(types) if kind == _NORMAL),
      key=lambda i: -scores[i],
  )
  merges = [
      (tokens[i][:cut], tokens[i][cut:])
      for i in order
      for cut in range(1, len(tokens[i]))
      if tokens[i][:cut] in vocabulary and tokens[i][cut:] in vocabulary
  ]
  options = dict(unk_token=unknown, fuse_unk=True, byte_fallback=True)
  backend = tokenizers.Tokenizer(_bpe(source, tokens, merges, **options))
  before = [normalizers.Replace(' ', _SPACE)]
  after = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback()]
  after.append(decoders.Fuse())
  if fields.get('tokenizer.ggml.add_space_prefix', True):
    before.insert(0, normalizers.Prepend(_SPACE))
    after.append(decoders.Strip(' ', 1, 0))
  backend.normalizer = normalizers.Sequence(before)
  backend.decoder = decoders.Sequence(after)
  return backend
