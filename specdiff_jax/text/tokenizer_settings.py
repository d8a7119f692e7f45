"""The JSON files beside a vocabulary, read with every type checked."""

from collections.abc import Mapping
import os
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.core import printing
from specdiff_jax.text import tokenizer_bpe

SETTINGS = 'tokenizer_config.json'
_MOST = 8 << 20  # bytes, of all but the vocabulary; Gemma 3's have one


def optional(path: str, name: str) -> dict[str, Any]:
  """Reads a JSON file of the directory; {} where there is none."""
  file = os.path.join(path, name)
  return files.read_json(file, _MOST) if os.path.lexists(file) else {}


def flag(
  path: str, settings: dict[str, Any], key: str, usual: bool = False
) -> bool:
  """Returns a switch of the settings."""
  value = settings.get(key)
  if value is not None and not isinstance(value, bool):
    raise wrong(os.path.join(path, SETTINGS), key, value, 'true or false')
  return usual if value is None else value


def number(at: str, what: str, value: Any) -> int:
  """Returns the id of a token; InputError if no vocabulary has it."""
  if type(value) is not int or not 0 <= value < tokenizer_bpe.MOST_IDS:
    raise errors.InputError(
      f'{at}: {what} has the id {printing.short(value)}, which is no number of '
      'a token, so this is not a table of tokens; download the file again.'
    )
  return value


def check_ids(at: str, tokens: Mapping[str, Any]) -> None:
  """Raises InputError where a token has an id that no vocabulary has."""
  for text, i in tokens.items():
    number(at, f'the token {printing.short(text)}', i)


def wrong(at: str, key: str, value: Any, wanted: str) -> errors.InputError:
  """Returns the error of a value that is something else."""
  return errors.InputError(
    f'{at}: {key} is {printing.short(value)}, not {wanted}; download the file '
    'again.'
  )
