"""The fields of a trajectory as a line of JSON has them, checked when read."""

import base64
from collections.abc import Mapping
import re
from typing import Any

import numpy as np

_MOST_ID = 2**31 - 1  # tokens are int32
_NUMBERS = {'temperature': (0, 1e30), 'top_p': (0, 1)}  # bounds
_INTEGERS = {'top_k': 2**31, 'seed': 2**63}  # and what is too much
_TOP = {'top_ids': np.dtype('<i4'), 'top_log_p': np.dtype('<f2')}


def encoded(trajectory: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a trajectory as values of JSON."""
  fields = dict(trajectory)
  for name in ('prompt', 'completion'):
    fields[name] = np.asarray(fields[name], np.int32).tolist()
  for name, dtype in _TOP.items():
    value = fields.pop(name)
    if value is not None:
      data = np.ascontiguousarray(value, dtype).tobytes()
      fields[name] = base64.b64encode(data).decode()
  return fields


def decoded(line: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that `encoded` took.

  Raises KeyError, TypeError, ValueError or OverflowError where a field has no
  value for it.
  """
  fields = {name: line[name] for name in line if name != 'sum'}
  for name in ('prompt', 'completion'):
    fields[name] = _ids(fields[name], name)
  for name, dtype in _TOP.items():
    if name in fields:
      data = base64.b64decode(fields[name], validate=True)
      flat = np.frombuffer(data, dtype)
      places = len(fields['completion'])
      fields[name] = flat.reshape(places, flat.size // max(places, 1))
  _check(fields)
  return fields


def _ids(value: Any, name: str) -> np.ndarray:
  """Returns a list of JSON as tokens; numpy would take 1.5 and true, too."""
  if not isinstance(value, list) or not set(map(type, value)) <= {int}:
    raise ValueError(f'{name} is not a list of integers')
  tokens = np.asarray(value, np.int64)
  if tokens.size and not 0 <= tokens.min() <= tokens.max() <= _MOST_ID:
    raise ValueError(f'{name} holds a number that is no token')
  return tokens.astype(np.int32)


def _check(fields: Mapping[str, Any]) -> None:
  """Raises ValueError where a field of a trajectory has no value for it."""
  if not isinstance(fields['id'], str):
    raise ValueError('id is not a string')
  key = fields['prompt_hash']
  if not isinstance(key, str) or not re.fullmatch('[0-9a-f]{16}', key):
    raise ValueError('prompt_hash is not 16 hex digits')
  for name, (least, most) in _NUMBERS.items():
    value = fields[name]
    if type(value) not in (int, float) or not least <= value <= most:
      raise ValueError(f'{name} is {value!r:.40}')
  for name, bound in _INTEGERS.items():
    value = fields[name]
    if type(value) is not int or not -bound <= value < bound:
      raise ValueError(f'{name} is {value!r:.40}')
  ids, log_p = (fields.get(name) for name in _TOP)
  if (ids is None) != (log_p is None):
    raise ValueError('one of top_ids and top_log_p is missing')
  if ids is None or log_p is None or not ids.size:
    return
  if ids.shape != log_p.shape:
    raise ValueError(f'top_ids is {ids.shape}, top_log_p {log_p.shape}')
  if ids.min() < 0 or not (log_p <= 0.01).all():  # nan is not, either
    raise ValueError(
      'top_ids or top_log_p hold what is no token, or no distribution'
    )
