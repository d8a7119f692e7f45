"""`prompts`: a prompt file out of a dataset."""

import os

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag

_FLAGS = {
  'from': flag.Flag(
    'a JSONL or parquet file, or a name of tensorflow_datasets, such as gsm8k '
    'or name/config:version. Needed'
  ),
  'out': flag.Flag('the prompt file to write. Needed'),
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

    The last line of stdout is one JSON object: prompts, and the records that
    were left out (empty, duplicates), out.
    """,
  flags=_FLAGS,
  examples=(
    'prompts --from=gsm8k --split=train --out=prompts.jsonl',
    'prompts --from=train.parquet --field=messages --out=prompts.jsonl',
    'prompts --from=sharegpt.jsonl --field=conversations --id_field=id '
    '--limit=1000 --out=prompts.jsonl',
  ),
  exit_codes={2: 'bad input, or a full disk; nothing is written'},
  recipe=False,
)


def body(call: command.Call) -> int:
  """Runs the subcommand; returns its exit code."""
  options = call.options
  source, out = (command.needed(options, name) for name in ('from', 'out'))
  from specdiff_jax.data import prompt_sources

  if options['split'].present and os.path.exists(source):
    console.say(f'{source} is a file, which has no splits: all of it is read.')

  with console.patient('prompts') as show:
    found = prompt_sources.write(
      out,
      source,
      options.split,
      options.field,
      id_field=options.id_field,
      limit=options.limit,
      overwrite=options.overwrite,
      progress=show,
    )
  if found['empty'] or found['duplicates']:
    console.say(
      f'{source}: left out {found["empty"]} records without a prompt and '
      f'{found["duplicates"]} whose prompt stood there before.'
    )
  console.result({**found, 'out': out})
  return 0
