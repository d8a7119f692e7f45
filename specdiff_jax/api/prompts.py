"""Prompts as callers have them: texts, messages, tokens, or several of these."""

from collections.abc import Mapping, Sequence
import dataclasses
import numbers
import os
from typing import Any

import numpy as np

from specdiff_jax.api import checks
from specdiff_jax.core import errors
from specdiff_jax.core import paths
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.data import suites

_ID = 'prompt'  # as `specdiff decode --prompt` has it: it keys the noise
_WANTED = (
  'a text, a list of messages ({"role": ..., "content": ...}), a list of '
  'token ids, or a list of such prompts'
)
_BYTES = (bytes, bytearray, memoryview)  # sequences of integers, but not of ids


def read_prompts(
  path: str | os.PathLike[str], limit: int | None = None
) -> list[prompts_lib.Prompt]:
  """Reads a JSONL file of prompts, at most `limit` of them.

  Each line has an `id`, unique in the file, and a `prompt`, a text or a list of
  messages. Other fields are ignored, blank lines are skipped.
  Raises InputError, with the line's number, where a line cannot be used.

  Example:
    >>> import specdiff_jax as sd
    >>> [one.id for one in sd.read_prompts('configs/prompts/tiny.jsonl', limit=1)]
    ['tiny-0']
  """
  return prompts_lib.read(paths.given(path, 'path'), _limit(limit))


def read_suite(
  name: str, path: str | os.PathLike[str] = '', limit: int | None = None
) -> list[prompts_lib.Prompt]:
  """Returns prompts of a suite, at most `limit`.

  Args:
    name: of the table in docs/suites.md.
    path: the set's public file, or a prompt file of our own form; '' where TFDS
      has the set.
    limit: None for all.

  Raises:
    InputError: the suite is not known, not there, or a record is not of its
      form; it says where to get it.

  Example:
    >>> import specdiff_jax as sd
    >>> [one.id for one in sd.read_suite('mixed', limit=1)]
    ['arithmetic-0']
  """
  if not isinstance(name, str):
    raise checks.wrong('name', name, "a text, such as 'mixed'")
  return suites.read(name, paths.given(path, 'path'), _limit(limit))


def _limit(limit: Any) -> int | None:
  if limit is not None and not (_is_id(limit) and limit >= 0):
    raise checks.wrong('limit', limit, 'None or an integer, at least 0')
  return limit


def is_single(prompts: Any) -> bool:
  """Returns whether this is one prompt, not a list of them."""
  if isinstance(prompts, (str, prompts_lib.Prompt, *_BYTES)):
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
    where = 'prompt' if len(prompts) == 1 else f'prompt {number}'
    id = _ID if number == 1 else f'{_ID}#{number}'
    own = isinstance(one, prompts_lib.Prompt)
    content = _content(where, one.text if own else one, vocab_size)
    found.append(
      dataclasses.replace(one, text=content)
      if own
      else prompts_lib.Prompt(id, content)
    )
  return found


def _content(where: str, one: Any, vocab_size: int) -> Any:
  if isinstance(one, str):
    if not one.strip():
      raise errors.InputError(
        f'{where} is empty; give some text to go on from.'
      )
    return one
  if isinstance(one, (prompts_lib.Prompt, *_BYTES)) or not is_single(one):
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
  return checks.wrong(where, value, _WANTED)
