"""The tokenizer that a GGUF file carries in its metadata.

Two kinds are known: 'gpt2', byte-level BPE with merges, and 'llama', the
SentencePiece form of Llama 2 and Gemma, whose merges follow from the tokens'
scores.
"""

from collections.abc import Mapping
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
_DAMAGED = 'the file is damaged, download it again.'
_ELSEWHERE = (
  'take the Hugging Face directory of this model instead, with its '
  'tokenizer.json.'
)


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


@dataclasses.dataclass(frozen=True)
class _Metadata:
  """What a file says of its tokenizer, every type checked."""

  fields: Mapping[str, Any]
  source: str  # for errors

  def get(self, name: str, usual: Any = None) -> Any:
    return self.fields.get(f'tokenizer.ggml.{name}', usual)

  def error(self, wrong: str) -> errors.InputError:
    return errors.InputError(f'{self.source}: {wrong}')

  def flag(self, name: str, usual: bool) -> bool:
    """Returns a switch."""
    value = self.get(name, usual)
    if not isinstance(value, bool):
      raise self.error(
        f'tokenizer.ggml.{name} is {printing.short(value)}, neither true nor '
        f'false; {_DAMAGED}'
      )
    return value

  def items(self, name: str, kind: type, length: int | None = None) -> list:
    """Returns a list, of `length` items where that is given."""
    value = self.get(name)
    if not isinstance(value, list) or not value:
      raise self.error(
        f'the metadata lack tokenizer.ggml.{name}, so the tokenizer is not in '
        'the file; convert the model again, with its vocabulary.'
      )
    if length is not None and len(value) != length:
      raise self.error(
        f'tokenizer.ggml.{name} has {len(value)} entries for {length} tokens; '
        f'{_DAMAGED}'
      )
    if not all(type(v) is kind for v in value):
      raise self.error(
        f'tokenizer.ggml.{name} holds other things than {kind.__name__}; '
        f'{_DAMAGED}'
      )
    return value


def read(
  fields: Mapping[str, Any], source: str
) -> tuple[tokenizers.Tokenizer, dict[str, str], list[int]]:
  """Returns (backend, special tokens by role, end ids)."""
  metadata = _Metadata(fields, source)
  kind = metadata.get('model')
  if not isinstance(kind, str) or kind not in ('gpt2', 'llama'):
    raise metadata.error(
      f'tokenizer.ggml.model is {printing.short(kind)}; known are '
      f"'gpt2' and 'llama'. T{_ELSEWHERE[1:]}"
    )
  tokens = metadata.items('tokens', str)
  if len(tokens) > tokenizer_bpe.MOST_TOKENS:
    raise metadata.error(
      f'tokenizer.ggml.tokens holds {len(tokens)} tokens, where at most '
      f'{tokenizer_bpe.MOST_TOKENS} may be; download the file again.'
    )
  types = metadata.items('token_type', int, len(tokens))
  strange = set(types).difference(_TYPES)
  if strange:
    raise metadata.error(
      f'tokenizer.ggml.token_type holds {min(strange)}, and what such a token '
      f'is, is not known here; {_ELSEWHERE}'
    )
  ids = _special_ids(metadata, len(tokens))
  if kind == 'gpt2':
    backend, adds_bos = _byte_level(metadata, tokens, types)
  else:
    ids = {r: i for r, i in _USUAL.items() if i < len(tokens)} | ids
    _check_text_is_kept(metadata)
    backend = tokenizer_bpe.from_scores(
      source,
      tokens,
      metadata.items('scores', float, len(tokens)),
      types,
      tokens[ids.get('unknown', 0)],
      metadata.flag('add_space_prefix', True),
    )
    adds_bos = True
  _add_ends(backend, metadata, tokens, ids, adds_bos)
  special = {
    _ROLES[role]: tokens[i] for role, i in ids.items() if role in _ROLES
  }
  ends = [ids[role] for role in ('eos', 'eot', 'eom') if role in ids]
  return backend, special, ends


def _add_ends(
  backend, metadata: _Metadata, tokens, ids, adds_bos: bool
) -> None:
  """Has bos and eos added to a text, where the metadata ask for it."""
  ends = []
  for role, usual in (('bos', adds_bos), ('eos', False)):
    wanted = metadata.flag(f'add_{role}_token', usual)
    if wanted and role not in ids:
      raise metadata.error(
        f'a text is to begin or end with the {role} token, but there is no '
        f'tokenizer.ggml.{role}_token_id; convert the model again, or take '
        'its Hugging Face directory.'
      )
    ends.append(tokens[ids[role]] if wanted else None)
  tokenizer_bpe.add_ends(backend, *ends)


def _check_text_is_kept(metadata: _Metadata) -> None:
  """Raises InputError where a text is to be changed before it is split."""
  for name in ('remove_extra_whitespaces', 'precompiled_charsmap'):
    if metadata.get(name):
      raise metadata.error(
        f'tokenizer.ggml.{name} asks for a change of the text, which is not '
        f'supported; {_ELSEWHERE}'
      )


def _special_ids(metadata: _Metadata, size: int) -> dict[str, int]:
  """Returns the ids of special tokens that the metadata name, by role."""
  ids = {}
  for role in (*_ROLES, 'eot', 'eom'):
    value = metadata.get(f'{role}_token_id')
    if value is None:
      continue
    if type(value) is not int or not 0 <= value < size:
      raise metadata.error(
        f'the id of the {role} token is {printing.short(value)}, outside the '
        f'vocabulary of {size}; {_DAMAGED}'
      )
    ids[role] = value
  return ids


def _byte_level(
  metadata: _Metadata, tokens: list[str], types: list[int]
) -> tuple[tokenizers.Tokenizer, bool]:
  """Returns byte-level BPE, and whether it adds a bos token by default."""
  name = metadata.get('pre')
  if name is None:  # llama.cpp guesses, and warns of worse text
    raise metadata.error(
      'the metadata lack tokenizer.ggml.pre, so how a text is split is not '
      'known (the file comes from an old converter); convert the model again '
      'with a current llama.cpp, or take its Hugging Face directory, with its '
      'tokenizer.json.'
    )
  if not isinstance(name, str) or name not in _BYTE_LEVEL:
    raise metadata.error(
      f'tokenizer.ggml.pre is {printing.short(name)}, which is not known here '
      f'(known: {", ".join(_BYTE_LEVEL)}); {_ELSEWHERE}'
    )
  pre = _BYTE_LEVEL[name]
  merges: list[Any] = [
    tuple(m.split(' ', 2)) for m in metadata.items('merges', str)
  ]
  backend = tokenizers.Tokenizer(
    tokenizer_bpe.model(
      metadata.source, tokens, merges, ignore_merges=pre.whole_words
    )
  )
  if pre.composed:
    backend.normalizer = normalizers.NFC()
  steps: list[Any] = []
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
