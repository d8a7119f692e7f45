"""Prompts as callers have them: texts, messages, tokens, or several of these."""

from collections.abc import Mapping, Sequence
import numbers
from typing import Any

import numpy as np

from specdiff_jax.core import errors
from specdiff_jax.core import printing
from specdiff_jax.data import prompts as prompts_lib

_ID = 'prompt'  # as `specdiff decode --prompt` has it: it keys the noise
_WANTED = (
  'a text, a list of messages ({"role": ..., "content": ...}), a list of '
  'token ids, or a list of such prompts'
)


def is_single(prompts: Any) -> bool:
  """Returns whether this is one prompt, not a list of them."""
  if isinstance(prompts, (str, prompts_lib.Prompt)):
    return True
  if isinstance(prompts, np.ndarray):
    return prompts.ndim == 1 and prompts.size > 0 and prompts.dtype.kind in 'iu'
  return (
    isinstance(prompts, Sequence)
    and len(prompts) > 0
    and (all(map(_is_id, prompts)) or isinstance(prompts[0], Mapping))
  )


def named(prompts: Any, vocab_size: int) -> list[prompts_lib.Prompt]:
  """Returns prompts with their ids, checked; one, or a list of them.

  Those of a prompt file keep their ids. The first of the others has the id of
  `decode --prompt`, so that its draws are the same there.

  >>> named(['a', 'b'], 9)[1].id
  'prompt#2'
  """
  if isinstance(prompts, np.ndarray) and prompts.dtype.kind not in 'iu':
    prompts = prompts.tolist()  # texts; numbers that are no tokens are told
  if is_single(prompts):
    prompts = [prompts]
  elif isinstance(prompts, np.ndarray) and not prompts.ndim:
    raise _wrong('prompt', prompts)
  elif not isinstance(prompts, (Sequence, np.ndarray)):
    raise _wrong('prompt', prompts)
  elif not len(prompts):
    raise errors.InputError(
      f'prompt is an empty list, but it has to be {_WANTED}.'
    )
  found = []
  for number, one in enumerate(prompts, 1):
    if isinstance(one, prompts_lib.Prompt):
      found.append(one)
      continue
    where = 'prompt' if len(prompts) == 1 else f'prompt {number}'
    id = _ID if number == 1 else f'{_ID}#{number}'
    content = _content(where, one, vocab_size)
    found.append(prompts_lib.Prompt(id, content))
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
  if isinstance(one[0], Mapping):
    return prompts_lib.messages(where, one)
  ids = [int(i) for i in one]
  if bad := [i for i in ids if not 0 <= i < vocab_size]:
    raise errors.InputError(
      f'{where} holds the token {bad[0]}, but those of this verifier are 0 to '
      f'{vocab_size - 1}.'
    )
  return ids


def _is_id(value: Any) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _wrong(where: str, value: Any) -> errors.InputError:
  return errors.InputError(
    f'{where} is {printing.short(value)} of type '
    f'{type(value).__name__}, but it has to be {_WANTED}.'
  )
