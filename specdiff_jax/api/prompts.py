"""Prompts as callers have them: texts, messages, tokens, or several of these."""

from collections.abc import Mapping, Sequence
import numbers
from typing import Any, NamedTuple

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.data import prompts as prompts_lib

_ID = 'prompt'  # as `specdiff decode --prompt` has it: it keys the noise
_WANTED = (
  'a text, a list of messages ({"role": ..., "content": ...}), a list of '
  'token ids, or a list of such prompts'
)


class Named(NamedTuple):
  """A prompt with the id that keys its noise."""

  id: str
  text: Any  # a text, messages, or tokens


def is_single(prompts: Any) -> bool:
  """Returns whether this is one prompt, not a list of them."""
  if isinstance(prompts, (str, prompts_lib.Prompt)):
    return True
  if isinstance(prompts, np.ndarray):
    return prompts.ndim == 1
  return (
    isinstance(prompts, Sequence)
    and len(prompts) > 0
    and (all(map(_is_id, prompts)) or all(map(_is_message, prompts)))
  )


def named(prompts: Any, vocab_size: int) -> list[Any]:
  """Returns prompts with their ids, checked; one, or a list of them.

  Those of a prompt file keep their ids. The first of the others has the id of
  `decode --prompt`, so that its draws are the same there.

  Example: named(['a', 'b'], 9) == [('prompt', 'a'), ('prompt#2', 'b')]
  """
  if is_single(prompts):
    prompts = [prompts]
  elif not isinstance(prompts, (Sequence, np.ndarray)):
    raise _wrong('prompt', prompts)
  elif not len(prompts):
    raise errors.InputError(
      f'prompt is an empty list, but it has to be {_WANTED}.'
    )
  found = []
  for number, one in enumerate(prompts, 1):
    if isinstance(one, prompts_lib.Prompt):
      found.append(Named(one.id, one.text))
      continue
    where = 'prompt' if len(prompts) == 1 else f'prompt {number}'
    id = _ID if number == 1 else f'{_ID}#{number}'
    found.append(Named(id, _content(where, one, vocab_size)))
  return found


def _content(where: str, one: Any, vocab_size: int) -> Any:
  if isinstance(one, str):
    if not one.strip():
      raise errors.InputError(
        f'{where} is empty; give some text to go on from.'
      )
    return one
  if not is_single(one):
    raise _wrong(where, one)
  if _is_message(one[0]):
    for message in one:
      if not all(isinstance(message[name], str) for name in _PARTS):
        raise errors.InputError(
          f'{where} has the message {printing.short(dict(message))}, but role '
          'and content of a message have to be texts.'
        )
    return [dict(message) for message in one]
  ids = [int(i) for i in one]
  if bad := [i for i in ids if not 0 <= i < vocab_size]:
    raise errors.InputError(
      f'{where} holds the token {bad[0]}, but those of this verifier are 0 to '
      f'{vocab_size - 1}.'
    )
  return ids


_PARTS = ('role', 'content')


def _is_id(value: Any) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
  return isinstance(value, Mapping) and all(name in value for name in _PARTS)


def _wrong(where: str, value: Any) -> errors.InputError:
  return errors.InputError(
    f'{where} is {printing.short(value)} of type '
    f'{type(value).__name__}, but it has to be {_WANTED}.'
  )
