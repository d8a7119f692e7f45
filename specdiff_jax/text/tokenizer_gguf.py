"""The tokenizer that a GGUF file carries in its metadata.

Two kinds are known: 'gpt2', byte-level BPE with merges, and 'llama', the
SentencePiece form of Llama 2 and Gemma, whose merges follow from the tokens'
scores.
"""

import dataclasses
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import normalizers
from tokenizers import pre_tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.text import tokenizer_bpe

_ROLES = {
  'bos': 'bos_token',
  'eos': 'eos_token',
  'unknown': 'unk_token',
  'padding': 'pad_token',
  'seperator': 'sep_token',  # so it is spelled
  'cls': 'cls_token',
  'mask': 'mask_token',
}
_USUAL = {'bos': 1, 'eos': 2, 'unknown': 0}  # of 'llama', where no key says
_TYPES = range(1, 7)  # see tokenizer_bpe


@dataclasses.dataclass(frozen=True)
class _Pre:
  """What a value of tokenizer.ggml.pre means."""

  split: str = ''  # before BPE; '' for GPT-2's words
  digits: bool = False  # each stands alone
  composed: bool = False  # Unicode in form C first
  whole_words: bool = False  # those in the vocabulary need no merges
  adds_bos: bool = False


_LLAMA3 = _Pre(
  split=tokenizer_bpe.SPLIT.replace('DIGITS', '{1,3}'),
  whole_words=True,
  adds_bos=True,
)
_QWEN2 = _Pre(split=tokenizer_bpe.SPLIT.replace('DIGITS', ''), composed=True)
_BYTE_LEVEL = {
  'gpt-2': _Pre(),
  'smollm': _Pre(digits=True),
  'llama-bpe': _LLAMA3,
  'llama-v3': _LLAMA3,
  'llama3': _LLAMA3,
  'qwen2': _QWEN2,
}


def read(
  fields: dict[str, Any], source: str
) -> tuple[tokenizers.Tokenizer, dict[str, str], list[int]]:
  """Returns (backend, special tokens by role, end ids)."""
  kind = fields.get('tokenizer.ggml.model')
  if not isinstance(kind, str) or kind not in ('gpt2', 'llama'):
    raise errors.InputError(
      f'{source}: tokenizer.ggml.model is {printing.short(kind)}; known are '
      "'gpt2' and 'llama'. Take the Hugging Face directory of this model "
      'instead, with its tokenizer.json.'
    )
  tokens = _list(fields, 'tokens', str, source)
  if len(tokens) > tokenizer_bpe.MOST_TOKENS:
    raise errors.InputError(
      f'{source}: tokenizer.ggml.tokens holds {len(tokens)} tokens, where at '
      f'most {tokenizer_bpe.MOST_TOKENS} may be; download the file again.'
    )
  types = _list(fields, 'token_type', int, source, len(tokens))
  strange = set(types).difference(_TYPES)
  if strange:
    raise errors.InputError(
      f'{source}: tokenizer.ggml.token_type holds {min(strange)}, and what '
      'such a token is, is not known here; take the Hugging Face directory '
      'of this model instead, with its tokenizer.json.'
    )
  ids = _special_ids(fields, len(tokens), source)
  if kind == 'llama':
    ids = {r: i for r, i in _USUAL.items() if i < len(tokens)} | ids
  if kind == 'gpt2':
    backend, adds_bos = _byte_level(fields, tokens, types, source)
  else:
    _check_text_is_kept(fields, source)
    backend = tokenizer_bpe.from_scores(
      source,
      tokens,
      _list(fields, 'scores', float, source, len(tokens)),
      types,
      tokens[ids.get('unknown', 0)],
      _flag(fields, 'add_space_prefix', True, source),
    )
    adds_bos = True
  _add_ends(backend, fields, tokens, ids, adds_bos, source)
  special = {
    _ROLES[role]: tokens[i] for role, i in ids.items() if role in _ROLES
  }
  ends = [ids[role] for role in ('eos', 'eot', 'eom') if role in ids]
  return backend, special, ends


def _flag(fields: dict[str, Any], name: str, usual: bool, source: str) -> bool:
  """Returns a switch of the metadata."""
  value = fields.get(f'tokenizer.ggml.{name}', usual)
  if not isinstance(value, bool):
    raise errors.InputError(
      f'{source}: tokenizer.ggml.{name} is {printing.short(value)}, neither '
      'true nor false; the file is damaged, download it again.'
    )
  return value


def _add_ends(backend, fields, tokens, ids, adds_bos: bool, source: str):
  """Has bos and eos added to a text, where the metadata ask for it."""
  ends = []
  for role, usual in (('bos', adds_bos), ('eos', False)):
    wanted = _flag(fields, f'add_{role}_token', usual, source)
    if wanted and role not in ids:
      raise errors.InputError(
        f'{source}: a text is to begin or end with the {role} token, but '
        f'there is no tokenizer.ggml.{role}_token_id; convert the model '
        'again, or take its Hugging Face directory.'
      )
    ends.append(tokens[ids[role]] if wanted else None)
  tokenizer_bpe.add_ends(backend, *ends)


def _check_text_is_kept(fields: dict[str, Any], source: str) -> None:
  """Raises InputError where a text is to be changed before it is split."""
  for name in ('remove_extra_whitespaces', 'precompiled_charsmap'):
    if fields.get(f'tokenizer.ggml.{name}'):
      raise errors.InputError(
        f'{source}: tokenizer.ggml.{name} asks for a change of the text, '
        'which is not supported; take the Hugging Face directory of this '
        'model instead, with its tokenizer.json.'
      )


def _special_ids(
  fields: dict[str, Any], size: int, source: str
) -> dict[str, int]:
  """Returns the ids of special tokens that the metadata name, by role."""
  ids = {}
  for role in (*_ROLES, 'eot', 'eom'):
    value = fields.get(f'tokenizer.ggml.{role}_token_id')
    if value is None:
      continue
    if type(value) is not int or not 0 <= value < size:
      raise errors.InputError(
        f'{source}: the id of the {role} token is {printing.short(value)}, '
        f'outside the vocabulary of {size}; the file is damaged, download '
        'it again.'
      )
    ids[role] = value
  return ids


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
  if not all(type(v) is kind for v in value):
    raise errors.InputError(
      f'{source}: tokenizer.ggml.{name} holds other things than '
      f'{kind.__name__}; the file is damaged, download it again.'
    )
  return value


def _byte_level(
  fields: dict[str, Any], tokens: list[str], types: list[int], source: str
) -> tuple[tokenizers.Tokenizer, bool]:
  """Returns byte-level BPE, and whether it adds a bos token by default."""
  name = fields.get('tokenizer.ggml.pre')
  if name is None:  # llama.cpp guesses, and warns of worse text
    raise errors.InputError(
      f'{source}: the metadata lack tokenizer.ggml.pre, so how a text is '
      'split is not known (the file comes from an old converter); convert '
      'the model again with a current llama.cpp, or take its Hugging Face '
      'directory, with its tokenizer.json.'
    )
  if not isinstance(name, str) or name not in _BYTE_LEVEL:
    raise errors.InputError(
      f'{source}: tokenizer.ggml.pre is {printing.short(name)}, which is '
      f'not known here (known: {", ".join(_BYTE_LEVEL)}); take the Hugging '
      'Face directory of this model instead, with its tokenizer.json.'
    )
  pre = _BYTE_LEVEL[name]
  merges = [
    tuple(m.split(' ', 2)) for m in _list(fields, 'merges', str, source)
  ]
  backend = tokenizers.Tokenizer(
    tokenizer_bpe.model(source, tokens, merges, ignore_merges=pre.whole_words)
  )
  if pre.composed:
    backend.normalizer = normalizers.NFC()
  steps = []
  if pre.digits:
    steps.append(pre_tokenizers.Digits(individual_digits=True))
  if pre.split:
    pattern = tokenizers.Regex(pre.split)
    steps.append(pre_tokenizers.Split(pattern, behavior='isolated'))
  steps.append(
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pre.split)
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
  backend.decoder = decoders.ByteLevel()
  tokenizer_bpe.add_tokens(backend, tokens, types)
  return backend, pre.adds_bos
