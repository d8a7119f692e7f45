"""Text to ids and back, with the chat template: from GGUF, directory, bytes."""

import codecs
import datetime
import json
import os
from typing import Any, Iterable, Sequence

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.text import tokenizer_gguf
from specdiff_jax.text import tokenizer_sentencepiece

_END_OF_TURN = ('<|im_end|>', '<|eot_id|>', '<|end_of_turn|>', '<end_of_turn>')
MASKS = ('<mask>', '<MASK>', '<|mask|>', '<|MASK|>', '[MASK]')


class Tokenizer:
  """A vocabulary, its end tokens and its chat template.

  Attributes:
    end_ids: tokens that end a completion, ascending.
    spare_ids: special tokens with no use in chat or at an end, ascending.
    mask_id: the vocabulary's own mask token, or None.
    vocab_size: 1 + the greatest id.

  Example:
    tokenizer = Tokenizer.bytes(260)
    tokenizer.decode(tokenizer.encode('hello')) == 'hello'
  """

  def __init__(
      self,
      backend: tokenizers.Tokenizer,
      special: dict[str, str],
      end_ids: Iterable[int],
      chat_template: str | None = None,
      source: str = 'the tokenizer',
  ):
    """`special` maps bos_token, eos_token, unk_token, pad_token to texts."""
    added = backend.get_added_tokens_decoder()
    names = {i: t.content for i, t in sorted(added.items()) if t.special}
    turns = [i for i, text in names.items() if text in _END_OF_TURN]
    masks = [i for i, text in names.items() if text in MASKS]
    backend.no_truncation()  # what a file may ask for, but nobody here wants
    backend.no_padding()
    self.backend = backend
    self.chat_template = chat_template
    self.vocab_size = 1 + max(
        backend.get_vocab(with_added_tokens=True).values(), default=-1
    )
    self.end_ids = tuple(sorted({*end_ids, *turns}))
    self.mask_id = min(masks, default=None)
    self.spare_ids = tuple(
        i
        for i, text in names.items()
        if i not in (*self.end_ids, *masks)
        and text not in special.values()
        and text not in (chat_template or '')
    )
    self.special = special
    self._source = source
    self._special = frozenset(names)
    self._fallback = _fallback_bytes(backend)

  def encode(self, text: str) -> list[int]:
    """Returns ids; a bos token only where the model's own processor adds it."""
    return self.backend.encode(text).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text; special tokens are skipped."""
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def settled(self, ids: Sequence[int]) -> str:
    """Returns the beginning of the text of `ids` that no later token changes.

    Left out is a character whose bytes are not all there yet; where bytes are
    tokens of their own (byte fallback), a whole run of them: a byte that does
    not fit spoils those before it.
    """
    ids = [int(i) for i in ids]
    if self._fallback is not None:
      while ids and (ids[-1] in self._fallback or ids[-1] in self._special):
        ids.pop()
      return self.decode(ids)
    text = self.decode(ids)
    waits = text.endswith('\ufffd') and self._unfinished(ids)
    return text[:-1] if waits else text

  def _unfinished(self, ids: Sequence[int]) -> bool:
    """Returns whether the last bytes of byte-level tokens await others."""
    last = b''
    for i in reversed(ids):
      if len(last) >= 3:  # as many as may be waiting
        break
      if i not in self._special:
        token = self.backend.id_to_token(i) or ''
        known = all(letter in _BYTES for letter in token)
        last = (
            bytes(map(_BYTES.get, token)) if known else token.encode()
        ) + last
    waiting = codecs.getincrementaldecoder('utf-8')('replace')
    waiting.decode(last)
    return bool(waiting.getstate()[0])

  def stop_ids(self, stop: Sequence[str]) -> list[int]:
    """Returns the special tokens among stop strings: they end a text as tokens.

    Special tokens are no part of the text. InputError if a stop string holds
    one beside other letters, since it would never be found.
    """
    special = {self.backend.id_to_token(i): i for i in self._special}
    for string in stop:
      for text in special:
        if text.strip() and text in string and text != string:
          raise errors.InputError(
              f'The stop string {string!r} holds the special token {text!r}, '
              'which is no part of a text and would never be found. Give '
              f'{text!r} alone: then that token ends the text.'
          )
    return [special[string] for string in stop if string in special]

  def render_chat(self, prompt: str) -> str:
    """Returns the chat text of one user message, up to the model's answer."""
    if not self.chat_template:
      raise errors.InputError(
          f'{self._source}: this model has no chat template; decode with '
          '--config.chat=False, or take an instruction-tuned model.'
      )
    try:
      return _compile(self.chat_template).render(
          messages=[{'role': 'user', 'content': prompt}],
          add_generation_prompt=True,
          **self.special,
      )
    except Exception as e:  # a template is foreign code: it may raise anything
      raise errors.InputError(
          f'{self._source}: the chat template fails ({e}); decode with '
          '--config.chat=False, or correct the template.'
      ) from e

  def encode_prompt(self, prompt: str, chat: bool) -> list[int]:
    """Returns the ids that prompt a model, as a chat turn or as plain text."""
    if not chat:
      return self.encode(prompt)
    text = self.render_chat(prompt)  # holds its own bos, where one is due
    return self.backend.encode(text, add_special_tokens=False).ids

  @classmethod
  def bytes(cls, vocab_size: int) -> 'Tokenizer':
    """Returns a tokenizer without files: id = byte, then an end token."""
    if vocab_size < 257:
      raise errors.InputError(
          f'A byte tokenizer has 256 bytes and an end token, but vocab_size='
          f'{vocab_size}; make it at least 257.'
      )
    vocabulary = {letter: i for i, letter in enumerate(byte_letters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    spare = [f'<|spare_{i}|>' for i in range(257, vocab_size)]
    backend.add_special_tokens(['<|end|>', *spare])
    special = {'eos_token': '<|end|>'}
    return cls(backend, special, [256], source='the byte tokenizer')

  @classmethod
  def from_gguf(
      cls, fields: dict[str, Any], source: str = 'the GGUF file'
  ) -> 'Tokenizer':
    """Builds it from a GGUF's metadata (gguf_io.Header.fields)."""
    backend, special, end_ids = tokenizer_gguf.read(fields, source)
    template = fields.get('tokenizer.chat_template')
    template = template if isinstance(template, str) else None
    return cls(backend, special, end_ids, template, source)

  @classmethod
  def from_directory(cls, path: str) -> 'Tokenizer':
    """Reads tokenizer.json, else tokenizer.model, and what lies beside it."""
    settings = _read_settings(path, 'tokenizer_config.json')
    backend, special = _read_backend(path, settings)
    for key in ('bos_token', 'eos_token', 'unk_token', 'pad_token'):
      value = settings.get(key)
      value = value.get('content') if isinstance(value, dict) else value
      if isinstance(value, str):
        special[key] = value
    end_ids = [backend.token_to_id(special.get('eos_token', ''))]
    for name in ('generation_config.json', 'config.json'):
      value = _read_settings(path, name).get('eos_token_id')
      end_ids += value if isinstance(value, list) else [value]
    end_ids = [i for i in end_ids if isinstance(i, int)]
    template = _chat_template(path, settings)
    return cls(backend, special, end_ids, template, path)


def _fallback_bytes(backend: tokenizers.Tokenizer) -> frozenset[int] | None:
  """Returns the tokens that are single bytes, if their runs make characters."""
  decoder = backend.decoder
  if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
    return None
  found = (backend.token_to_id(f'<0x{byte:02X}>') for byte in range(256))
  return frozenset(i for i in found if i is not None)


def byte_letters() -> list[str]:
  """Returns the printable stand-in of each byte, as in GPT-2's vocabulary."""
  plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  return [chr(b if b in plain else next(others)) for b in range(256)]


_BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


def _compile(template: str) -> jinja2.Template:
  """Compiles a template, which is foreign code, in a sandbox."""

  def fail(message):
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=['jinja2.ext.loopcontrols'],
  )
  environment.filters['tojson'] = lambda value, **options: json.dumps(
      value, ensure_ascii=False, **options
  )
  environment.globals['raise_exception'] = fail
  environment.globals['strftime_now'] = (
      lambda form: datetime.datetime.now().strftime(form)
  )
  return environment.from_string(template)


def _read_backend(
    path: str, settings: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
  """Returns the backend, and the special tokens that its own file states."""
  file = os.path.join(path, 'tokenizer.json')
  if os.path.exists(file):
    try:
      return tokenizers.Tokenizer.from_file(file), {}
    except Exception as e:  # the library raises bare Exception
      raise errors.InputError(
          f'{file}: not a tokenizer ({e}); download the file again.'
      ) from e
  file = os.path.join(path, 'tokenizer.model')
  if not os.path.exists(file):
    raise errors.InputError(
        f'{path}: there is no tokenizer.json, and no tokenizer.model; put one '
        'of this model there.'
    )
  return tokenizer_sentencepiece.backend(
      file, _added_tokens(path, settings), settings.get('add_bos_token', True)
  )


def _added_tokens(path: str, settings: dict[str, Any]) -> dict[int, str]:
  """Returns special tokens that stand beside a tokenizer.model, by id."""
  listed = settings.get('added_tokens_decoder') or {}
  more = _read_settings(path, 'added_tokens.json')
  try:
    added = {int(i): token['content'] for i, token in listed.items()}
    return added | {int(i): str(text) for text, i in more.items()}
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise errors.InputError(
        f'{path}: added_tokens_decoder of tokenizer_config.json, or '
        f'added_tokens.json, is not a table of tokens ({e!r}); download the '
        'file again.'
    ) from e


def _read_settings(path: str, name: str) -> dict[str, Any]:
  """Reads an optional JSON file of the directory."""
  file = os.path.join(path, name)
  return files.read_json(file) if os.path.exists(file) else {}


def _chat_template(path: str, settings: dict[str, Any]) -> str | None:
  """Returns the template of chat_template.jinja or tokenizer_config.json."""
  file = os.path.join(path, 'chat_template.jinja')
  if os.path.exists(file):
    with open(file, encoding='utf-8') as text:
      return text.read()
  template = settings.get('chat_template')
  if isinstance(template, list):  # named templates, of which one is meant
    named = {t.get('name'): t.get('template') for t in template}
    template = named.get('default')
  return template
