"""`prompts`: a prompt file out of a dataset."""

import os

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag
from specdiff_jax.core import paths

_FLAGS = {
  'from': flag.Flag(
    'a JSONL, parquet or CSV file, or a name of tensorflow_datasets, such as '
    'gsm8k or name/config:version. Needed, but with --suite'
  ),
  'out': flag.Flag(
    'the prompt file to write. Needed, but with --against, which checks alone '
    'without it'
  ),
  'suite': flag.SUITE['suite'],
  'against': flag.Flag(
    'prompt files of evaluations: prompts that overlap one of theirs (the same '
    'text, or ten words that follow each other) are left out, and named',
    kind='list',
  ),
  'split': flag.Flag(
    'of a dataset of tensorflow_datasets, slices such as train[:1000] too; '
    'files have none',
    'train',
  ),
  'field': flag.Flag(
    'the field of a record that holds its prompt; by default prompt, of gsm8k '
    'question',
    '',
  ),
  'id_field': flag.Flag(
    'the field of its id; by default ids are hashes of the prompts', ''
  ),
  'limit': flag.Flag('write this many prompts; 0 writes all', 0, 'integer', 0),
  'overwrite': flag.Flag('replace the file of --out', False, 'bool'),
}

COMMAND = command.Command(
  name='prompts',
  what="""
    Writes a prompt file, as collect, bench, verify and decode take it, out of a
    dataset: a JSON line {"id", "prompt"} for each different prompt.

    The field may hold a text, or messages ({"role", "content"}, or ShareGPT's
    {"from", "value"}), of which all up to the last one of the user are taken,
    with what stands beside them as tools and chat_template_kwargs.

    Datasets of tensorflow_datasets are read where they lie (TFDS_DATA_DIR,
    else ~/tensorflow_datasets), and fetched first where they do not.

    --suite writes a standard set, with turns and what answers are checked
    against, which bench grades. --against keeps what is evaluated out of what
    is trained on; without --out it only checks.

    The last line of stdout is one JSON object: prompts, and the records that
    were left out (empty, duplicates, overlapping), out.
    """,
  flags=_FLAGS,
  examples=(
    'prompts --from=gsm8k --split=train --out=prompts.jsonl',
    'prompts --from=train.parquet --field=messages --out=prompts.jsonl',
    'prompts --from=sharegpt.jsonl --field=conversations --id_field=id '
    '--limit=1000 --out=prompts.jsonl',
    'prompts --suite=humaneval --from=HumanEval.jsonl.gz --out=humaneval.jsonl',
    'prompts --from=train.jsonl --against=humaneval.jsonl,gsm8k_test.jsonl '
    '--out=clean.jsonl',
  ),
  exit_codes={
    1: 'without --out: prompts overlap those of --against',
    2: 'bad input, or a full disk; nothing is written',
  },
  recipe=False,
)


def body(call: command.Call) -> int:
  options = call.options
  if options.suite:
    return _suite(options)
  source = command.needed(options, 'from')
  out = options.out if options.against else command.needed(options, 'out')
  from specdiff_jax.data import overlap
  from specdiff_jax.data import prompt_sources
  from specdiff_jax.data import prompts as prompts_lib

  if options['split'].present and os.path.exists(source):
    console.say(f'{source} is a file, which has no splits: all of it is read.')
  unlike = None
  if options.against:
    others = [paths.expand(path, '--against') for path in options.against]
    unlike = overlap.Seen(one for p in others for one in prompts_lib.read(p))

  with console.whole_or_not('prompts', 'stopping; nothing is written') as show:
    found = prompt_sources.write(
      out or '',
      source,
      options.split,
      options.field,
      id_field=options.id_field,
      limit=options.limit,
      overwrite=options.overwrite,
      unlike=unlike,
      progress=show,
    )
  if found['empty'] or found['duplicates']:
    console.say(
      f'{source}: left out {found["empty"]} records without a prompt and '
      f'{found["duplicates"]} whose prompt stood there before.'
    )
  shared = found.get('overlapping', {})
  if shared:
    first = [f'{a} (as {b})' for a, b in list(shared.items())[:5]]
    console.say(
      f'{source}: {len(shared)} prompts overlap evaluations: '
      f'{", ".join(first)}{", ..." if len(shared) > 5 else ""}.'
    )
  console.result({**found, 'out': out})
  return 1 if shared and not out else 0


def _suite(options) -> int:
  """Writes a standard set."""
  from specdiff_jax.data import suites

  command.unread(
    options,
    ('against', 'field', 'id_field', 'split'),
    '--suite knows the form of its set',
  )
  out = command.needed(options, 'out')
  written = suites.write(
    out,
    options.suite,
    options['from'].value or '',
    options.limit or None,
    overwrite=options.overwrite,
  )
  console.result({'prompts': written, 'out': out})
  return 0
