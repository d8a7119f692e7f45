"""`ngram`: an n-gram model of the verifier's tokens."""

from specdiff_jax.cli import command
from specdiff_jax.cli import console
from specdiff_jax.cli import flag

_FLAGS = {
  'from': flag.Flag(
    'the texts: a work directory of `collect`, a JSONL or parquet file, or a '
    'name of tensorflow_datasets, such as gsm8k; or a .arpa file. Needed'
  ),
  'out': flag.Flag('the file to write. Needed'),
  'order': flag.Flag('tokens of the longest n-grams, 1 to 8', 3, 'integer', 1),
  'verifier': flag.Flag(
    'whose tokenizer counts, as config.verifier has it: a .gguf file, a '
    'directory, a name on the hub or quickstart; its weights are not read',
    'quickstart',
  ),
  'field': flag.Flag(
    'the fields of a record that hold texts or messages, with commas between; '
    'each is a text of its own',
    ['prompt'],
    'list',
  ),
  'split': flag.Flag('of a dataset of tensorflow_datasets', 'train'),
  'limit': flag.Flag('count this many texts; 0 counts all', 0, 'integer', 0),
  'overwrite': flag.Flag('replace the file of --out', False, 'bool'),
}

COMMAND = command.Command(
  name='ngram',
  what="""
    Fits an n-gram model of the verifier's tokens: what the system diffuspec
    (config.diffuspec.ngram=FILE) takes a path's fluency from while it searches
    through the slots of a diffusion drafter; as config.head it is the edges of
    the system lattice. It changes which drafts are verified, never the text.

    Interpolated Kneser-Ney smoothing, a discount for each order, unigrams
    interpolated with the uniform distribution. Texts like those that will be
    decoded serve best: the work directory of `collect` holds the verifier's own,
    with their ends; of a dataset's records name the answers too (--field). Use
    training texts, not those that you measure on.

    An ARPA file (KenLM, SRILM) is taken too, if its words are the tokenizer's
    tokens, as its vocabulary spells them; --out is then the same model.

    The last line of stdout is one JSON object: out, order, texts, tokens,
    ngrams (of each order).
    """,
  flags=_FLAGS,
  examples=(
    'ngram --from=runs/trajectories --out=runs/ngram.safetensors',
    'ngram --from=gsm8k_train.jsonl --field=prompt,reference --order=3 '
    '--out=runs/ngram.safetensors',
    'ngram --from=tokens.arpa --verifier=org/name --out=runs/ngram.safetensors',
  ),
  exit_codes={2: 'bad input, or a full disk; nothing is written'},
  recipe=False,
)


def body(call: command.Call) -> int:
  options = call.options
  source, out = (command.needed(options, name) for name in ('from', 'out'))
  from specdiff_jax.core import errors
  from specdiff_jax.drafters.ngram import file
  from specdiff_jax.recipes import ngrams

  if source.endswith('.arpa'):
    command.unread(
      options,
      ('order', 'field', 'split', 'limit'),
      'an ARPA file is taken whole',
    )
  if options.order > file.MOST_ORDER:
    raise errors.InputError(
      f'--order is {options.order}, but it has to be at most {file.MOST_ORDER}.'
    )
  with console.whole_or_not('reading', 'stopping; nothing is written') as show:
    found = ngrams.fit(
      out,
      source,
      options.verifier,
      options.order,
      fields=options.field,
      split=options.split,
      limit=options.limit,
      overwrite=options.overwrite,
      progress=show,
    )
  console.say(f'{out}: written.')
  console.result({'out': out, **found})
  return 0
