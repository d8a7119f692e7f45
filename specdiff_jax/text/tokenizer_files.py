"""The tokenizer of a directory of Hugging Face: all its files, as one.

What the files say together is what transformers (5.24) makes of them: which
goes first where they differ, which tokens are added in what order, which are
special. A directory has a tokenizer.json, or vocab.json and merges.txt, or a
tokenizer.model.
"""

import os
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_json
from specdiff_jax.text import tokenizer_sentencepiece

_SETTINGS = 'tokenizer_config.json'
_OLD_ROLES = 'special_tokens_map.json'
_OLD_ADDED = 'added_tokens.json'
_ROLES = (
    'bos_token',
    'eos_token',
    'unk_token',
    'sep_token',
    'pad_token',
    'cls_token',
    'mask_token',
)
_TIDIES_BPE = (
    'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output'
)
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_END = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>')
# Roles that a class fills where the settings do not say.
_CLASSES = {
    'GPT2Tokenizer': _END,
    'Qwen2Tokenizer': {**_END, 'bos_token': None, 'pad_token': '<|endoftext|>'},
    'LlamaTokenizer': {
        'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'
    },
    'GemmaTokenizer': {
        'bos_token': '<bos>', 'eos_token': '<eos>', 'unk_token': '<unk>',
        'pad_token': '<pad>', 'mask_token': '<mask>',
    },
}
# Classes of models that come with vocab.json and merges.txt, by model_type.
_OF_MODELS = dict.fromkeys(('gpt2', 'gptj', 'gpt_neo'), 'GPT2Tokenizer')
_OF_MODELS |= dict.fromkeys(('qwen2', 'qwen3'), 'Qwen2Tokenizer')
_MOST_TEMPLATE = 1 << 20  # bytes; long ones have 20 thousand
_MOST_JSON = 8 << 20  # bytes, of all but the vocabulary; Gemma 3's have one


class Found(NamedTuple):
  """What the files of a tokenizer say."""

  backend: tokenizers.Tokenizer
  special: dict[str, str]  # role, as in 'bos_token', -> text
  end_ids: list[int]
  templates: dict[str, str]  # by name; the one that is meant is 'default'
  tidies: bool  # decoding takes spaces before punctuation away


def read(path: str) -> Found:
  """Reads the tokenizer of a directory; InputError says what is wrong."""
  settings = optional(path, _SETTINGS)
  roles, more, added = _tokens(path, settings)
  backend, own, adds_bos = _backend(path, settings)
  roles = own | roles
  roles = {k: roles[k] for k in (*_ROLES, *roles) if k in roles}  # their order
  if adds_bos:  # a tokenizer.model: they are found in the text as it is
    as_it_is = {'normalized': False}
    added = {
        i: tokenizers.AddedToken(**token.__getstate__() | as_it_is)
        for i, token in added.items()
    }
  _add(path, backend, roles, more, added)
  special = {k: t.content for k, t in roles.items() if t is not None}
  if adds_bos is not None:
    _add_ends(path, backend, special, settings, adds_bos)
  backend.encode_special_tokens = _flag(path, settings, 'split_special_tokens')
  tidies = _flag(path, settings, 'clean_up_tokenization_spaces') and (
      not isinstance(backend.model, models.BPE)
      or _flag(path, settings, _TIDIES_BPE)
  )
  ends = _end_ids(path, backend, special)
  return Found(backend, special, ends, _templates(path, settings), tidies)


def optional(path: str, name: str) -> dict[str, Any]:
  """Reads a JSON file of the directory; {} where there is none."""
  file = os.path.join(path, name)
  return files.read_json(file, _MOST_JSON) if os.path.lexists(file) else {}


def added_tokens(path: str) -> dict[str, int]:
  """Returns the ids of tokens that stand beside the vocabulary."""
  added = _tokens(path, optional(path, _SETTINGS))[2]
  return {token.content: i for i, token in added.items()}


# --- tokens -----------------------------------------------------------------


def _tokens(path: str, settings: dict[str, Any]):
  """Returns tokens by role (None: explicitly none), others, and added ones.

  Where tokenizer_config.json lists the added tokens (added_tokens_decoder), the
  older files beside it are not read.
  """
  at = os.path.join(path, _SETTINGS)
  roles, more = _roles(at, settings)
  listed = settings.get('added_tokens_decoder')
  if listed is not None:
    added = {
        _id(at, i): _token(at, 'added_tokens_decoder', token)
        for i, token in _table(at, 'added_tokens_decoder', listed).items()
    }
    return roles, more, added
  at = os.path.join(path, _OLD_ROLES)
  old_roles, old_more = _roles(at, optional(path, _OLD_ROLES))
  roles |= old_roles
  more = more or old_more
  special = {t.content for t in (*roles.values(), *more) if t is not None}
  at = os.path.join(path, _OLD_ADDED)
  added = {}
  for text, i in optional(path, _OLD_ADDED).items():
    known = text in special
    added[_id(at, i)] = tokenizers.AddedToken(
        text, special=known, normalized=not known
    )
  return roles, more, added


def _roles(at: str, settings: dict[str, Any]):
  """Returns tokens by role, and special tokens without one."""
  roles = {}
  for key in _ROLES:
    if key in settings:
      value = settings[key]
      roles[key] = None if value is None else _token(at, key, value, True)
  for key, value in settings.items():
    if key not in _ROLES and key.endswith('_token') and (
        isinstance(value, str)
        or isinstance(value, dict) and value.get('__type') == 'AddedToken'
    ):
      roles[key] = _token(at, key, value, True)
  key = 'extra_special_tokens'
  key = key if settings.get(key) else 'additional_special_tokens'
  more = settings.get(key) or []
  if isinstance(more, dict):
    named = {role: _token(at, key, text, True) for role, text in more.items()}
    return roles | named, []
  if not isinstance(more, list):
    raise _wrong(at, key, more, 'a list of tokens')
  return roles, [_token(at, key, token, True) for token in more]


def _token(at: str, key: str, value: Any, special: bool = False):
  """Returns a token that a file spells as a string, or with its flags."""
  if isinstance(value, str):
    return tokenizers.AddedToken(value, special=True)
  if not isinstance(value, dict) or not isinstance(value.get('content'), str):
    raise _wrong(at, key, value, 'a token (a text, or an object with content)')
  flags = {k: value[k] for k in _FLAGS if k in value}
  for name, flag in flags.items():
    if not isinstance(flag, bool):
      raise _wrong(at, f'{key}.{name}', flag, 'true or false')
  if special:
    flags['special'] = True
  return tokenizers.AddedToken(value['content'], **flags)


def _id(at: str, value: Any) -> int:
  if isinstance(value, str) and value.isdecimal() and len(value) < 10:
    value = int(value)
  if type(value) is not int or not 0 <= value < tokenizer_bpe.MOST_IDS:
    raise errors.InputError(
        f'{at}: the id {_shown(value)} of an added token is no number of one; '
        'the added tokens are not a table of tokens, download the file again.'
    )
  return value


def _table(at: str, key: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise _wrong(at, key, value, 'a table of tokens')
  return value


def _wrong(at: str, key: str, value: Any, wanted: str) -> errors.InputError:
  return errors.InputError(
      f'{at}: {key} is {_shown(value)}, not {wanted}; download the file again.'
  )


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else text[:80] + '...'


def _add(path: str, backend, roles, more, added) -> None:
  """Adds the tokens that the backend lacks, or whose flags differ."""
  there = backend.get_added_tokens_decoder().values()
  known, flags = {t.content for t in there}, {repr(t) for t in there}
  named = {t.content for t in roles.values() if t is not None}
  new = {}
  for _, token in sorted(added.items(), key=lambda pair: pair[0]):
    if repr(token) not in flags:
      if token.content in named:
        token.special = True
      new[token.content] = token
  for token in (*roles.values(), *more):
    if token is not None and token.content not in known:
      new.setdefault(token.content, token)
  with tokenizer_json.calls(
      f'{path}: its added tokens cannot be added', 'download its files again'
  ):
    backend.add_tokens(list(new.values()))
  for i, token in added.items():
    found = backend.token_to_id(token.content)
    if found != i:
      raise errors.InputError(
          f'{path}: the added token {_shown(token.content)} is to have the id '
          f'{i}, but the next free one, or that of the vocabulary, is {found}; '
          'the vocabulary and the files beside it belong to different models.'
      )


# --- the vocabulary ---------------------------------------------------------


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
    words = backend.pre_tokenizer
    if kind == 'GPT2Tokenizer' and isinstance(words, pre_tokenizers.ByteLevel):
      words.add_prefix_space = _flag(path, settings, 'add_prefix_space')
    own = {
        role: text
        for role, text in _CLASSES.get(kind, {}).items()
        if text and backend.token_to_id(text) is not None
    }
    return backend, _as_tokens(own), None
  file = os.path.join(path, 'vocab.json')
  merges = os.path.join(path, 'merges.txt')
  if os.path.lexists(file) and os.path.exists(merges):
    backend = _from_merges(path, file, merges, kind, settings)
    return backend, _as_tokens(_CLASSES[kind]), False
  file = os.path.join(path, 'tokenizer.model')
  if not os.path.lexists(file):
    raise errors.InputError(
        f'{path}: there is no tokenizer.json, and no tokenizer.model; put one '
        'of this model there.'
    )
  backend, own = tokenizer_sentencepiece.backend(file)
  return backend, _as_tokens(own), True


def _as_tokens(texts: dict[str, str | None]):
  return {
      role: tokenizers.AddedToken(text, special=True)
      for role, text in texts.items()
      if text
  }


def _class(path: str, settings: dict[str, Any]) -> str:
  """Returns the name of the class that the files ask for, or ''."""
  config = optional(path, 'config.json')
  for value in (settings.get('tokenizer_class'), config.get('tokenizer_class')):
    if isinstance(value, str):
      return value.removesuffix('Fast')
  return _OF_MODELS.get(str(config.get('model_type')), '')


def _from_merges(
    path: str, file: str, merges: str, kind: str, settings: dict[str, Any]
) -> tokenizers.Tokenizer:
  """Returns byte-level BPE of vocab.json and merges.txt, as its class does."""
  if kind not in ('GPT2Tokenizer', 'Qwen2Tokenizer'):
    raise errors.InputError(
        f'{path}: there is no tokenizer.json, and vocab.json and merges.txt do '
        f'not say how {_shown(kind)} splits a text (known are '
        'GPT2Tokenizer and Qwen2Tokenizer); make a tokenizer.json with '
        "transformers: AutoTokenizer.from_pretrained('.').save_pretrained('.') "
        'in this directory.'
    )
  vocabulary = files.read_json(file)
  for text, i in vocabulary.items():
    if type(i) is not int or not 0 <= i < tokenizer_bpe.MOST_IDS:
      raise errors.InputError(
          f'{file}: the token {_shown(text)} has the id {_shown(i)}, which is '
          'no number of a token; download the file again.'
      )
  pairs = []
  try:
    lines = tokenizer_json.read(merges).decode('utf-8').split('\n')
  except UnicodeDecodeError as e:
    raise errors.InputError(
        f'{merges}: not UTF-8 ({e}); download the file again.'
    ) from e
  lines = lines[:-1] if lines[-1] == '' else lines
  for number, line in enumerate(lines, 1):
    line = line.removesuffix('\r')
    if line.startswith('#version'):
      continue
    pair = tuple(line.split(' '))
    if len(pair) != 2:
      raise errors.InputError(
          f'{merges}: line {number} is not two tokens with a space between '
          'them; download the file again.'
      )
    pairs.append(pair)
  prefix = _flag(path, settings, 'add_prefix_space')
  with tokenizer_json.calls(
      f'{path}: vocab.json and merges.txt do not make a vocabulary',
      'download both again',
  ):
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
  if kind == 'GPT2Tokenizer':
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
  else:
    backend.normalizer = normalizers.NFC()
    split = tokenizers.Regex(tokenizer_bpe.SPLIT.replace('DIGITS', ''))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(split, behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
    ])
  backend.decoder = decoders.ByteLevel()
  return backend


def _add_ends(path: str, backend, special, settings, bos: bool) -> None:
  """Has bos and eos added to a text, where the settings ask for it."""
  ends = []
  for role, usual in (('bos', bos), ('eos', False)):
    text = special.get(f'{role}_token')
    wanted = _flag(path, settings, f'add_{role}_token', usual) and text
    ends.append([text] if wanted else [])
  single = [*ends[0], '$A', *ends[1]]
  if len(single) > 1:
    texts = {*ends[0], *ends[1]}
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(text, backend.token_to_id(text)) for text in texts],
    )


def _flag(
    path: str, settings: dict[str, Any], key: str, usual: bool = False
) -> bool:
  value = settings.get(key)
  if value is not None and not isinstance(value, bool):
    raise _wrong(os.path.join(path, _SETTINGS), key, value, 'true or false')
  return usual if value is None else value


# --- ends and templates -----------------------------------------------------


def _end_ids(path: str, backend, special: dict[str, str]) -> list[int]:
  """Returns the ids that end a text; what no token has ends none."""
  ids = [backend.token_to_id(special.get('eos_token', ''))]
  for name in ('generation_config.json', 'config.json'):
    value = optional(path, name).get('eos_token_id')
    for i in value if isinstance(value, list) else [value]:
      if i is not None and type(i) is not int:
        raise _wrong(
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
      if ending == '.jinja':  # of the others only the names are of use
        meant = name == 'default'
        found[name] = _template(f'{folder}/default.jinja') if meant else ''
  value = settings.get('chat_template')
  if found or value is None:
    return found
  wrong = _wrong(
      os.path.join(path, _SETTINGS), 'chat_template', value,
      'a template, or a list of templates with names'
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
  try:
    text = tokenizer_json.read(file, _MOST_TEMPLATE).decode('utf-8')
  except UnicodeDecodeError as e:
    raise errors.InputError(
        f'{file}: not UTF-8 ({e}); download the file again.'
    ) from e
  # As a file that is opened as text: a template may be written on Windows.
  return text.replace('\r\n', '\n').replace('\r', '\n')
