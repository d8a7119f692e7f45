"""JSON files beside the weights."""

import json
from typing import Any

from specdiff_jax.core import errors


def read_json(path: str) -> dict[str, Any]:
  """Reads a JSON object; InputError where there is none."""
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except FileNotFoundError as e:
    raise errors.InputError(
        f'{path}: there is no such file; correct the path, or download it.'
    ) from e
  except (OSError, ValueError) as e:
    raise errors.InputError(
        f'{path}: not readable as JSON ({e}); download the file again.'
    ) from e
  if not isinstance(value, dict):
    raise errors.InputError(
        f'{path}: holds a JSON {type(value).__name__} where an object is '
        'expected; download the file again.'
    )
  return value
