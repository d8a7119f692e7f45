"""The tokenizer of a directory of Hugging Face: all its files, as one.

What the files say together is what transformers (5.24) makes of them: which
goes first where they differ, which tokens are added in what order, which are
special. A directory has a tokenizer.json, or vocab.json and merges.txt, or a
tokenizer.model.

As there, the classes of Llama, Gemma and Qwen2 say themselves how a text is
changed and split: of a tokenizer.json they take the vocabulary and the tokens.
Other than there, GPT2Tokenizer keeps the split of its tokenizer.json (SmolLM,
of that class, was trained with digits apart), and where the settings list added
tokens, those that only tokenizer.json has are kept.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers

from specdiff_jax.core import errors
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_json
from specdiff_jax.text import tokenizer_merges
from specdiff_jax.text import tokenizer_roles
from specdiff_jax.text import tokenizer_sentencepiece
from specdiff_jax.text import tokenizer_settings

_TIDIES_BPE = (
  'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output'
)
_END = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>')
# Roles that a class fills where the settings do not say.
_CLASSES = {
  'GPT2Tokenizer': _END,
  'Qwen2Tokenizer': {**_END, 'bos_token': None, 'pad_token': '<|endoftext|>'},
  'LlamaTokenizer': {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
  },
  'GemmaTokenizer': {
    'bos_token': '<bos>',
    'eos_token': '<eos>',
    'unk_token': '<unk>',
    'pad_token': '<pad>',
    'mask_token': '<mask>',
  },
}
# What transformers takes by model_type: a class where the files name none; and
# instead of what they name, since it is known to be wrong ('': none).
_OF_MODELS: dict[str, str] = dict.fromkeys(
  ('gpt2', 'gptj', 'gpt_neo'), 'GPT2Tokenizer'
)
_OF_MODELS |= dict.fromkeys(('qwen2', 'qwen3', 'qwen3_moe'), 'Qwen2Tokenizer')
_OF_MODELS |= dict.fromkeys(
  ('gemma', 'gemma2', 'gemma3', 'gemma3_text'), 'GemmaTokenizer'
)
_INSTEAD: dict[str, str] = {'qwen2': 'Qwen2Tokenizer'} | dict.fromkeys(
  ('granite', 'mistral', 'mixtral', 'olmo2', 'phi3'), ''
)
_SPACE = '\u2581'  # how SentencePiece writes a space
_UNSPACE = [
  decoders.Replace(_SPACE, ' '),
  decoders.ByteFallback(),
  decoders.Fuse(),
]
_MOST_TEMPLATE = 1 << 20  # bytes; long ones have 20 thousand


class Found(NamedTuple):
  """What the files of a tokenizer say."""

  backend: tokenizers.Tokenizer
  special: dict[str, str]  # role, as in 'bos_token', -> text
  end_ids: list[int]
  templates: dict[str, str]  # by name; the one that is meant is 'default'
  tidies: bool  # decoding takes spaces before punctuation away


def read(path: str) -> Found:
  """Reads the tokenizer of a directory; InputError says what is wrong."""
  settings = tokenizer_settings.optional(path, tokenizer_settings.SETTINGS)
  roles, more, added = tokenizer_roles.read(path, settings)
  backend, usual, adds_bos = _backend(path, settings)
  roles = usual | roles
  order = (*tokenizer_roles.ROLES, *roles)
  roles = {role: roles[role] for role in order if role in roles}
  listed = settings.get('added_tokens_decoder') is not None
  if adds_bos is None and not listed:
    added |= backend.get_added_tokens_decoder()
  if adds_bos:  # a tokenizer.model: they are found in the text as it is
    as_it_is: dict[str, Any] = {'normalized': False}
    added = {
      i: tokenizers.AddedToken(**token.__getstate__() | as_it_is)
      for i, token in added.items()
    }
  tokenizer_roles.add(path, backend, roles, more, added)
  if _class(path, settings) == 'Qwen2Tokenizer':  # makes all of them so
    texts = [t.content for t in (*roles.values(), *more) if t is not None]
    backend.add_tokens([tokenizers.AddedToken(t, special=True) for t in texts])
  special = {k: t.content for k, t in roles.items() if t is not None}
  flag = functools.partial(tokenizer_settings.flag, path, settings)
  if adds_bos is not None:
    bos, eos = flag('add_bos_token', adds_bos), flag('add_eos_token')
    tokenizer_bpe.add_ends(
      backend,
      special.get('bos_token') if bos else None,
      special.get('eos_token') if eos else None,
    )
  backend.encode_special_tokens = flag('split_special_tokens')
  tidies = flag('clean_up_tokenization_spaces') and (
    not isinstance(backend.model, models.BPE) or flag(_TIDIES_BPE)
  )
  ends = _end_ids(path, backend, special)
  return Found(backend, special, ends, _templates(path, settings), tidies)


def _backend(path: str, settings: dict[str, Any]):
  """Returns the backend, its own special tokens, and whether bos is added.

  That is None where the file has a processor of its own, which decides.
  """
  kind = _class(path, settings)
  file = os.path.join(path, 'tokenizer.json')
  if os.path.lexists(file):
    backend = tokenizer_json.load(file)
    if getattr(backend.model, 'dropout', None):
      backend.model.dropout = None  # of training: ids at random
    if kind == 'LlamaTokenizer' and _is_byte_level(backend):
      kind = ''  # that of Llama 3, whose files name the wrong class
    _as_class(path, settings, kind, backend)
    words = backend.pre_tokenizer
    if kind == 'GPT2Tokenizer' and isinstance(words, pre_tokenizers.ByteLevel):
      words.add_prefix_space = tokenizer_settings.flag(
        path, settings, 'add_prefix_space'
      )
    usual = {
      role: text
      for role, text in _CLASSES.get(kind, {}).items()
      if text and backend.token_to_id(text) is not None
    }
    return backend, _as_tokens(usual), None
  names = ('vocab.json', 'merges.txt')
  if all(os.path.lexists(os.path.join(path, name)) for name in names):
    backend = tokenizer_merges.backend(path, kind, settings)
    return backend, _as_tokens(_CLASSES[kind]), False
  file = os.path.join(path, 'tokenizer.model')
  if not os.path.lexists(file):
    raise errors.InputError(
      f'{path}: there is no tokenizer.json, and no tokenizer.model; put one '
      'of this model there.'
    )
  backend, special = tokenizer_sentencepiece.backend(file)
  return backend, _as_tokens(special), True


def _as_tokens(texts: Mapping[str, str | None]):
  return {
    role: tokenizers.AddedToken(text, special=True)
    for role, text in texts.items()
    if text
  }


def _class(path: str, settings: dict[str, Any]) -> str:
  """Returns the name of the class that the files ask for, or ''."""
  config = tokenizer_settings.optional(path, 'config.json')
  model = str(config.get('model_type'))
  for value in (settings.get('tokenizer_class'), config.get('tokenizer_class')):
    if isinstance(value, str):
      kind = value.removesuffix('Fast')
      return _INSTEAD.get(model, kind)
  return _OF_MODELS.get(model, '')


def _as_class(path: str, settings: dict[str, Any], kind: str, backend) -> None:
  """Sets the normalizer, pre-tokenizer and decoder of a class."""
  model = backend.model
  if kind not in ('LlamaTokenizer', 'GemmaTokenizer', 'Qwen2Tokenizer') or (
    not isinstance(model, models.BPE)
  ):
    return
  flag = functools.partial(tokenizer_settings.flag, path, settings)
  qwen = kind == 'Qwen2Tokenizer'
  model.fuse_unk = model.byte_fallback = not qwen
  model.ignore_merges = False
  if qwen:
    tokenizer_merges.split_as_qwen2(backend, flag('add_prefix_space'))
  elif kind == 'GemmaTokenizer':
    backend.normalizer = normalizers.Replace(' ', _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    backend.decoder = decoders.Sequence(_UNSPACE)
  else:
    prefix = flag('add_prefix_space', True)
    always = 'always' if flag('legacy') else 'first'
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      replacement=_SPACE,
      prepend_scheme=always if prefix else 'never',
      split=False,
    )
    strip = [decoders.Strip(' ', 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(_UNSPACE + strip)


def _is_byte_level(backend) -> bool:
  parts = (backend.pre_tokenizer, backend.decoder)
  return any(p and b'"ByteLevel"' in p.__getstate__() for p in parts)


def _end_ids(path: str, backend, special: dict[str, str]) -> list[int]:
  """Returns the ids that end a text; what no token has ends none."""
  ids = [backend.token_to_id(special.get('eos_token', ''))]
  for name in ('generation_config.json', 'config.json'):
    value = tokenizer_settings.optional(path, name).get('eos_token_id')
    for i in value if isinstance(value, list) else [value]:
      if i is not None and type(i) is not int:
        raise tokenizer_settings.wrong(
          os.path.join(path, name), 'eos_token_id', value, 'ids of tokens'
        )
      ids.append(i)
  return [
    i
    for i in ids
    if i is not None
    and 0 <= i < tokenizer_bpe.MOST_IDS
    and backend.id_to_token(i) is not None
  ]


def _templates(path: str, settings: dict[str, Any]) -> dict[str, str]:
  """Returns the chat templates by name; files go before the settings."""
  found = {}
  file = os.path.join(path, 'chat_template.jinja')
  if os.path.lexists(file):
    found['default'] = _template(file)
  folder = os.path.join(path, 'additional_chat_templates')
  if os.path.isdir(folder):
    for name in sorted(os.listdir(folder)):
      name, ending = os.path.splitext(name)
      if ending == '.jinja':
        found[name] = _template(os.path.join(folder, f'{name}.jinja'))
  value = settings.get('chat_template')
  if found or value is None:
    return found
  wrong = tokenizer_settings.wrong(
    os.path.join(path, tokenizer_settings.SETTINGS),
    'chat_template',
    value,
    'a template, or a list of templates with names',
  )
  if isinstance(value, str):
    value = {'default': value}
  pairs = list(value.items()) if isinstance(value, dict) else value
  if isinstance(value, list):
    if not all(isinstance(one, dict) for one in value):
      raise wrong
    pairs = [(one.get('name'), one.get('template')) for one in value]
  if not isinstance(pairs, list) or not all(
    isinstance(text, str) for pair in pairs for text in pair
  ):
    raise wrong
  return dict(pairs)


def _template(file: str) -> str:
  text = tokenizer_json.text(file, _MOST_TEMPLATE)
  # As a file that is opened as text: a template may be written on Windows.
  return text.replace('\r\n', '\n').replace('\r', '\n')
