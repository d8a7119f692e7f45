"""The flags of a subcommand as a table, from names to what they are."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from absl import flags


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag besides its name.

  Attributes:
    help: what it means, for `--help`.
    default: value where it is not given.
    kind: of absl's DEFINE functions: string, integer, float, bool, enum, list,
      multi_string.
    low: least value of a number.
    choices: the values of an enum.
  """

  help: str
  default: Any = None
  kind: str = 'string'
  low: float | None = None
  choices: Sequence[str] = ()


def defined(named: Mapping[str, Flag]) -> flags.FlagValues:
  """Returns flags by name, not parsed yet."""
  values = flags.FlagValues()
  for name, one in named.items():
    more = [list(one.choices)] if one.choices else []
    bound = {} if one.low is None else {'lower_bound': one.low}
    make = getattr(flags, f'DEFINE_{one.kind}')
    make(name, one.default, *more, one.help, flag_values=values, **bound)
  return values


# Of programs that read `decoding.prompts`.
PROMPTS = {
  'prompts': Flag(
    'a JSONL file of prompts, with the fields id and prompt (a text, or a '
    'list of messages); goes before config.prompts'
  ),
  'limit': Flag(
    'take this many prompts of the file; 0 takes all. Without it all of '
    '--prompts, or config.limit of config.prompts',
    kind='integer',
    low=0,
  ),
}

# Of programs that read a standard set too.
SUITE = PROMPTS | {
  'suite': Flag(
    'prompts of a standard set: gsm8k, math500, humaneval, mbpp, mt_bench, '
    'spec_bench, alpaca, livecodebench, gpqa, or mixed, which ships (100 '
    'prompts of five domains). All turns are asked, and answers checked where '
    'the set says what is right'
  ),
  'path': Flag(
    'the public file of --suite (or prompts of our own form); without it what '
    'tensorflow_datasets has'
  ),
}

# Of programs that read the prompts of a file, or none.
FILE = {
  'prompts': Flag(
    'a JSONL file of prompts, with the fields id and prompt (a text, or a '
    'list of messages)'
  ),
  'limit': Flag(
    'take this many prompts of the file; 0 takes all', 0, 'integer', 0
  ),
}
