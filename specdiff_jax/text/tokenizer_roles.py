"""Special tokens and other added ones that stand beside a vocabulary.

Which file goes first, and what is added in what order, is as in transformers
(5.24), since the ids follow from it.
"""

import os
from typing import Any

import tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.text import tokenizer_json
from specdiff_jax.text import tokenizer_settings

_OLD_ROLES = 'special_tokens_map.json'
_OLD_ADDED = 'added_tokens.json'
ROLES = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)
_MODEL_ROLES = 'model_specific_special_tokens'
_MOST_ADDED = 1 << 17  # models of speech have 65,536
_MOST_LETTERS = 1 << 20
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


def added_tokens(path: str) -> dict[str, int]:
  """Returns the ids of tokens that stand beside the vocabulary."""
  name = tokenizer_settings.SETTINGS
  added = read(path, tokenizer_settings.optional(path, name))[2]
  return {token.content: i for i, token in added.items()}


def read(path: str, settings: dict[str, Any]):
  """Returns tokens by role (None: explicitly none), others, and added ones.

  Where tokenizer_config.json lists the added tokens (added_tokens_decoder), the
  older files beside it are not read.
  """
  at = os.path.join(path, tokenizer_settings.SETTINGS)
  roles, more = _roles(at, settings)
  listed = settings.get('added_tokens_decoder')
  if listed is not None:
    added = {
      _id(at, i): _token(at, 'added_tokens_decoder', token)
      for i, token in _table(at, 'added_tokens_decoder', listed).items()
    }
    return roles, more, added
  at = os.path.join(path, _OLD_ROLES)
  old = tokenizer_settings.optional(path, _OLD_ROLES)
  old_roles, old_more = _roles(at, old)
  roles |= old_roles
  more = more or old_more
  special = {t.content for t in (*roles.values(), *more) if t is not None}
  at = os.path.join(path, _OLD_ADDED)
  added = {}
  old = tokenizer_settings.optional(path, _OLD_ADDED)
  for text, i in _few(at, 'the file', old).items():
    has_role = text in special
    added[_id(at, i)] = tokenizers.AddedToken(
      text, special=has_role, normalized=not has_role
    )
  return roles, more, added


def _roles(at: str, settings: dict[str, Any]):
  """Returns tokens by role, and special tokens without one."""
  roles = {}
  for key in ROLES:
    if key in settings:
      value = settings[key]
      roles[key] = None if value is None else _token(at, key, value, True)
  for key, value in settings.items():
    if (
      key not in ROLES
      and key.endswith('_token')
      and (
        isinstance(value, str)
        or isinstance(value, dict)
        and value.get('__type') == 'AddedToken'
      )
    ):
      roles[key] = _token(at, key, value, True)
  key = 'extra_special_tokens'
  key = key if settings.get(key) else 'additional_special_tokens'
  more = settings.get(key) or []
  named = _few(at, key, more) if isinstance(more, dict) else {}
  # So transformers 5 saves roles of a model's own. It does not read them where
  # others are spelled as texts.
  texts = (k for k, v in settings.items() if isinstance(v, str))
  if (
    settings.get(_MODEL_ROLES)
    and not named
    and not any(k.endswith('_token') and k not in ROLES for k in texts)
  ):
    named = _table(at, _MODEL_ROLES, settings[_MODEL_ROLES])
  for role, text in named.items():
    roles[role] = _token(at, role, text, True)
  if isinstance(more, dict):
    return roles, []
  if not isinstance(more, list):
    raise tokenizer_settings.wrong(at, key, more, 'a list of tokens')
  return roles, [_token(at, key, token, True) for token in _few(at, key, more)]


def _token(at: str, key: str, value: Any, special: bool = False):
  """Returns a token that a file spells as a string, or with its flags."""
  if isinstance(value, str):
    return tokenizers.AddedToken(value, special=True)
  if not isinstance(value, dict) or not isinstance(value.get('content'), str):
    wanted = 'a token (a text, or an object with content)'
    raise tokenizer_settings.wrong(at, key, value, wanted)
  flags = {k: value[k] for k in _FLAGS if k in value}
  for name, flag in flags.items():
    if not isinstance(flag, bool):
      raise tokenizer_settings.wrong(at, f'{key}.{name}', flag, 'true or false')
  if special:
    flags['special'] = True
  return tokenizers.AddedToken(value['content'], **flags)


def _id(at: str, value: Any) -> int:
  if isinstance(value, str) and value.isdecimal() and len(value) < 10:
    value = int(value)
  return tokenizer_settings.number(at, 'an added token', value)


def _table(at: str, key: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise tokenizer_settings.wrong(at, key, value, 'a table of tokens')
  return _few(at, key, value)


def _few(at: str, key: str, value: Any) -> Any:
  if len(value) > _MOST_ADDED:
    raise errors.InputError(
      f'{at}: {key} adds {len(value)} tokens, where at most {_MOST_ADDED} '
      'may be; download the file again.'
    )
  return value


def add(path: str, backend, roles, more, added) -> None:
  """Adds the tokens, of two with the same text with the last one's flags.

  What is listed as an added token keeps its flags, but is special where it has
  a role.
  """
  there = backend.get_added_tokens_decoder().values()
  new = [token for _, token in sorted(added.items(), key=lambda pair: pair[0])]
  listed = {t.content for t in (*there, *new)}
  named = {t.content for t in roles.values() if t is not None}
  appended = {}
  for token in (*roles.values(), *more):
    if token is not None and token.content not in listed:
      appended.setdefault(repr(token), token)
  new.extend(appended.values())
  letters = sum(len(t.content) for t in new if t.normalized)
  if letters > _MOST_LETTERS:  # the normaliser may make more of them
    raise errors.InputError(
      f'{path}: its added tokens that are normalised have {letters} letters, '
      f'where at most {_MOST_LETTERS} may be; download its files again.'
    )
  for token in new:
    if token.content in named:
      token.special = True
  with tokenizer_json.calls(
    f'{path}: its added tokens cannot be added', 'download its files again'
  ):
    backend.add_tokens(new)
  for i, token in added.items():
    found = backend.token_to_id(token.content)
    if found != i:
      text = printing.short(token.content)
      raise errors.InputError(
        f'{path}: the added token {text} is to have the id {i}, but the next '
        f'free one, or that of the vocabulary, is {found}; the vocabulary '
        'and the files beside it belong to different models.'
      )
