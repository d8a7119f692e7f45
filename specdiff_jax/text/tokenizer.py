"""Text to ids and back, with the chat template: from GGUF, directory, bytes."""

from collections.abc import Iterable, Mapping, Sequence
import copy
import hashlib
import itertools
import json
from typing import Any, cast

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.text import chat_template as chat_template_lib
from specdiff_jax.text import stable_prefix
from specdiff_jax.text import tokenizer_bpe
from specdiff_jax.text import tokenizer_files
from specdiff_jax.text import tokenizer_gguf
from specdiff_jax.text import tokenizer_json

_END_OF_TURN = ('<|im_end|>', '<|eot_id|>', '<|end_of_turn|>', '<end_of_turn>')
MASKS = ('<mask>', '<MASK>', '<|mask|>', '<|MASK|>', '[MASK]')
_MOST_TEMPLATE = 1 << 20  # characters; long ones have 20 thousand
Message = Mapping[str, Any]  # with a role and a content
_MOST_BARRED = 64  # ids without a row in the weights; Gemma 3 has one
# Variables of a template that are no arguments: the prompt, and what it is for.
_GIVEN = ('messages', 'add_generation_prompt')
_REASONING = ('reasoning_content', 'thinking', 'reasoning')


class Tokenizer:
  """A vocabulary, its end tokens and its chat template.

  Attributes:
    end_ids: tokens that end a completion, ascending.
    mask_id: mask token of the vocabulary, or None.
    vocab_size: 1 + the greatest id.
    barred: ids for which the weights have no row (see `within`), with texts.

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
    *,
    templates: Mapping[str, str] | None = None,
    tidies: bool = False,
  ):
    """`special` maps bos_token, eos_token and other roles to texts.

    `templates` are chat templates by name; that for tools is 'tool_use'. `tidies`
    says that decoding takes spaces before punctuation away.
    """
    backend.no_truncation()  # what a file may ask for, but nobody here wants
    backend.no_padding()
    self.backend = backend
    self.chat_template = chat_template
    self.special = special
    self.barred: Mapping[int, str] = {}
    self._source = source
    if chat_template and len(chat_template) > _MOST_TEMPLATE:
      raise errors.InputError(
        f'{source}: the chat template has {len(chat_template)} characters, '
        f'where at most {_MOST_TEMPLATE} may be; download the file again.'
      )
    self._templates = dict(templates or {})
    self._tidies = tidies
    self._fallback = stable_prefix.fallback_bytes(backend)
    self._set_ids(end_ids, self.tokens())

  def _set_ids(self, end_ids: Iterable[int], tokens: dict[str, int]) -> None:
    """Sets special, end and mask ids, and the size of the vocabulary."""
    added = self.backend.get_added_tokens_decoder()
    names = {
      i: token.content
      for i, token in sorted(added.items())
      if token.special and i not in self.barred
    }
    self._special = frozenset(names)
    ends = {i for i, text in names.items() if text in _END_OF_TURN}
    masks = [i for i, text in names.items() if text in MASKS]
    self.vocab_size = 1 + max(tokens.values(), default=-1)
    if self.vocab_size > tokenizer_bpe.MOST_IDS:
      raise errors.InputError(
        f'{self._source}: a token has the id {self.vocab_size - 1}, but no '
        'vocabulary is that large; the file is damaged, download it again.'
      )
    self.end_ids = tuple(sorted(ends.union(end_ids).difference(self.barred)))
    self.mask_id = min(masks, default=None)

  def tokens(self) -> dict[str, int]:
    """Returns the vocabulary, special tokens included; no barred ones."""
    tokens = self.backend.get_vocab(with_added_tokens=True)
    for text in self.barred.values():
      tokens.pop(text, None)
    return tokens

  @property
  def fingerprint(self) -> str:
    """16 hex digits of the texts and ids of all tokens."""
    tokens = json.dumps(sorted(self.tokens().items())).encode()
    return hashlib.sha256(tokens).hexdigest()[:16]

  def within(self, rows: int, source: str) -> 'Tokenizer':
    """Returns this tokenizer for weights with so many rows.

    A few added tokens may lie behind them (Gemma's <image_soft_token>, a pad
    token of a fine-tuning): those are barred. Raises InputError where there are
    many, or others: that is the tokenizer of another model.
    """
    beyond = {i: text for text, i in self.tokens().items() if i >= rows}
    if not beyond:
      return self
    added = self.backend.get_added_tokens_decoder()
    ordinary = [i for i in beyond if i not in added]
    if ordinary or len(beyond) > _MOST_BARRED:
      raise errors.InputError(
        f'{source}: the tokenizer has ids up to {max(beyond)}, but the '
        f'weights know {rows} tokens; they belong to different models '
        f'({len(beyond)} ids lie behind the weights, {len(ordinary)} of them '
        f'of ordinary tokens, where at most {_MOST_BARRED} added tokens may).'
      )
    result = copy.copy(self)
    result.barred = beyond
    result._set_ids(self.end_ids, result.tokens())
    return result

  def encode(self, text: str) -> list[int]:
    """Returns ids; a bos token only where the model's own processor adds it."""
    return self._ids(text, True)

  def _ids(self, text: str, processed: bool) -> list[int]:
    try:
      text.encode('utf-8')
    except UnicodeEncodeError as e:
      raise errors.InputError(
        f'The text {printing.one_line(text[max(e.start - 20, 0) :][:60])!r} '
        'holds half of a surrogate pair (\\ud800 to \\udfff), which is no '
        'character; take it out.'
      ) from e
    with tokenizer_json.calls(
      f'{self._source}: the tokenizer fails on the text {_begin(text)}',
      "it is damaged or made for other texts; download the model's files again",
    ):
      ids = self.backend.encode(text, add_special_tokens=processed).ids
    for i in self.barred.keys() & ids if self.barred else ():
      raise errors.InputError(
        f'The text {_begin(text)} holds {self.barred[i]!r} (id {i}), for '
        f'which the weights of {self._source} have no row; leave it out.'
      )
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text; special tokens are skipped."""
    text = self._text(ids)
    return stable_prefix.tidy(text) if self._tidies else text

  def _text(self, ids: Sequence[int]) -> str:
    with tokenizer_json.calls(
      f'{self._source}: the tokenizer fails on ids of its own',
      "it is damaged; download the model's files again",
    ):
      return self.backend.decode(
        [int(i) for i in ids], skip_special_tokens=True
      )

  def settled(self, ids: Sequence[int]) -> str:
    """Returns the beginning of the text that no later token changes."""
    ids = [int(i) for i in ids]
    if self._fallback is not None:
      while ids and (ids[-1] in self._fallback or not self._name(ids[-1])):
        ids.pop()
      text = self._text(ids)
    else:
      text = self._text(ids)
      if text.endswith('\ufffd'):
        names = filter(None, map(self._name, reversed(ids)))
        last = list(itertools.islice(names, 3))[::-1]
        text = text[:-1] if stable_prefix.unfinished(last) else text
    return (
      stable_prefix.tidy(text[: stable_prefix.untidied(text)])
      if self._tidies
      else text
    )

  def _name(self, i: int) -> str:
    """Returns a token as the vocabulary has it; '' where it makes no text."""
    hidden = i in self._special
    return '' if hidden else self.backend.id_to_token(i) or ''

  def stop_ids(self, stop: Sequence[str]) -> list[int]:
    """Returns the special tokens among stop strings: they end a text as tokens.

    Special tokens are no part of the text. InputError if a stop string holds
    one beside other letters, since it would never be found.
    """
    special = {self.backend.id_to_token(i) or '': i for i in self._special}
    for string in stop:
      for text in special:
        if text.strip() and text in string and text != string:
          raise errors.InputError(
            f'The stop string {string!r} holds the special token {text!r}, '
            'which is no part of a text and would never be found. Give '
            f'{text!r} alone: then that token ends the text.'
          )
    return [special[string] for string in stop if string in special]

  def render_chat(
    self,
    prompt: str | Sequence[Message],
    arguments: Mapping[str, Any] | None = None,
  ) -> str:
    """Returns the chat text of messages, up to the model's answer.

    A text is one message of the user. `arguments` are further variables of the
    template, such as enable_thinking and tools, as JSON values. Raises
    InputError, which names it, where the template does not read one.
    """
    arguments = arguments or {}
    plainly = 'decode with --config.chat=False'
    if isinstance(prompt, str):
      prompt = [{'role': 'user', 'content': prompt}]
    else:  # they are chat, whatever the config says
      plainly = 'give texts, not messages'
    template, tools = self.chat_template, arguments.get('tools')
    if tools is not None:
      if not isinstance(tools, list) or not all(
        isinstance(tool, Mapping) for tool in tools
      ):
        raise errors.InputError(
          f'tools is {printing.short(tools)}, but it has to be a list of objects.'
        )
      # As transformers chooses.
      template = self._templates.get('tool_use', template)
    if not template:
      named = ', '.join(map(repr, self._templates))
      raise errors.InputError(
        f'{self._source}: this model has no chat template'
        + (f" named 'default' (it has {named})" if named else '')
        + f'; {plainly}, or take an instruction-tuned model.'
      )
    given = {
      'messages': [_normalised(message) for message in prompt],
      'tools': None,
      'documents': None,
      'add_generation_prompt': True,
    }
    try:
      if arguments:
        self._check_arguments(arguments, chat_template_lib.reads(template))
      return chat_template_lib.render(
        template, given | self.special | dict(arguments)
      )
    except chat_template_lib.Error as e:
      raise errors.InputError(
        f'{self._source}: the chat template fails ({printing.one_line(e)}); '
        f'{plainly}, or correct the template.'
      ) from e

  def _check_arguments(self, names: Iterable[str], read: Mapping[str, bool]):
    for name in names:
      if name not in read or name in _GIVEN:
        likely = [one for one in read if read[one] and one not in _GIVEN]
        raise errors.InputError(
          f'{self._source}: the chat template does not read {name!r}; of '
          f'arguments it reads {printing.names(likely) or "none"}.'
        )

  def encode_prompt(
    self,
    prompt: str | Sequence[Message] | Sequence[int],
    chat: bool,
    arguments: Mapping[str, Any] | None = None,
  ) -> list[int]:
    """Returns the ids that prompt a model, as a chat turn or as plain text.

    Messages are always chat, under `arguments` (see `render_chat`); ids are
    taken as they are.
    """
    if not isinstance(prompt, str) and isinstance(prompt[0], int):
      return list(cast(Sequence[int], prompt))
    prompt = cast('str | Sequence[Message]', prompt)
    if not chat and isinstance(prompt, str):
      return self.encode(prompt)
    # It holds its own bos, where one is due.
    text = self.render_chat(prompt, arguments)
    return self._ids(text, False)

  @classmethod
  def bytes(cls, vocab_size: int) -> 'Tokenizer':
    """Returns a tokenizer without files: id = byte, then an end token."""
    if vocab_size < 257:
      raise errors.InputError(
        f'A byte tokenizer has 256 bytes and an end token, but vocab_size='
        f'{vocab_size}; make it at least 257.'
      )
    letters = tokenizer_bpe.byte_letters()
    vocabulary = {letter: i for i, letter in enumerate(letters)}
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
    """Builds it from a GGUF's metadata (`checkpoints.gguf.header`)."""
    backend, special, end_ids = tokenizer_gguf.read(fields, source)
    template = fields.get('tokenizer.chat_template')
    if not isinstance(template, str | None):
      raise errors.InputError(
        f'{source}: tokenizer.chat_template is no text; the file is damaged, '
        'download it again.'
      )
    return cls(backend, special, end_ids, template, source)

  @classmethod
  def from_directory(cls, path: str) -> 'Tokenizer':
    """Reads tokenizer.json, else tokenizer.model, and what lies beside it."""
    found = tokenizer_files.read(path)
    result = cls(
      found.backend,
      found.special,
      found.end_ids,
      found.templates.get('default'),
      path,
      templates=found.templates,
      tidies=found.tidies,
    )
    for i in result.encode(''):  # what the processor adds is up to the file
      if found.backend.id_to_token(i) is None:
        raise errors.InputError(
          f'{path}: the post_processor of tokenizer.json adds the id {i}, '
          'which no token has; download the file again.'
        )
    return result


def _normalised(message: Message) -> dict[str, Any]:
  """Returns a message as transformers hands it to a template.

  Without fields that are None, and with the names of a reasoning made one.
  """
  kept = {name: value for name, value in message.items() if value is not None}
  for name in _REASONING:
    if name in kept:
      why = kept[name]
      return {'thinking': why, **kept, 'reasoning_content': why}
  return kept


def _begin(text: str) -> str:
  """Returns how a text begins, fit for an error."""
  return repr(text if len(text) <= 40 else text[:40] + '...')
