"""Benches over a grid of settings: what is done, and a table of all."""

from collections.abc import Mapping, Sequence
import hashlib
import json
import os
from typing import Any

from specdiff_jax.core import errors
from specdiff_jax.core import files
from specdiff_jax.data import prompts as prompts_lib
from specdiff_jax.recipes import drafters as build_drafters
from specdiff_jax.recipes import recipe as recipe_lib
from specdiff_jax.tools import tables


def identity(
  config: recipe_lib.Recipe,
  prompts: Sequence[prompts_lib.Prompt],
  how: Any,
) -> str:
  """Returns a hash of all that decides a bench but the machine."""
  asked = [
    (one.id, one.text, *filter(None, (dict(one.template), dict(one.about))))
    for one in prompts
  ]
  told = json.dumps([config.flat(), asked, how], sort_keys=True, default=str)
  return hashlib.sha256(told.encode()).hexdigest()[:16]


def sources(config: recipe_lib.Recipe) -> list[str]:
  """Returns digests of the files that the verifier and the systems read.

  A file may be replaced under its name. Systems read drafters, heads and n-gram
  models.
  """
  files_of = {config.model.verifier, config.model.adapter}
  for name, options in config.systems.items():
    if getattr(options, 'drafter', ''):
      files_of.update(build_drafters.paths(name, options).values())
    own = getattr(options, 'diffuspec', None)
    files_of.add(getattr(options, 'head', ''))
    files_of.update(getattr(own, x, '') for x in ('confidence', 'ngram'))
  return files.contents(map(build_drafters.shipped, files_of))


def finished(path: str, identity: str) -> dict[str, Any]:
  """Returns the result of a bench that is done; {} where it is not.

  Raises InputError where another bench lies there.
  """
  if not os.path.exists(path):
    return {}
  try:
    found = files.read_json(path)
    grid = found['grid']
    same = grid['identity'] == identity and isinstance(grid['passed'], bool)
  except (errors.InputError, KeyError, TypeError, ValueError):
    same, found = False, {}
  if not same:
    raise errors.InputError(
      f'{path} holds another bench, of other prompts or settings (or is '
      'damaged): give another folder for --out, or remove it.'
    )
  return found


def table(results: Sequence[Mapping[str, Any]]) -> tables.Table:
  """Returns systems by the values of the grid."""
  fields = list(results[0]['grid']['values'])
  lines = [
    (
      *told['grid']['values'].values(),
      row['system'] + ' (simulated)' * ('simulated' in row),
      f'{row["tokens_per_s"]:.1f}',
      f'{row["speedup"]:.2f}x',
      f'{row["tau"]:.2f}',
      *([f'{row["correct"]:.1%}'] if 'correct' in row else []),
    )
    for told in results
    for row in told['systems']
  ]
  columns = [*fields, 'system', 'tokens/s', 'speed-up', 'tau']
  if any(len(line) > len(columns) for line in lines):
    columns.append('correct')
  return tables.Table(columns, lines, words=len(fields) + 1)
